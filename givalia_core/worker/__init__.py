"""Runs jobs: a link to the server, a foreman that knows where each job runs, and the processes of the jobs.

`Worker` is all of this in one process, for use inside a program; `givalia-worker` is the `Supervisor`, which runs job code in
processes that it can replace.
"""
