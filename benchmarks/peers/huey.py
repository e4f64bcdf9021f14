"""Huey on Redis. A task leaves Redis when a worker takes it, so a task that has run counts as done."""

from __future__ import annotations

import datetime

from huey import RedisHuey

from peers.side import Params, Sign

_signs: list[Sign] = []


class _Queue:
    def __init__(self, port: int) -> None:
        # Unread results are not kept; a worker waits in Redis for its next task instead of polling.
        self.huey = RedisHuey("jobs", port=port, results=False, blocking=True)

        @self.huey.task()
        def noop(line: int, note: str) -> None:
            _signs[0](line)

        self.noop = noop


class Client:
    """A client that calls the task, which enqueues it."""

    def __init__(self, port: int) -> None:
        self._queue = _Queue(port)

    def enq(self, params: Params) -> None:
        """Call the task once."""
        self._queue.noop(**params)

    def enq_at(self, params: Params, due_us: int) -> None:
        """Schedule the task; Huey's scheduler polls once a second."""
        self._queue.noop.schedule(kwargs=params, eta=datetime.datetime.fromtimestamp(due_us / 1e6, datetime.UTC))

    def left(self) -> int:
        """Return the number of tasks in the queue or the schedule."""
        return int(self._queue.huey.pending_count() + self._queue.huey.scheduled_count())


def work(sign: Sign, port: int, workers: int) -> None:
    """Run the consumer in this process."""
    _signs.append(sign)
    consumer = _Queue(port).huey.create_consumer(workers=workers, worker_type="thread", periodic=False)
    print("ready", flush=True)
    consumer.run()
