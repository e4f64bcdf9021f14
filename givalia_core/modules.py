"""WorkModules: the base class of job code, and the discovery of installed modules.

A module is found through the entry point group `givalia.modules` of any installed distribution; its name there is the name
that jobs use. A job never causes an import: the table of modules is built once, when a worker starts, and a job can only pick
from it. A broken or doubly claimed module is reported and does not affect the others.
"""

from __future__ import annotations

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, ClassVar, Final, NamedTuple

import importlib_metadata

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, ModuleClash
from givalia_core.frozen import BUILTINS
from givalia_core.headline import shortened
from givalia_core.installed import UNKNOWN, owner
from givalia_core.protocol.messages import ISOLATIONS, Announce
from givalia_core.times import Length, any_length_to_us, length_to_us
from givalia_core.views import RunningJobView

__builtins__ = BUILTINS

GROUP: Final = "givalia.modules"
BROKEN_BYTES_MAX: Final = 1_000  # The longest text of an error that keeps a module from being served.
NOT_RUN_ADVICE: Final = "let process be a plain function, and run async code in it by asyncio.run"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", re.ASCII).fullmatch


class Retry(Exception):  # noqa: N818 - Job code reads `raise Retry(...)`.
    """Raised by job code: this attempt failed; try again after `after` (seconds or a `timedelta`; None: the backoff)."""

    def __init__(self, message: str = "the job asked for another attempt", *, after: Length | None = None) -> None:
        super().__init__(message)
        self.after_us = None if after is None else length_to_us(after, "after")


class Fail(Exception):  # noqa: N818 - Job code reads `raise Fail(...)`.
    """Raised by job code: this job cannot succeed, so it is not tried again. It ends dead, with the message as its error."""


class Stopped(BaseException):
    """Raised inside job code that must end at once: clean up in `finally`, and do not catch it.

    `why` is `timeout` (the attempt exceeded its timeout), `cancelled` (the job was cancelled and did not return), `lease` (the
    lease is over, so another attempt may begin elsewhere), or `shutdown` (the worker stops, and its grace is over).
    """

    def __init__(self, why: str, words: str) -> None:
        super().__init__(words)
        self.why = why


class Run(NamedTuple):
    """One attempt, as its module sees it."""

    job: RunningJobView
    log: logging.LoggerAdapter[logging.Logger]
    tell: Callable[[float, str], None]
    is_cancelled: Callable[[], bool] = bool  # `bool()` is False.

    @property
    def params(self) -> Any:
        """The params that the job was enqueued with; the same as `job.params`."""
        return self.job.params


