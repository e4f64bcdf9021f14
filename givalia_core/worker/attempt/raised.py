"""The words and wishes of an exception of job code, read so that its lies, loops and errors harm no other job."""

from __future__ import annotations

from traceback import TracebackException
from typing import Any, Final

from givalia_core.frozen import BUILTINS
from givalia_core.headline import headline, own_line
from givalia_core.model import TEN_YEARS_US
from givalia_core.modules import Fail, Retry
from givalia_core.worker.attempt.wary import is_a, leaves, name_of

__builtins__ = BUILTINS

_HEAD: Final = "Traceback (most recent call last):"


def shown(raised: BaseException) -> str:
    """Return the words of an exception, with the traceback unless it is `Fail` or `Retry`; this runs job code."""
    try:
        if is_a(raised, Fail) or is_a(raised, Retry):
            words = str(raised).strip() or name_of(raised)
            own = headline(words) if words.startswith(_HEAD) else words  # The text of a traceback, which names what was raised.
            return _with_headline(words, own) + _cause(raised.__cause__)
        told = _told(raised)
        return _with_headline("".join(told.format()).strip(), next(told.format_exception_only()))
    except Exception:
        return ""


def _told(raised: BaseException) -> TracebackException:
    return TracebackException(type(raised), raised, raised.__traceback__, compact=True)


def _cause(cause: BaseException | None) -> str:
    """Return the lines for the cause of `raise Fail(words) from cause`; empty if it cannot be shown."""
    if cause is None:
        return ""
    try:
        # The words must not look like a traceback: they differ from job to job, and are counted by module.
        shown = "".join(_told(cause).format()).strip().replace(_HEAD, "calls (most recent last):")
    except Exception:
        return ""
    return "\n".join(["", "    caused by", *("    " + line for line in shown.splitlines())])


def _with_headline(shown: str, own: str) -> str:
    """Return an error that begins with its own line, whatever tracebacks its message contains."""
    own = own_line(own.splitlines() or [""])
    # The own line of a SyntaxError follows lines of code.
    if own[:1].isspace() or headline(shown) == headline(own):
        return shown
    return "\n".join([own, *("    " + line for line in shown.splitlines())])


def asked_for(raised: BaseException) -> tuple[bool, int | None]:
    """Return whether another attempt is forbidden, and the microseconds to wait before one.

    One `Fail` in a group decides; if all of the group is `Retry`, the longest wait counts.
    """
    parts = leaves(raised)
    if any(is_a(part, Fail) for part in parts):
        return True, None
    if not all(is_a(part, Retry) for part in parts):
        return False, None
    waits = [after_us for part in parts if (after_us := _after_us(part)) is not None]
    return False, max(waits, default=None)


def _after_us(retry: Any) -> int | None:
    """Return the wait that a `Retry` asks for; None if it is illegal, because a derived class may return anything."""
    try:
        after_us = retry.after_us
    except BaseException:
        return None
    return after_us if type(after_us) is int and 0 <= after_us <= TEN_YEARS_US else None
