"""An alarm that rings when it was asked to: the loop's own timers are as coarse as its poll, which counts milliseconds.

Linux has timers that are read like a socket, to the microsecond; elsewhere the loop's timer has to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from typing import Any, Final

import gevent
from gevent.event import Event

from givalia_core.clock import SECOND_US

_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC


class _Span(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Setting(ctypes.Structure):
    _fields_ = [("interval", _Span), ("first", _Span)]


class Alarm:
    """Lets one greenlet wait for an event or for a time, whichever comes first."""

    def __init__(self, event: Event) -> None:
        """Wait for this event; nothing is opened before `open`."""
        self._event = event
        self._fd = -1
        self._watcher: Any = None
        self._rings_ns = 0  # When it will ring, on the clock it is set by; 0 if it has.

    def open(self) -> None:
        """Make ready, in the thread whose loop it is for."""
        if not sys.platform.startswith("linux"):
            return
        self._system = ctypes.CDLL(None, use_errno=True)
        self._fd = self._system.timerfd_create(_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            self._setting = _Setting()
            self._watcher = gevent.get_hub().loop.io(self._fd, 1)
            self._watcher.start(self._ring)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # It was set anew after it rang.
            os.read(self._fd, 8)
            self._rings_ns = 0
        self._event.set()

    def wait(self, us: int) -> None:
        """Return when the event is set, or when so many microseconds have passed; or sooner.

        It stays set for an earlier wait that an event has ended: under a load that is cheaper than to set it for each.
        """
        if self._fd < 0:
            self._event.wait(us / SECOND_US)
            return
        now_ns = time.monotonic_ns()
        rings_ns = now_ns + max(us, 1) * 1_000
        if not now_ns < self._rings_ns <= rings_ns:
            first = self._setting.first
            first.seconds, first.nanoseconds = divmod(rings_ns - now_ns, SECOND_US * 1_000)
            if self._system.timerfd_settime(self._fd, 0, ctypes.byref(self._setting), None) != 0:
                self._event.wait(us / SECOND_US)
                return
            self._rings_ns = rings_ns
        self._event.wait()

    def close(self) -> None:
        """Let go; safe to call twice."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
