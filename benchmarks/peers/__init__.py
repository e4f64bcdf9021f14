"""Givalia and its peers, side by side: the same work, in the same run, on the same machine.

`python -m peers` brings the peers, starts them on loopback and measures them in turns; our own benchmarks follow in the same
run, and every goal is judged (see `standing`). There are two environments: a file named for a peer runs in the peers', as that
peer's client or worker, and imports packages that only this environment has; `side` runs in both, all others in Givalia's.
"""
