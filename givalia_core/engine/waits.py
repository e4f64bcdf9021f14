"""Who waits for the end of which job: counted, bounded, and found from either side.

A connection may always have a few waits. Beyond these all connections share a number of them, so that none of them can use
up the memory of the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

WAITS_MAX: Final = 50_000  # Of all connections.
WAITS_PER_CONNECTION: Final = 9_000  # Fewer than a connection may have unanswered, so that it is told and not left unread.
WAITS_ALWAYS: Final = 100  # Of one connection, however many others there are.

Waiter = tuple[int, int]  # Connection and request.


class Waits:
    """The waits of connections, by job and by connection."""

    def __init__(self) -> None:
        self.by_job: dict[bytes, dict[Waiter, bool]] = {}  # With whether the waiter wants to hear of the job's progress.
        self._by_conn: dict[int, dict[int, bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self.by_job

    def __iter__(self) -> Iterator[bytes]:
        """The ids of the jobs that are waited for."""
        return iter(self.by_job)

    def add(self, job_id: bytes, conn: int, request: int, *, wants_progress: bool) -> bool:
        """Let a request wait for the end of a job; return false if this connection may wait for no other."""
        own = self._by_conn.setdefault(conn, {})
        if request in own:
            self.drop(conn, request)
            own = self._by_conn.setdefault(conn, {})
        waits = len(own)
        if waits >= WAITS_ALWAYS and (waits >= WAITS_PER_CONNECTION or self._count >= WAITS_MAX):
            return False
        self.by_job.setdefault(job_id, {})[conn, request] = wants_progress
        own[request] = job_id
        self._count += 1
        return True

    def of(self, job_id: bytes) -> Mapping[Waiter, bool]:
        """Who waits for a job, with whether the waiter wants to hear of its progress."""
        return self.by_job.get(job_id, {})

    def end(self, job_id: bytes) -> Iterable[Waiter]:
        """Take out and return who waited for a job, which has ended."""
        waiters = self.by_job.pop(job_id, None)
        if not waiters:
            return ()
        self._count -= len(waiters)
        by_conn = self._by_conn
        for conn, request in waiters:
            own = by_conn[conn]
            del own[request]
            if not own:
                del by_conn[conn]
        return waiters

    def drop(self, conn: int, request: int) -> None:
        """A request waits no longer: it is decided again."""
        job_id = self._by_conn.get(conn, {}).get(request)
        if job_id is not None:
            self._forget(conn, request)
            self._remove(job_id, (conn, request))

    def leave(self, conn: int) -> None:
        """A connection is gone, and with it all that it waited for."""
        for request, job_id in self._by_conn.pop(conn, {}).items():
            self._remove(job_id, (conn, request))

    def _remove(self, job_id: bytes, waiter: Waiter) -> None:
        waiters = self.by_job[job_id]
        del waiters[waiter]
        self._count -= 1
        if not waiters:
            del self.by_job[job_id]

    def _forget(self, conn: int, request: int) -> None:
        own = self._by_conn[conn]
        del own[request]
        if not own:
            del self._by_conn[conn]
