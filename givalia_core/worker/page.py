"""A page of memory that a worker's process shares with its supervisor, and the file that its last words go to.

Whoever watches must not depend on the watched one's goodwill: a process that spins, or that sits in C code with the
interpreter's lock in its hand, answers nobody, but what it wrote here before is there to be read, also after its death.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from gevent import monkey

from givalia_core.frozen import BUILTINS
from givalia_core.settings import state_folder

__builtins__ = BUILTINS

PAGE_BYTES: Final = 4096
DUMP_BYTES_MAX: Final = 64 << 10
# Of all signals those that harm no process whose handler for them is gone. A signal ends a wait in C code early, so the one for
# a process that waits is taken by a thread of its own, which does nothing else.
DUMP_SIGNAL: Final = signal.SIGURG
ASIDE_SIGNAL: Final = signal.SIGWINCH
_read: Final = monkey.get_original("os", "read")
_pthread_sigmask: Final = signal.pthread_sigmask
_PULSE, _CURRENT, _CANCELLED, _WHY, _LAST = range(5)
WHYS: Final = ("", "timeout", "cancelled", "lease", "shutdown")


class Page:
    """The shared page: each field is one whole number, written by one side only, so no lock is needed."""

    def __init__(self, fd: int | None = None) -> None:
        """Map the page of `fd`; None: one that is shared with nobody."""
        self._map: Any = mmap.mmap(-1 if fd is None else fd, PAGE_BYTES)
        self._fields = memoryview(self._map).cast("q")

    def close(self) -> None:
        """Let go of the page; nothing can be read from it any more."""
        self._fields.release()
        self._map.close()

    def beat(self) -> None:
        """The loop of this process still turns."""
        self._fields[_PULSE] = time.monotonic_ns()
        self._fields[_LAST] = 0

    def silence_s(self) -> float:
        """For how long the loop of the process has not turned; 0 before it first did."""
        pulse_ns = self._fields[_PULSE]
        return (time.monotonic_ns() - pulse_ns) / 1e9 if pulse_ns else 0.0

    @property
    def current(self) -> int:
        """The fence of the attempt whose code the process is in; 0: that of none."""
        return self._fields[_CURRENT]

    @current.setter
    def current(self, fence: int) -> None:
        self._fields[_CURRENT] = fence
        if fence:
            self._fields[_LAST] = fence

    def tracer(self, fence_of: Callable[[Any], int]) -> Callable[[str, tuple[Any, Any]], None]:
        """What is to be called at each switch between greenlets, which is often: it notes whose code runs from now on.

        Args:
            fence_of: The fence of the attempt that a greenlet belongs to, or 0.
        """
        fields, place, last = self._fields, _CURRENT, _LAST

        def trace(event: str, switch: tuple[Any, Any]) -> None:
            fields[place] = fence = fence_of(switch[1])
            if fence:
                fields[last] = fence

        return trace

    @property
    def last(self) -> int:
        """The fence of the attempt whose code the process was in last, or is; 0: none since the loop's last pulse."""
        return self._fields[_LAST]

    @property
    def cancelled(self) -> int:
        """The fence of the attempt that somebody asked to stop; for processes that run one job at a time."""
        return self._fields[_CANCELLED]

    @cancelled.setter
    def cancelled(self, fence: int) -> None:
        self._fields[_CANCELLED] = fence

    @property
    def why(self) -> str:
        """Why the job of this process is sent SIGTERM; empty: the supervisor did not send it."""
        return WHYS[self._fields[_WHY]]

    @why.setter
    def why(self, why: str) -> None:
        self._fields[_WHY] = WHYS.index(why)


class LastWords:
    """The file that a process writes its stack to when it is asked for it, and when it dies of a fault."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def listen(self) -> None:
        """In the process: let the interpreter write its stack there, also from C code that holds its lock."""
        # What is on already is not put in place again, though a job may have replaced the handler: so off first.
        faulthandler.disable()
        faulthandler.enable(self._fd, all_threads=False)
        for number in (DUMP_SIGNAL, ASIDE_SIGNAL):
            faulthandler.unregister(number)
            faulthandler.register(number, self._fd, all_threads=True, chain=False)

    def listen_aside(self) -> None:
        """In a process of many jobs: let a thread take `ASIDE_SIGNAL`; call it once, before job code is imported."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {ASIDE_SIGNAL})
        self._never, self._open = os.pipe()  # Nothing is written there.
        monkey.get_original("_thread", "start_new_thread")(self._wait_aside, ())

    def _wait_aside(self) -> None:
        _pthread_sigmask(signal.SIG_UNBLOCK, {ASIDE_SIGNAL})
        _read(self._never, 1)

    def take(self) -> str:
        """In the supervisor: what was written since this was last asked."""
        data = os.pread(self._fd, DUMP_BYTES_MAX, 0)
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)  # Both sides have one place in the file.
        return data.decode("utf-8", "replace").strip()


def nameless_file(size: int = 0) -> int:
    """The fd of a file that no path leads to and that ends with its last user."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("givalia", os.MFD_CLOEXEC)
    else:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
    os.ftruncate(fd, size)
    return fd
