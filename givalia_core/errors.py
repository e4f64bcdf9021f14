"""Every error Givalia raises, as one tree under `GivaliaError`.

Each class carries a stable `code`, the class name in capitals, that is the same on the wire, in logs and in
`docs/errors.md`, and an `exit_code` for the command line (sysexits). The docstring of a class is written to the person
on call: what happened, whether anything changed, what to do.

    GivaliaError
    ├── Refused            the server looked at a command and said no; nothing changed
    │   ├── BadRequest  TooLarge  NotFound  DuplicateKey  WrongState  Stale  Unauthorized  VersionMismatch
    │   ├── StoreFull
    │   └── Busy
    │       └── ShuttingDown
    ├── PartlyRefused      some commands of many in one call were refused, the others stand
    ├── ConnectionLost     nobody knows whether the command took effect, unless it was never sent
    ├── AddressInUse       another process has a port that the server wants
    ├── JobEnded           `wait` ended without a result
    │   ├── JobFailed  JobCancelled  ResultLost
    ├── WaitTimeout        `wait` ran out of time; the job goes on
    ├── IllegalTransition  a bug: an act that the table of states does not know
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
    """The root of every error of ours; catching it at an edge is always enough.

    `details` holds the named values of one error (for example the `id` that is in the way), readable as attributes.
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
    """The server understood and refused; nothing was changed."""

    exit_code = 69


class BadRequest(Refused):
    """A command, a value in it or its frame is not legal. Nothing changed. Correct the call; a resend fails alike."""

    exit_code = 64


class TooLarge(Refused):
    """A frame, line, params or result is over its limit (see `info`). Nothing changed. Send less, or a reference to it."""

    exit_code = 65


class NotFound(Refused):
    """No live or remembered job has that key or id. It never existed, or its time to be remembered is over."""

    exit_code = 66


class DuplicateKey(Refused):
    """A live job holds this key; `id` names it. Nothing changed. Use `if_exists`, another key, or cancel that job first."""

    id: str
    exit_code = 73


class WrongState(Refused):
    """The job is in a state (`state`) that forbids the command, for example `ext` of a running job. Nothing changed.
    Of a key without a live job it is the state of the one that ended last, while that is remembered.
    """

    state: str
    exit_code = 69


class Stale(Refused):
    """A worker reported on a lease that is no longer its own. Nothing changed: another attempt holds or ended the job."""


class Unauthorized(Refused):
    """The connection may not do this. Nothing changed."""

    exit_code = 77


class VersionMismatch(Refused):
    """The two sides share no version of the protocol, or the server does not know what this side sent; the message names both
    versions. Nothing changed. Upgrade the older side."""

    exit_code = 76


class StoreFull(Refused):
    """The store's disk is full, so no new job was taken; running and cancelling go on. Free space; it recovers alone."""

    exit_code = 75


class Busy(Refused):
    """The server takes no more for now. Nothing changed. Try again after `retry_after` seconds."""

    retry_after: float
    exit_code = 75


class ShuttingDown(Busy):
    """The server is draining and takes no new job. Nothing changed. Try again when it is back."""


class PartlyRefused(GivaliaError):
    """Some jobs of an `enq_many`, `cancel_many` or `ext_many` were refused, the others stand. `answers` has what each was
    answered (of an `enq_many` a handle), or an error."""

    answers: list[Any]
    exit_code = 69


class ConnectionLost(GivaliaError):
    """The server could not be reached in time. Whether the command took effect is unknown, unless `sent` is false: then it was
    not done. Sending it again is safe."""

    sent: bool
    exit_code = 69


class AddressInUse(GivaliaError, OSError):
    """The server could not have one of its ports: another process has it, which the message names if this user may
    know. Nothing was started. Stop that process, or set another port."""

    exit_code = 69


class JobEnded(GivaliaError):
    """`wait` ended, and there is no result to return."""

    exit_code = 1


class JobFailed(JobEnded):
    """The job is dead: `reason` says why in a word, `error` what its last attempt raised. `requeue` revives it."""

    reason: str
    error: str | None


class JobCancelled(JobEnded):
    """The job was cancelled before it was done. It will not start again, unless it is requeued."""


class ResultLost(JobEnded):
    """The job is done, but its result was too large or not plain data, so it was not kept, or it cannot be read."""


class WaitTimeout(GivaliaError, TimeoutError):
    """The job did not end in the time you gave. It goes on; `wait` again or `stat` it."""

    exit_code = 75


class IllegalTransition(GivaliaError):
    """An act met a state that the table of transitions does not allow. This is a bug in Givalia; nothing was written."""


class WrongProcess(GivaliaError):
    """A `Server` or `Worker` was used in a fork of the process (`pid`) that started it. Nothing was done, and it
    goes on in that process. In the fork use a `Client`, or make another server or worker."""

    pid: int


class SettingsInvalid(GivaliaError):
    """A flag, environment variable or line of the settings file cannot be used. Nothing was started."""

    exit_code = 78


class ModuleClash(GivaliaError):
    """Two installed distributions claim one WorkModule name. Neither is served; uninstall or rename one of them."""

    exit_code = 78


class StoreError(GivaliaError):
    """The store cannot be used."""

    exit_code = 74


class StoreFailed(StoreError):
    """A write or sync failed: what is on disk is unknown, and the server stopped at once. Check the disk, then restart."""


class StoreCorrupt(StoreError):
    """The store holds bytes that Givalia did not write. Nothing was changed. Keep a copy; restore from a backup, or let
    `givalia store salvage` write what is sound into a new store."""

    exit_code = 65


class StoreLocked(StoreError):
    """Another server (`pid`) has this store open. Nothing was changed. Stop that one, or name another store."""

    exit_code = 75


class StoreMissing(StoreError):
    """There is no store, and the setting `create` is false. Nothing was made. Mount the disk, or correct the URL."""

    exit_code = 78


class StoreTooNew(StoreError):
    """The store was written by a newer Givalia. Nothing was changed. Upgrade this one, or export and import."""

    exit_code = 78


class StoreAway(StoreError):
    """The database does not answer for now. What was not answered is unknown; a server goes on by itself when it is back."""

    exit_code = 75


class StoreUnfit(StoreError):
    """This URL, folder or file system cannot keep the promise of the store, this user may not write to it or is not its owner,
    or it has an earlier format and may not be upgraded (the message names the command). Nothing was started or changed."""

    exit_code = 78


def _walk(cls: type[GivaliaError]) -> list[type[GivaliaError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in _walk(child))]


def every() -> list[type[GivaliaError]]:
    """Every error class of Givalia, parents before children."""
    return _walk(GivaliaError)


def from_wire(code: str, message: str, details: dict[str, Any] | None = None) -> GivaliaError:
    """The error that a `code` on the wire names; an unknown code (a newer server's) becomes a plain `GivaliaError`."""
    details = {str(name): value for name, value in (details or {}).items()}
    cls = _BY_CODE.get(code)
    if cls is None:
        return GivaliaError(f"{code}: {message}", **(details or {}))
    return cls(message, **(details or {}))


_BY_CODE = {cls.code: cls for cls in every()}
