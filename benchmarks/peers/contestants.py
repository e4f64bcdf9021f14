"""Who takes part, with how much work and at which settings: those that its documentation advises, or that were fastest here.

The jobs do nothing, so the settings are those for short jobs. One worker process each, as Givalia has.
"""

from __future__ import annotations

from typing import Final

from peers import givalia
from peers.contest import Contestant, Setting, Sizes

_PIPELINE: Final = Setting("pipeline", 100, "reserves and deletes of so many jobs share a packet: several times one by one")

CONTESTANTS: Final = (
    Contestant("beanstalkd", "beanstalkd", "beanstalkd", Sizes(10_000, 50_000, 100_000), worker=[_PIPELINE]),
    Contestant("beanstalkd -b -f0", "beanstalkd", "beanstalkd -f0", Sizes(2_000, 4_000, 6_000), worker=[_PIPELINE]),
    Contestant(
        "gearmand",
        "gearmand",
        "gearmand",
        Sizes(6_000, 30_000, 30_000),
        worker=[Setting("pipeline", 100, "grabs and completions of so many jobs share a packet: several times one by one")],
    ),
    Contestant(
        "RQ",
        "rq",
        "redis",
        Sizes(500, 1_000, 600),
        worker=[],
    ),
    Contestant(
        "Dramatiq, gevent",
        "dramatiq",
        "redis",
        Sizes(3_000, 0, 8_000),
        worker=[
            Setting("gevent", True, "its guide's choice for many short jobs, and it is what Givalia's worker stands on"),
            Setting("worker_threads", 8, "its default"),
            Setting("worker_timeout", 10, "ms between looks at an idle queue, at most: its default of 1,000 starts single jobs late"),
        ],
    ),
    Contestant(
        "Huey",
        "huey",
        "redis",
        Sizes(4_000, 0, 6_000),
        worker=[Setting("workers", 1, "threads: more were slower, they share the interpreter")],
    ),
    Contestant(
        "Celery",
        "celery",
        "redis",
        Sizes(1_500, 0, 2_500),
        worker=[
            Setting("pool", "solo", "fastest here for jobs that do nothing"),
            Setting("concurrency", 1, "what solo has"),
            Setting("prefetch", 100, "its guide wants a large one for short jobs"),
            Setting("timer_precision_s", 0.01, "its default looks at delayed jobs once a second"),
        ],
    ),
    Contestant(
        "Taskiq, stream",
        "taskiq",
        "redis",
        Sizes(2_000, 3_000, 6_000),
        worker=[
            Setting("max_async_tasks", 100, "its default"),
            Setting("xread_count", 100, "its default"),
        ],
    ),
    Contestant(
        "ZSET by hand",
        "zset",
        "redis",
        Sizes(5_000, 50_000, 100_000),
        worker=[
            Setting("claim", 1_000, "jobs a script call, as many as a batch enqueues"),
            Setting("poll_s", 0.002, "between looks at an idle queue: shorter costs more than it gains"),
        ],
    ),
    Contestant(
        "ZSET, AOF always",
        "zset",
        "redis always",
        Sizes(2_000, 30_000, 60_000),
        worker=[
            Setting("claim", 1_000, "jobs a script call, as many as a batch enqueues"),
            Setting("poll_s", 0.002, "between looks at an idle queue: shorter costs more than it gains"),
        ],
    ),
    Contestant(
        "Givalia",
        "givalia",
        "",
        Sizes(2_000, 50_000, 50_000),
        worker=[Setting("concurrency", 1_000, "jobs that the worker runs at once, a frame's worth")],
        client=[Setting("in_flight", 4, "frames of 1,000 jobs on their way at once")],
        rig=givalia.Rig,
    ),
)
