"""Runs jobs: a link to the server, a foreman who knows what runs where, and the processes that it runs in.

`Worker` is the whole of it within one process, for programs that want it so; `givalia-worker` is the `Supervisor`, with job
code in processes that it can replace.
"""
