"""The code that runs in the processes of jobs.

The doors are their programs, `host` and `child`, and `runner` for a program that is its own host.
"""
