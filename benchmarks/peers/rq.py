"""RQ: jobs as hashes in Redis, a list of their ids as the queue."""

from __future__ import annotations

import datetime

import rq
from redis import Redis
from rq import Queue
from rq.registry import StartedJobRegistry

from peers.side import Params, Sign

_signs: list[Sign] = []


def noop(line: int, note: str) -> None:
    """Run the job."""
    _signs[0](line)


class Client:
    """A client that enqueues the job by its function; unread results are not kept."""

    def __init__(self, port: int) -> None:
        connection = Redis(port=port)
        self._queue = Queue("jobs", connection=connection)
        self._started = StartedJobRegistry(queue=self._queue)

    def enq(self, params: Params) -> None:
        """Enqueue one job."""
        self._queue.enqueue(noop, kwargs=params, result_ttl=0)

    def enq_batches(self, batches: list[list[Params]]) -> None:
        """Send one pipeline a batch."""
        for batch in batches:
            self._queue.enqueue_many([Queue.prepare_data(noop, kwargs=params, result_ttl=0) for params in batch])

    def enq_at(self, params: Params, due_us: int) -> None:
        """Schedule a job; RQ's scheduler knows whole seconds."""
        due = datetime.datetime.fromtimestamp(due_us / 1e6, datetime.UTC)
        self._queue.enqueue_at(due, noop, kwargs=params, result_ttl=0)

    def left(self) -> int:
        """Return the number of queued, started and scheduled jobs."""
        return int(self._queue.count) + len(self._started) + int(self._queue.scheduled_job_registry.count)


def work(sign: Sign, port: int, worker_class: str) -> None:
    """Run one of RQ's workers; the scheduler is a process that the worker starts."""
    _signs.append(sign)
    worker = getattr(rq, worker_class)(["jobs"], connection=Redis(port=port))
    print("ready", flush=True)
    worker.work(logging_level="ERROR", with_scheduler=True)
