"""A queue by hand on Redis: a sorted set of due times, a hash of params, a sorted set of leases, and three Lua scripts.

A team that wants delayed jobs and nothing else writes this in an afternoon: no retries, no keys, no results. Leases are kept,
but nothing here takes back an expired one.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Final

import redis

from peers.side import Params, Sign

_LEASE_MS: Final = 60_000

_ENQ: Final = """
for i = 1, #ARGV, 3 do
  redis.call('HSET', 'params', ARGV[i], ARGV[i + 2])
  redis.call('ZADD', 'due', ARGV[i + 1], ARGV[i])
end
"""

_DONE_AND_CLAIM: Final = """
for i = 4, #ARGV do
  redis.call('ZREM', 'leased', ARGV[i])
  redis.call('HDEL', 'params', ARGV[i])
end
local ids = redis.call('ZRANGEBYSCORE', 'due', '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
local jobs = {}
for i, id in ipairs(ids) do
  redis.call('ZREM', 'due', id)
  redis.call('ZADD', 'leased', ARGV[1] + ARGV[2], id)
  jobs[2 * i - 1] = id
  jobs[2 * i] = redis.call('HGET', 'params', id)
end
return jobs
"""


class Client:
    """A client that enqueues one job or many with one script call."""

    def __init__(self, port: int) -> None:
        self._redis = redis.Redis(port=port)
        self._enq = self._redis.register_script(_ENQ)

    def enq(self, params: Params) -> None:
        """Enqueue one job that is due now."""
        self.enq_at(params, time.time_ns() // 1_000)

    def enq_at(self, params: Params, due_us: int) -> None:
        """Enqueue one job, due to the millisecond, rounded up."""
        self._enq(args=(uuid.uuid4().hex, -(-due_us // 1_000), json.dumps(params)))

    def enq_batches(self, batches: list[list[Params]]) -> None:
        """Send one script call a batch."""
        for batch in batches:
            now_ms = time.time_ns() // 1_000_000
            self._enq(args=[word for params in batch for word in (uuid.uuid4().hex, now_ms, json.dumps(params))])

    def left(self) -> int:
        """Return the number of params, which a job keeps until it is done."""
        return int(self._redis.hlen("params"))


def work(sign: Sign, port: int, claim: int, poll_s: float) -> None:
    """Claim due jobs, run them, and report them with the next claim; sleep a little if none is due."""
    claim_script = redis.Redis(port=port).register_script(_DONE_AND_CLAIM)
    done: list[bytes] = []
    print("ready", flush=True)
    while True:
        jobs = claim_script(args=[time.time_ns() // 1_000_000, _LEASE_MS, claim, *done])
        done = jobs[::2]
        for params in jobs[1::2]:
            sign(json.loads(params)["line"])
        if not done:
            time.sleep(poll_s)
