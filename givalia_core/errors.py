"""Every error Givalia raises, as one tree under `GivaliaError`.

Each class carries a stable `code`, the class name in capitals, that is the same on the wire, in logs and in
`docs/errors.md`, and an `exit_code` for the command line (sysexits). The docstring of a class is written to the person
on call: what happened, whether anything changed, what to do.

    GivaliaError
    ├── Refused            the server refused a command; nothing changed
    │   ├── BadRequest  TooLarge  NotFound  DuplicateKey  WrongState  Stale  Unauthorized  VersionMismatch
    │   ├── StoreFull
    │   └── Busy
    │       └── ShuttingDown
    ├── PartlyRefused      some commands of a bulk call were refused; the others stand
    ├── ConnectionLost     unknown whether the command took effect, unless it was never sent
    ├── AddressInUse       another process has a port that the server wants
    ├── JobEnded           `wait` ended without a result
    │   ├── JobFailed  JobCancelled  ResultLost
    ├── WaitTimeout        `wait` ran out of time; the job goes on
    ├── IllegalTransition  a bug: an act that the table of states does not have
    ├── WrongProcess       a server or worker was used in a fork of its process
    ├── SettingsInvalid    a setting cannot be used; nothing was started
    ├── ModuleClash        two packages claim one WorkModule name
    └── StoreError         the store cannot be used
        ├── StoreFailed  StoreCorrupt  StoreLocked  StoreMissing  StoreTooNew  StoreUnfit
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


class GivaliaError(Exception):
    """The root of all Givalia errors; catching it at an edge is always enough.

    `details` holds the named values of the error, for example the `id` of a duplicate. They are readable as attributes.
    """

    code: ClassVar[str] = "GIVALIA_ERROR"
    exit_code: ClassVar[int] = 70

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = _WORD_START.sub("_", cls.__name__).upper()

    def __init__(self, message: str = "", /, **details: Any) -> None:
        super().__init__(message or type(self).code)
        self.details = details

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["details"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), str(self), self.details)


def _rebuild(cls: type[GivaliaError], message: str, details: dict[str, Any]) -> GivaliaError:
    return cls(message, **details)


class Refused(GivaliaError):
    """The server understood the command and refused it. Nothing changed."""

    exit_code = 69


class BadRequest(Refused):
    """A command, one of its values or its frame is not legal. Nothing changed. Correct the call; a resend fails again."""

    exit_code = 64


class TooLarge(Refused):
    """A frame, line, params or result exceeds its limit (see `info`). Nothing changed. Send less, or send a reference."""

    exit_code = 65


class NotFound(Refused):
    """No live or remembered job has this key or id. It never existed, or its retention time is over."""

    exit_code = 66


class DuplicateKey(Refused):
    """A live job holds this key; `id` names it. Nothing changed. Use `if_exists`, another key, or cancel that job first."""

    id: str
    exit_code = 73


class WrongState(Refused):
    """The job's state (`state`) forbids the command, for example `ext` of a running job. Nothing changed.
    If the key has no live job, `state` is that of its last remembered job.
    """

    state: str
    exit_code = 69


class Stale(Refused):
    """A worker reported on a lease that it no longer holds. Nothing changed: another attempt holds the job or has ended it."""


class Unauthorized(Refused):
    """The connection may not do this. Nothing changed."""

    exit_code = 77


class VersionMismatch(Refused):
    """Client and server share no protocol version, or the server does not know a message that this client sent. The error
    names both versions. Nothing changed. Upgrade the older program."""

    exit_code = 76


class StoreFull(Refused):
    """The store's disk is full, so the server takes no new job; it still runs and cancels jobs. Free space; no restart is
    needed."""

    exit_code = 75


class Busy(Refused):
    """The server is at one of its limits. Nothing changed. Try again after `retry_after` seconds."""

    retry_after: float
    exit_code = 75


class ShuttingDown(Busy):
    """The server is draining and takes no new job. Nothing changed. Try again when the server is back."""


class PartlyRefused(GivaliaError):
    """Some jobs of an `enq_many`, `cancel_many` or `ext_many` were refused; the others stand. `answers` has for each job its
    answer (for `enq_many`, a handle) or its error."""

    answers: list[Any]
    exit_code = 69


class ConnectionLost(GivaliaError):
    """No server answered in time. If `sent` is false, the command did not take effect; otherwise that is unknown. Sending the
    command again is safe."""

    sent: bool
    exit_code = 69


class AddressInUse(GivaliaError, OSError):
    """Another process has a port that the server needs; the message names the process if this user may see it. Nothing was
    started. Stop that process, or set another port."""

    exit_code = 69


class JobEnded(GivaliaError):
    """The job has ended without a result that `wait` could return."""

    exit_code = 1


class JobFailed(JobEnded):
    """The job is dead. `reason` says why in one word; `error` is what its last attempt raised. `requeue` revives the job."""

    reason: str
    error: str | None


class JobCancelled(JobEnded):
    """The job was cancelled before it was done. It does not start again unless it is requeued."""


class ResultLost(JobEnded):
    """The job is done, but its result is lost: it was too large or not plain data, or it cannot be read."""


class WaitTimeout(GivaliaError, TimeoutError):
    """The job did not end within the given time. It goes on; call `wait` or `stat`."""

    exit_code = 75


class IllegalTransition(GivaliaError):
    """The table of transitions does not allow this act in this state. This is a bug in Givalia; nothing was written."""


class WrongProcess(GivaliaError):
    """A `Server` or `Worker` was used in a fork of the process (`pid`) that started it. Nothing was done; it still runs in that
    process. In the fork, use a `Client` or make another server or worker."""

    pid: int


class SettingsInvalid(GivaliaError):
    """A flag, environment variable or line of the settings file cannot be used. Nothing was started."""

    exit_code = 78


class ModuleClash(GivaliaError):
    """Two installed distributions claim the same WorkModule name. Neither is served. Uninstall or rename one of them."""

    exit_code = 78


class StoreError(GivaliaError):
    """The store cannot be used."""

    exit_code = 74


class StoreFailed(StoreError):
    """A write or sync failed, so what is on disk is unknown. The server stopped at once. Check the disk, then restart."""


class StoreCorrupt(StoreError):
    """The store holds bytes that Givalia did not write. Nothing was changed. Keep a copy. Restore a backup, or let `givalia
    store salvage` copy what is sound into a new store."""

    exit_code = 65


class StoreLocked(StoreError):
    """Another server (`pid`) has this store open. Nothing was changed. Stop that server, or name another store."""

    exit_code = 75


class StoreMissing(StoreError):
    """There is no store, and the setting `create` is false. Nothing was created. Mount the disk, or correct the URL."""

    exit_code = 78


class StoreTooNew(StoreError):
    """A newer Givalia wrote the store. Nothing was changed. Upgrade this Givalia, or export and import."""

    exit_code = 78


class StoreAway(StoreError):
    """The database does not answer. Whether unanswered changes took effect is unknown. The server goes on by itself when the
    database is back."""

    exit_code = 75


class StoreUnfit(StoreError):
    """This URL, folder or file system cannot keep the store's promise; or this user may not write to the store or does not own
    it; or the store has an earlier format and upgrades are off (the message names the command). Nothing was started or
    changed."""

    exit_code = 78


def _walk(cls: type[GivaliaError]) -> list[type[GivaliaError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in _walk(child))]


def every() -> list[type[GivaliaError]]:
    """Return every error class of Givalia, parents before children."""
    return _walk(GivaliaError)


def from_wire(code: str, message: str, details: dict[str, Any] | None = None) -> GivaliaError:
    """Return the error that a `code` on the wire names; an unknown code (from a newer server) becomes a `GivaliaError`."""
    details = {str(name): value for name, value in (details or {}).items()}
    cls = _BY_CODE.get(code)
    if cls is None:
        return GivaliaError(f"{code}: {message}", **(details or {}))
    return cls(message, **(details or {}))


_BY_CODE = {cls.code: cls for cls in every()}
