"""Celery on Redis."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from peers.side import Params, Sign

_signs: list[Sign] = []


def _app(port: int, **settings: Any) -> Celery:
    app = Celery("jobs", broker=f"redis://127.0.0.1:{port}/0")
    app.conf.update(
        task_ignore_result=True,  # Its guide to optimizing advises this if results are not read.
        task_acks_late=True,  # Only a task that has run is done: as with the others, a lost worker loses no job.
        worker_hijack_root_logger=False,
        **settings,
    )

    @app.task(name="noop")
    def noop(line: int, note: str) -> None:
        _signs[0](line)

    return app


class Client:
    """A client that publishes one message at a time: a group is a loop, too."""

    def __init__(self, port: int) -> None:
        app = _app(port)
        self._noop = app.tasks["noop"]
        self._redis = app.connection_for_read().default_channel.client

    def enq(self, params: Params) -> None:
        """Publish one message."""
        self._noop.apply_async(kwargs=params)

    def enq_at(self, params: Params, due_us: int) -> None:
        """Publish a task with a due; the worker takes it at once and keeps it until then."""
        self._noop.apply_async(kwargs=params, eta=datetime.datetime.fromtimestamp(due_us / 1e6, datetime.UTC))

    def left(self) -> int:
        """Return the number of messages in the queue, or taken and not acknowledged."""
        return int(self._redis.llen("celery") + self._redis.hlen("unacked"))


def work(sign: Sign, port: int, pool: str, concurrency: int, prefetch: int, timer_precision_s: float) -> None:
    """Run Celery's worker, without its messages to other workers."""
    _signs.append(sign)
    logging.disable(logging.WARNING)
    app = _app(port, worker_prefetch_multiplier=prefetch, worker_timer_precision=timer_precision_s)
    worker_ready.connect(lambda **_: print("ready", flush=True), weak=False)
    quiet = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
    app.Worker(pool=pool, concurrency=concurrency, loglevel="ERROR", **quiet).start()
