"""Dramatiq on Redis, its worker on gevent."""

from __future__ import annotations

import threading
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from peers.side import Params, Sign


def _actor(port: int, sign: Sign | None = None) -> dramatiq.Actor[..., None]:
    # With the default middleware: retries, limits of time and age, and so on.
    dramatiq.set_broker(RedisBroker(port=port))

    @dramatiq.actor(queue_name="jobs")
    def noop(line: int, note: str) -> None:
        if sign:
            sign(line)

    return noop


class Client:
    """A client that sends one message at a time: a group is a loop, too."""

    def __init__(self, port: int) -> None:
        self._noop = _actor(port)
        self._redis = self._noop.broker.client

    def enq(self, params: Params) -> None:
        """Send one message."""
        self._noop.send(**params)

    def enq_at(self, params: Params, due_us: int) -> None:
        """Send a message with a delay in milliseconds, rounded up."""
        self._noop.send_with_options(kwargs=params, delay=-(-(due_us - time.time_ns() // 1_000) // 1_000))

    def left(self) -> int:
        """Return the number of messages; each stays until it is acknowledged."""
        return int(self._redis.hlen("dramatiq:jobs.msgs") + self._redis.hlen("dramatiq:jobs.DQ.msgs"))


def work(sign: Sign, port: int, worker_threads: int, worker_timeout: int) -> None:
    """Run the worker that its command line starts in each process, with greenlets for threads."""
    broker = _actor(port, sign).broker
    dramatiq.Worker(broker, worker_threads=worker_threads, worker_timeout=worker_timeout).start()
    print("ready", flush=True)
    threading.Event().wait()
