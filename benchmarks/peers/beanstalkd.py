"""beanstalkd: its text protocol, by greenstalk for single commands and on a bare socket for pipelined ones.

beanstalkd answers a put when the job is in memory or, with a log that is synced each time, on disk.
"""

from __future__ import annotations

import json
import math
import socket
import time

import greenstalk

from peers.side import Params, Sign

_LOST_S = 120  # How long a worker may hold a job before another gets it.


class Client:
    """A connection for single puts, and one for pipelined ones."""

    def __init__(self, port: int) -> None:
        self._one = greenstalk.Client(("127.0.0.1", port))
        self._many = socket.create_connection(("127.0.0.1", port))
        self._answers = self._many.makefile("rb")

    def enq(self, params: Params) -> None:
        """Send one put."""
        self._one.put(json.dumps(params), ttr=_LOST_S)

    def enq_batches(self, batches: list[list[Params]]) -> None:
        """Send the puts of a batch in one packet; then read all their answers."""
        for batch in batches:
            bodies = [json.dumps(params).encode() for params in batch]
            self._many.sendall(b"".join(b"put 0 0 %d %d\r\n%b\r\n" % (_LOST_S, len(body), body) for body in bodies))
            for _ in batch:
                answer = self._answers.readline()
                if not answer.startswith(b"INSERTED"):
                    raise RuntimeError(answer)

    def enq_at(self, params: Params, due_us: int) -> None:
        """Put a job with its delay in whole seconds, rounded up: a timer must not fire before its time."""
        self._one.put(json.dumps(params), delay=math.ceil(due_us / 1e6 - time.time()), ttr=_LOST_S)

    def left(self) -> int:
        """Return the number of ready, reserved and delayed jobs."""
        stats = self._one.stats()
        return sum(int(stats[f"current-jobs-{state}"]) for state in ("ready", "reserved", "delayed"))


def work(sign: Sign, port: int, pipeline: int) -> None:
    """Reserve up to `pipeline` jobs at once while there are some; delete them in the packet that asks for the next."""
    connection = socket.create_connection(("127.0.0.1", port))
    answers = connection.makefile("rb")

    def reserved() -> bytes | None:
        kind, *rest = answers.readline().split()
        if kind != b"RESERVED":
            return None
        body = answers.read(int(rest[1]) + 2)
        sign(json.loads(body)["line"])
        return rest[0]

    print("ready", flush=True)
    asked = 1
    connection.sendall(b"reserve\r\n")
    while True:
        ran = [id for id in [reserved() for _ in range(asked)] if id is not None]
        deletes = b"".join(b"delete %b\r\n" % id for id in ran)
        # After a full answer more jobs wait; after a smaller one, a reserve should wait for the next job.
        asked = min(2 * asked, pipeline) if len(ran) == asked else 1
        ask = b"reserve-with-timeout 0\r\n" * asked if asked > 1 else b"reserve\r\n"
        connection.sendall(deletes + ask)
        for _ in ran:
            answers.readline()
