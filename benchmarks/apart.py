"""The SQLite store in a process of its own, measured by `store_apart.py`.

The server waits for the store as for a socket, so its loop reads, decodes and answers meanwhile. Messages are small: a seq
names the old version of a job, since the store has it, and the new version is sent as its record. Nothing waits for
housekeeping.
"""

from __future__ import annotations

import pickle
import socket as native_socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gevent import socket
from gevent.lock import RLock

from givalia_core.clock import Mark, Now
from givalia_core.model import Job
from givalia_core.program import spare_the_collector
from givalia_core.store import SQLite
from givalia_core.store.base import Change, Commit, Found, Opened, Retention, Wanted
from givalia_core.store.sqlite.records import pack_base, unpack

_LENGTH: Final = struct.Struct(">I")
_BUFFER_BYTES: Final = 1 << 20  # So that a whole batch crosses at once.


class Apart:
    """A store behind a socket; its URL is `apart:` and a path."""

    durability = "fsync"
    is_shared = False

    def __init__(self, url: str) -> None:
        """Start nothing yet."""
        self._url = url.replace("apart:", "sqlite:", 1)
        self._lock = RLock()

    def open(self, *, unsafe: bool = False) -> Opened:  # noqa: ARG002 - A store has it.
        ours, theirs = native_socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(native_socket.SOL_SOCKET, native_socket.SO_SNDBUF, _BUFFER_BYTES)
        with theirs:
            command = [sys.executable, __file__, self._url, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._socket = socket.socket(fileno=ours.detach())
        opened: Opened = self._ask("open")
        return opened

    def find(self, wanted: Wanted, now: Now) -> Found:
        if not any(wanted):
            return Found({}, {}, {}, {}, {}, {})
        found: Found = self._ask("find", wanted, now)
        return found

    def commit(
        self,
        changes: Sequence[Change],
        mark: Mark,
        retention: Retention | None = None,
        learned: object = None,  # noqa: ARG002 - A store has it.
    ) -> Commit:
        slim = [(None if was is None else was.seq, pack_base(job), job.params) for was, job in changes]
        commit: Commit = self._ask("commit", slim, mark, retention)
        return commit

    def tidy(self) -> None:
        with self._lock:
            _send(self._socket, ("tidy",))

    def close(self) -> None:
        self._ask("close")
        self._socket.close()
        self._process.wait(10)

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self._ask(name, *values)

    def _ask(self, *call: Any) -> Any:
        with self._lock:
            _send(self._socket, call)
            return _receive(self._socket)


def serve(store: SQLite, sock: native_socket.socket) -> None:
    """Answer every call until the store is closed."""
    kept: dict[int, Job] = {}  # By seq, as the server knows them.
    while True:
        name, *values = _receive(sock)
        if name == "commit":
            slim, *rest = values
            changes = [Change(None if seq is None else kept[seq], _job(record, params)) for seq, record, params in slim]
            answer: Any = store.commit(changes, *rest)
            kept.update((job.seq, job) for _, job in changes)
            for seq in [job.seq for _, job in changes if not job.is_live]:
                del kept[seq]
        else:
            answer = getattr(store, name)(*values)
            if name == "find":
                _keep(kept, answer)
            elif name == "running":
                answer = list(answer)
                kept.update((job.seq, job) for job in answer)
        if name != "tidy":
            _send(sock, answer)
        if name == "close":
            return


def _job(record: bytes, params: bytes) -> Job:
    job = unpack(record, params)
    assert isinstance(job, Job)
    return job


def _keep(kept: dict[int, Job], found: Found) -> None:
    groups: Iterable[Iterable[Job]] = (
        found.ids.values(), found.live.values(), found.ended.values(), found.requests.values(), *found.ready.values()
    )  # fmt: skip
    for jobs in groups:
        kept.update((job.seq, job) for job in jobs)


def _send(sock: Any, said: Any) -> None:
    packed = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
    sock.sendall(_LENGTH.pack(len(packed)) + packed)


def _receive(sock: Any) -> Any:
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return pickle.loads(_exactly(sock, length))


def _exactly(sock: Any, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError("the other process is gone")
        data += more
    return bytes(data)


if __name__ == "__main__":
    _, _url, _fd = sys.argv
    spare_the_collector()  # As the server does.
    serve(SQLite(_url), native_socket.socket(fileno=int(_fd)))