class _Late:
    """An attribute that an instance takes from its `Run` at the first read; an instance may also set it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return instance.__dict__.setdefault(self._name, getattr(instance._run, self._name))  # noqa: SLF001 - A WorkModule's.


class WorkModule:
    """Code that does one kind of job. Derive, write `process`, and name the class in the group `givalia.modules`.

    Each attempt gets a fresh instance. The value that `process` returns (any msgpack value) is the job's result. If it raises,
    the attempt has failed; `Retry` and `Fail` say what follows.
    """

    max_attempts: ClassVar[int | None] = None
    """Attempts of a job, 1 to 100, unless its enq says otherwise; None: the server's setting (5)."""
    backoff: ClassVar[Length | tuple[Length, Length] | None] = None
    """Wait before the second attempt, in seconds or as a `timedelta`, doubled each time; a pair adds the longest wait.

    None: the server's (1, 600).
    """
    timeout: ClassVar[Length | None] = None
    """Seconds (or a `timedelta`) that an attempt may take, 1 s to 24 h, unless its enq says otherwise; None: no limit."""
    isolation: ClassVar[str] = "greenlet"
    """The isolation in which the job runs.

    `greenlet`: beside hundreds of others in one process; for code that mostly waits. `process`: alone in a process, which then
    runs the next job; for code that computes, or that may not end.
    """

    job: RunningJobView = _Late()  # type: ignore[assignment]
    """This attempt: `id`, `key`, `attempt`, `due`, `fence`, `idempotency_key` and more."""
    log: logging.LoggerAdapter[logging.Logger] = _Late()  # type: ignore[assignment]
    """A logger whose lines carry the job's id, key and attempt."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.params = run.params
        """The params that the job was enqueued with."""

    def process(self) -> Any:
        """Do the job."""
        raise NotImplementedError(f"{type(self).__name__} has no process method")

    def progress(self, fraction: float, text: str = "") -> None:
        """Report progress, from 0.0 to 1.0, and in a few words the present step. A hint for `stat`, not durable."""
        self._run.tell(min(max(0.0, float(fraction)), 1.0), str(text)[:255].encode("utf-8", "replace").decode())

    @property
    def cancelled(self) -> bool:
        """True if the running job was cancelled; long jobs poll this and then return or raise."""
        return self._run.is_cancelled()


@dataclass(frozen=True, slots=True)
class FoundModule:
    """One name in the group `givalia.modules`: the class that serves it, or in `broken` the reason why none does.

    `source` is the place from which another process can import the class: `package.module:Class`.
    """

    name: str
    distribution: str
    version: str
    work: type[WorkModule] | None
    broken: str | None
    source: str = ""
    isolation: str = "greenlet"
    max_attempts: int | None = None
    timeout_us: int | None = None
    backoff_us: int | None = None
    backoff_max_us: int | None = None


def discover(importing: Callable[[str], None] | None = None, deadly: Mapping[str, str] | None = None) -> dict[str, FoundModule]:
    """Find and import every installed WorkModule, by name.

    Args:
        importing: Called with the name of each module before its import, which may never return.
        deadly: Modules whose import ended a process, with the way it ended; they are not imported again.
    """
    claims: dict[str, list[Any]] = {}
    for entry in importlib_metadata.entry_points(group=GROUP):
        claims.setdefault(entry.name, []).append(entry)
    deadly = deadly or {}
    return {name: _settle(name, entries, importing or _ignore, deadly.get(name)) for name, entries in sorted(claims.items())}


def _ignore(_: str) -> None:
    """Ignore the name."""


def _settle(name: str, entries: list[Any], importing: Callable[[str], None], death: str | None) -> FoundModule:
    """Load the single entry of a name; two entries are a clash, and then neither is served."""
    owners = sorted({owner(entry) for entry in entries})
    distribution, version = (", ".join(part) for part in zip(*owners, strict=True))
    if len(entries) > 1:
        claimed = " and ".join(f"{claimant} {owned}" for claimant, owned in owners)
        clash = ModuleClash(f"{name} is claimed by {claimed}; neither is served")
        return FoundModule(name, distribution, version, None, f"{clash.code}: {clash}")
    if version == UNKNOWN:
        return FoundModule(name, distribution, version, None, "the metadata of its distribution is not there, or not yet")
    if death is not None:
        return FoundModule(name, distribution, version, None, death)
    try:
        if _NAME(name) is None:
            raise BadRequest(f"{name!r} cannot be the name of a module")
        importing(name)
        return describe(name, distribution, version, entries[0].load())
    except BaseException as error:  # Importing job code may raise anything, SystemExit included.
        return FoundModule(name, distribution, version, None, _words(error))


def _words(error: BaseException) -> str:
    return shortened("".join(traceback.format_exception(error)).strip(), BROKEN_BYTES_MAX) or type(error).__name__


def describe(name: str, distribution: str, version: str, work: Any) -> FoundModule:
    """Check the attributes of the class, so that mistakes show when the worker starts and not when a job runs."""
    if not (isinstance(work, type) and issubclass(work, WorkModule)):
        raise BadRequest(f"{name} is {work!r}, not a class derived from WorkModule")
    if work.isolation not in ISOLATIONS:
        raise BadRequest(f"{name}: isolation must be one of {', '.join(ISOLATIONS)}, not {work.isolation!r}")
    if work.process is WorkModule.process:
        raise BadRequest(f"{name} has no process, which is what runs")
    if (kind := _not_run_function(work)) is not None:
        raise BadRequest(f"{name}: process is {kind}, whose code nobody runs; {NOT_RUN_ADVICE}")
    attempts = work.max_attempts
    if attempts is not None and (type(attempts) is not int or not 1 <= attempts <= 100):
        raise BadRequest(f"{name}: max_attempts must be 1 to 100, not {attempts!r}")
    backoff_us, backoff_max_us = _backoff(name, work.backoff)
    timeout_us = None if work.timeout is None else any_length_to_us(work.timeout, f"{name}: timeout")
    if timeout_us is not None and not SECOND_US <= timeout_us <= 86_400 * SECOND_US:
        raise BadRequest(f"{name}: timeout must be 1 second to 24 hours, not {work.timeout!r}")
    source = f"{work.__module__}:{work.__qualname__}"
    return FoundModule(
        name, distribution, version, work, None, source, work.isolation, attempts, timeout_us, backoff_us, backoff_max_us
    )


PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict))


def not_run(value: object) -> str | None:
    """Name the kind of a returned value whose code has not run (nobody awaits or iterates it); None for other values."""
    kind = type(value)
    if kind in PLAIN:
        return None
    if issubclass(kind, GeneratorType):
        return "a generator"
    if issubclass(kind, AsyncGeneratorType):
        return "an async generator"
    if issubclass(kind, CoroutineType):
        return "a coroutine"
    return "an awaitable" if any("__await__" in vars(base) for base in kind.__mro__) else None


def _not_run_function(work: type[WorkModule]) -> str | None:
    """Name the kind of `process` if calling it would run none of its code; else None."""
    process = work.process
    if inspect.iscoroutinefunction(process):
        return "a coroutine function"
    if inspect.isasyncgenfunction(process):
        return "an async generator function"
    return "a generator function" if inspect.isgeneratorfunction(process) else None


def announcement(found: FoundModule) -> Announce:
    """Return the message by which a worker announces a module to the server."""
    return Announce(
        found.name,
        found.distribution[:255],
        found.version[:255],
        found.isolation,
        found.max_attempts,
        found.timeout_us,
        found.backoff_us,
        found.backoff_max_us,
        found.broken,
    )


def _backoff(name: str, backoff: Any) -> tuple[int | None, int | None]:
    if backoff is None:
        return None, None
    first, longest = backoff if isinstance(backoff, tuple) else (backoff, None)
    longest_us = None if longest is None else length_to_us(longest, f"{name}: the longest backoff")
    return length_to_us(first, f"{name}: backoff"), longest_us
