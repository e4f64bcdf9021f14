"""The records that users' code sees: frozen, with strings, seconds and aware datetimes instead of wire values.

This is the public edge: ids are converted only here, lengths and instants only in `times`.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from givalia_core.errors import BadRequest
from givalia_core.model import JobState, OutcomeKind

UUID_CHARS: Final = 36
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE).fullmatch


def text_id(job_id: bytes) -> str:
    """Return the public form of an id of the wire."""
    text = job_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_in(key: str) -> bytes | None:
    """Return the id that a text given as a key may mean; None if the text does not have the public form of ids."""
    if len(key) != UUID_CHARS or not _UUID(key):
        return None
    return bytes.fromhex(key.replace("-", ""))


def wire_id(job_id: str | uuid.UUID) -> bytes:
    """Convert a user's id to the form of the wire.

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
    """The versions of the module's distribution that may run it; None: any."""


@dataclass(frozen=True)
class RunningJobView(JobView):
    """A job as its WorkModule and the hooks on the worker see it."""

    fence: int
    params: Any

    @property
    def idempotency_key(self) -> str:
        """The same text on every attempt of the job; pass it to remote APIs that detect repeated calls by a key."""
        return self.id

    def complete_in(self, connection: Any, result: Any = None) -> None:
        """Complete the job in your transaction: the job is done if and only if the transaction commits.

        The servers must keep their jobs in the database of `connection`. The store's package lists the kinds of connection that
        it accepts (`givalia-postgres`: psycopg, SQLAlchemy, Django). The later return value of `process` is ignored.

        Raises:
            Stale: The lease is over, and another attempt may run. Roll back.
            BadRequest: No installed store accepts this connection, or the result is too large or not msgpack.
        """
        _store_of(connection).complete_in(connection, wire_id(self.id), self.fence, result)


def running_view(fields: dict[str, Any]) -> RunningJobView:
    """Return a view with these fields; the view keeps the dict. Takes half the time of `RunningJobView(...)`."""
    view = object.__new__(RunningJobView)
    object.__setattr__(view, "__dict__", fields)
    return view


def _store_of(connection: Any) -> Any:
    """Return the class of the installed store that accepts this connection."""
    import importlib_metadata  # Imported here because a client that only enqueues does not need it.

    for entry in importlib_metadata.entry_points(group="givalia.stores"):
        store = entry.load()
        if getattr(store, "takes", lambda _: False)(connection):
            return store
    raise BadRequest(f"no installed store takes a {type(connection).__module__}.{type(connection).__qualname__}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt: `seconds` is its duration, `error` what it raised."""

    kind: OutcomeKind
    result: Any = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Status:
    """The answer of `stat`."""

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
    """The last progress report of the running attempt; a hint, not durable."""
    result: Any
    """The value that `process` returned, if the job is done; always None in a listing."""
    error: str | None
    """The error of the last failed attempt, with its traceback."""
    reason: str | None
    result_error: str | None
    stop_asked: bool
    why: str
    """The reason why the job has not run yet, or its end, in words."""
    version: str | None = None
    """The versions of the module's distribution that may run it; None: any."""
    enq_at: datetime | None = None
    """The time of its enq. This and the next two are None if an earlier version of the server answers."""
    started_at: datetime | None = None
    """The beginning of the last attempt; None before the first."""
    ended_at: datetime | None = None
    """The time of the job's final end; None while it lives."""
    params: Any = None
    """The params of the job, if requested (`params=True`)."""
