"""The contestants, each with its work and its settings: those that its documentation advises, or the fastest here.

The jobs do nothing, so the settings are those for short jobs. Each contestant has one worker process, as Givalia does.
"""

from __future__ import annotations

from typing import Final

from peers import givalia
from peers.contest import Contestant, Setting, Sizes

_ZSET: Final = (
    Setting("claim", 1_000, "jobs a script call, as many as a batch has"),
    Setting("poll_s", 0.002, "between looks at an idle queue; what is due then waits for the next"),
)

CONTESTANTS: Final = (
    Contestant(
        "beanstalkd",
        module="beanstalkd",
        server="beanstalkd",
        sizes=Sizes(10_000, 50_000, 100_000),
        worker=[Setting("pipeline", 1_000, "reserves and deletes that share a packet: 1.4 times one at a time, 1.1 times 100")],
    ),
    Contestant(
        "beanstalkd -b -f0",
        module="beanstalkd",
        server="beanstalkd -f0",
        sizes=Sizes(3_000, 6_000, 8_000),
        worker=[Setting("pipeline", 10, "reserves and deletes that share a packet: 1.4 times one by one; 100 were no faster")],
    ),
    Contestant(
        "gearmand",
        module="gearmand",
        server="gearmand",
        sizes=Sizes(8_000, 100_000, 200_000),
        worker=[Setting("pipeline", 1_000, "grabs and completions that share a packet: 15 times one at a time, 1.5 times 100")],
    ),
    Contestant(
        "RQ",
        module="rq",
        server="redis",
        is_library=True,
        sizes=Sizes(500, 1_000, 800),
        worker=[Setting("worker_class", "SimpleWorker", "runs jobs in its own process: 3 times the one that forks")],
    ),
    Contestant(
        "Dramatiq, gevent",
        module="dramatiq",
        server="redis",
        is_library=True,
        sizes=Sizes(3_000, 0, 8_000),
        worker=[
            Setting("gevent", True, "greenlets for threads, as Givalia's worker has them"),
            Setting("worker_threads", 32, "greenlets: its default of 8 and 128 were slower"),
            Setting("worker_timeout", 5, "ms between looks at an idle queue: half the idle latency of 10, 20 and 100"),
        ],
    ),
    Contestant(
        "Huey",
        module="huey",
        server="redis",
        is_library=True,
        sizes=Sizes(4_000, 0, 8_000),
        worker=[Setting("workers", 1, "threads: 2 and 4 were slower, they share the interpreter")],
    ),
    Contestant(
        "Celery",
        module="celery",
        server="redis",
        is_library=True,
        sizes=Sizes(1_500, 0, 2_500),
        worker=[
            Setting("pool", "solo", "for jobs that do nothing faster than prefork, threads and gevent"),
            Setting("concurrency", 1, "what solo has"),
            Setting("prefetch", 100, "its guide wants a large one for short jobs; its default of 4 was slower"),
            Setting("timer_precision_s", 0.01, "its default looks at delayed jobs once a second"),
        ],
    ),
    Contestant(
        "Taskiq, stream",
        module="taskiq",
        server="redis",
        is_library=True,
        sizes=Sizes(2_000, 3_000, 6_000),
        worker=[
            Setting("max_async_tasks", 1_000, "its default of 100 was slower"),
            Setting("xread_count", 1_000, "jobs a read, as many as run at once"),
        ],
    ),
    Contestant("ZSET by hand", module="zset", server="redis", sizes=Sizes(10_000, 100_000, 150_000), worker=_ZSET),
    Contestant("ZSET, AOF always", module="zset", server="redis always", sizes=Sizes(4_000, 80_000, 120_000), worker=_ZSET),
    Contestant(
        "Givalia",
        module="givalia",
        server="",
        sizes=Sizes(2_000, 50_000, 50_000),
        worker=[Setting("concurrency", 1_000, "jobs that the worker runs at once, a frame's worth")],
        client=[Setting("in_flight", 4, "frames of 1,000 jobs on their way at once")],
        rig=givalia.Rig,
    ),
)
