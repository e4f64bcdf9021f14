"""Taskiq on a Redis stream: its only broker for Redis that acknowledges. Client and worker run on uvloop.

Delays need a scheduler in another process, and are not measured.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from redis import Redis
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from peers.side import Params, Sign


def _broker(port: int, sign: Sign | None = None, **options: Any) -> tuple[RedisStreamBroker, Any]:
    broker = RedisStreamBroker(f"redis://127.0.0.1:{port}", **options)

    @broker.task(task_name="noop")
    async def noop(line: int, note: str) -> None:
        if sign:
            sign(line)

    return broker, noop


class Client:
    """A client that kicks one task at a time, or those of a batch at once on some connections."""

    def __init__(self, port: int) -> None:
        # As many connections as its pool would use: more were no faster.
        broker, self._noop = _broker(port, max_connection_pool_size=10)
        self._loop = uvloop.new_event_loop()
        self._loop.run_until_complete(broker.startup())
        self._redis = Redis(port=port)

    def enq(self, params: Params) -> None:
        """Kick one task."""
        self._loop.run_until_complete(self._noop.kiq(**params))

    def enq_batches(self, batches: list[list[Params]]) -> None:
        """Kick the tasks of a batch as concurrent calls; there is no pipeline."""

        async def kick(batch: list[Params]) -> None:
            await asyncio.gather(*(self._noop.kiq(**params) for params in batch))

        for batch in batches:
            self._loop.run_until_complete(kick(batch))

    def left(self) -> int:
        """Return the number of unread or unacknowledged entries of the stream."""
        return sum(group["pending"] + (group["lag"] or 0) for group in self._redis.xinfo_groups("taskiq"))


def work(sign: Sign, port: int, max_async_tasks: int, xread_count: int) -> None:
    """Run Taskiq's receiver."""

    async def receive() -> None:
        broker, _ = _broker(port, sign, xread_count=xread_count)
        broker.is_worker_process = True
        await broker.startup()
        print("ready", flush=True)
        await run_receiver_task(broker, max_async_tasks=max_async_tasks)

    uvloop.run(receive())
