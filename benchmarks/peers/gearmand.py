"""gearmand: its binary protocol on a bare socket, without a library, so that jobs can share a packet.

A background job is answered when it is in memory, and done when its worker has reported it. Delays are not measured: gearmand
holds a job with a time (SUBMIT_JOB_EPOCH) until then, but wakes no worker for it: the job starts when a later job wakes one.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Final

from peers.side import Params, Sign

_FUNCTION: Final = b"noop"
_CAN_DO, _PRE_SLEEP, _NOOP, _JOB_CREATED, _GRAB_JOB, _NO_JOB, _JOB_ASSIGN, _WORK_COMPLETE, _SUBMIT_JOB_BG = (
    1, 4, 6, 8, 9, 10, 11, 13, 18,
)  # fmt: skip


def _packet(kind: int, *parts: bytes) -> bytes:
    body = b"\0".join(parts)
    return b"\0REQ" + struct.pack(">II", kind, len(body)) + body


class _Connection:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        self.send = self._socket.sendall

    def hear(self) -> tuple[int, bytes]:
        _, kind, size = struct.unpack(">4sII", self._answers.read(12))
        return kind, self._answers.read(size)

    def line(self) -> bytes:
        return self._answers.readline()


class Client:
    """A connection for submitting, and one for the text commands of administrators."""

    def __init__(self, port: int) -> None:
        self._connection = _Connection(port)
        self._admin = _Connection(port)

    def enq(self, params: Params) -> None:
        """Submit one background job."""
        self.enq_batches([[params]])

    def enq_batches(self, batches: list[list[Params]]) -> None:
        """Submit the jobs of a batch in one packet; then read all their answers."""
        for batch in batches:
            # Without a unique id: gearmand then makes one.
            submits = [_packet(_SUBMIT_JOB_BG, _FUNCTION, b"", json.dumps(params).encode()) for params in batch]
            self._connection.send(b"".join(submits))
            for _ in batch:
                kind, body = self._connection.hear()
                if kind != _JOB_CREATED:
                    raise RuntimeError(body)

    def left(self) -> int:
        """Return the number of jobs in the queue, including running ones."""
        self._admin.send(b"status\n")
        left = 0
        while (line := self._admin.line()) != b".\n":
            left += int(line.split(b"\t")[1])
        return left


def work(sign: Sign, port: int, pipeline: int) -> None:
    """Grab up to `pipeline` jobs at once while there are some; complete them in the packet that grabs the next."""
    connection = _Connection(port)
    connection.send(_packet(_CAN_DO, _FUNCTION))
    print("ready", flush=True)
    grab = _packet(_GRAB_JOB)
    asked = 1
    connection.send(grab)
    while True:
        handles = []
        answered = 0
        while answered < asked:
            kind, body = connection.hear()
            if kind == _JOB_ASSIGN:
                handle, _, workload = body.split(b"\0", 2)
                sign(json.loads(workload)["line"])
                handles.append(handle)
            answered += kind in (_JOB_ASSIGN, _NO_JOB)
        completes = b"".join(_packet(_WORK_COMPLETE, handle, b"") for handle in handles)
        if not handles:
            connection.send(_packet(_PRE_SLEEP))
            while connection.hear()[0] != _NOOP:
                pass
        # After a full answer more jobs wait.
        asked = min(2 * asked, pipeline) if len(handles) == asked else 1
        connection.send(completes + grab * asked)
