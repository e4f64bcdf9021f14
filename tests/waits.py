"""Waiting in tests: for a condition, with a deadline. A test that must let real time pass says why, beside its sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent

T = TypeVar("T")


def await_true(
    probe: Callable[[], T], what: str, seconds: float = 20.0, every: float = 0.02, pause: Callable[[float], Any] = time.sleep
) -> T:
    """Poll until `probe` returns a true value; return that value.

    Raises:
        AssertionError: `seconds` are over; the message says `what` was awaited.
    """
    deadline_s = time.monotonic() + seconds
    while not (value := probe()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        pause(every)
    return value


def yield_until(probe: Callable[[], T], what: str, seconds: float = 10.0, every: float = 0.001) -> T:
    """Poll like `await_true`, and let other greenlets of this thread run meanwhile."""
    return await_true(probe, what, seconds, every, gevent.sleep)
