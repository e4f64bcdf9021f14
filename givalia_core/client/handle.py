"""A job as the client that enqueued it holds it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Protocol

from givalia_core.views import Status


class Verbs(Protocol):
    """What a handle needs of its client."""

    def stat(self, key: str | None = None, *, id: str | None = None) -> Status: ...

    def cancel(self, key: str | None = None, *, id: str | None = None, running: bool = False) -> str: ...

    def ext(
        self,
        key: str | None = None,
        time: float | timedelta | None = None,
        *,
        at: float | datetime | None = None,
        id: str | None = None,
    ) -> datetime: ...

    def wait(self, id: str, timeout: float | None = None) -> Any: ...


class JobHandle:
    """A job that this client enqueued or named: `id`, `key`, `due` as last heard, and the verbs for it."""

    def __init__(self, client: Verbs, job_id: str, key: str | None, due: datetime, durability: str) -> None:
        self._client = client
        self.id = job_id
        self.key = key
        self.due = due
        """When it is due, as an aware datetime in UTC."""
        self.durability = durability
        """What the answer promised: `fsync` (on stable storage) or `memory`."""

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} key={self.key!r} due={self.due.isoformat()}>"

    def stat(self) -> Status:
        """Ask about it."""
        return self._client.stat(id=self.id)

    def ext(self, time: float | timedelta | None = None, *, at: float | datetime | None = None) -> datetime:
        """Move its due; see `Client.ext`."""
        self.due = self._client.ext(id=self.id, time=time, at=at)
        return self.due

    def cancel(self, *, running: bool = False) -> str:
        """Call it off; see `Client.cancel`."""
        return self._client.cancel(id=self.id, running=running)

    def wait(self, timeout: float | None = None) -> Any:
        """The job's result, as soon as there is one: the server pushes it, over reconnects too.

        A server that is too busy for one more who waits is asked again when it wants to be.

        Raises:
            WaitTimeout: `timeout` seconds have passed; the job goes on.
            JobFailed, JobCancelled, ResultLost, NotFound: There will be no result.
            ConnectionLost: No server has been in reach for a minute.
        """
        return self._client.wait(self.id, timeout)
