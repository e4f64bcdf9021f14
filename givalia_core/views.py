"""What people's own code is shown: frozen records with strings, seconds and aware datetimes instead of wire values.

Ids are converted here and lengths and instants in `times`, and only there, at the public edge.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from givalia_core.errors import BadRequest
from givalia_core.model import JobState, OutcomeKind


def text_id(job_id: bytes) -> str:
    """An id of the wire as people see it."""
    text = job_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def wire_id(job_id: str | uuid.UUID) -> bytes:
    """An id that a user gave, as it goes over the wire.

    Raises:
        BadRequest: Not a UUID.
    """
    try:
        return (job_id if isinstance(job_id, uuid.UUID) else uuid.UUID(job_id)).bytes
    except (ValueError, AttributeError, TypeError):
        raise BadRequest(f"an id is a UUID, not {job_id!r:.64}") from None


@dataclass(frozen=True)
class JobView:
    """A job as hooks on the server see it."""

    id: str
    key: str | None
    module: str
    target_worker: str
    priority: int
    attempt: int
    due: datetime
    version: str | None = field(default=None, kw_only=True)
    """Which versions of the module's distribution may run it; None: any."""


@dataclass(frozen=True)
class RunningJobView(JobView):
    """A job as its WorkModule and the hooks on the worker see it."""

    fence: int
    params: Any

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt of the job: hand it to remote APIs that can tell repeated calls by it."""
        return self.id

    def complete_in(self, connection: Any, result: Any = None) -> None:
        """Let the job be done in your transaction: it is if and only if that commits, and so are your other writes in it.

        For servers that share a database which `connection` is connected to; see the package of their store for which kinds
        of connection it takes (`givalia-postgres`: psycopg, SQLAlchemy, Django). What `process` returns afterwards is ignored.

        Raises:
            Stale: The lease is over, another attempt may run. Roll back.
            BadRequest: No installed store takes this connection, or the result is too large or not msgpack.
        """
        _store_of(connection).complete_in(connection, wire_id(self.id), self.fence, result)


def running_view(fields: dict[str, Any]) -> RunningJobView:
    """Return the view that has all these fields; it takes the dict. Half the time of `RunningJobView(...)`."""
    view = object.__new__(RunningJobView)
    object.__setattr__(view, "__dict__", fields)
    return view


def _store_of(connection: Any) -> Any:
    """The class of the installed store that has its jobs where this connection leads."""
    import importlib_metadata  # Not at the top: a client that only enqueues does not need it.

    for entry in importlib_metadata.entry_points(group="givalia.stores"):
        store = entry.load()
        if getattr(store, "takes", lambda _: False)(connection):
            return store
    raise BadRequest(f"no installed store takes a {type(connection).__module__}.{type(connection).__qualname__}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended; `seconds` is how long it took, `error` what it raised."""

    kind: OutcomeKind
    result: Any = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """What `stat` knows of a job."""

    id: str
    key: str | None
    module: str
    target_worker: str
    priority: int
    state: JobState
    due: datetime
    timeleft: float | None
    """Seconds until due, 0.0 when ready, None once it has started."""
    attempts: int
    max_attempts: int
    worker: str | None
    progress: tuple[float, str] | None
    """What the running attempt last said of itself; a hint, not durable."""
    result: Any
    """What `process` returned, if it is done; always None in a listing."""
    error: str | None
    """What the last failed attempt raised, with its traceback."""
    reason: str | None
    result_error: str | None
    stop_asked: bool
    why: str
    """In words: why it has not run yet, or what became of it."""
    version: str | None = None
    """Which versions of the module's distribution may run it; None: any."""
    enq_at: datetime | None = None
    """When it was enqueued; None if the server is of an earlier version, as for the next two."""
    started_at: datetime | None = None
    """When the last attempt began; None before the first."""
    ended_at: datetime | None = None
    """When the job ended for good; None while it lives."""
    params: Any = None
    """What it was enqueued with, if that was asked for (`params=True`)."""
