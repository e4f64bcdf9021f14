"""The inside of the processes in which jobs run.

The doors are their programs, `host` and `child`, and `runner` for a program that is its own host.
"""
