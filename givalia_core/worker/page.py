"""A page of memory that a worker's process shares with its supervisor, and the file that its last words go to.

Whoever watches must not depend on the watched one's goodwill: a process that spins, or that sits in C code with the
interpreter's lock in its hand, answers nobody, but what it wrote here before is there to be read, also after its death.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import tempfile
from contextlib import suppress
from faulthandler import disable, enable, register, unregister
from itertools import cycle
from pathlib import Path
from signal import pthread_sigmask
from typing import Any, Final

from gevent import monkey

from givalia_core.frozen import BUILTINS, Clock
from givalia_core.settings import state_folder

__builtins__ = BUILTINS

PAGE_BYTES: Final = 4096
DUMP_BYTES_MAX: Final = 64 << 10
# Of all signals those that harm no process whose handler for them is gone. A signal ends a wait in C code early, so the one for
# a process that waits is taken by a thread of its own, which does nothing else.
DUMP_SIGNAL: Final = signal.SIGURG
ASIDE_SIGNAL: Final = signal.SIGWINCH
_UNBLOCK: Final = signal.SIG_UNBLOCK
_read: Final = monkey.get_original("os", "read")
PULSE, CURRENT, _CANCELLED, _WHY = range(4)
_RECENT: Final = (range(8, 256), range(256, 504))  # Fields for what has run since the last pulse, and since the one before.
_SEAL_FUTURE_WRITE: Final = 0x10  # Of Linux 5.1 and later; the module has no name for it.
NOTHING: Final = memoryview(bytes(8 * len(_RECENT[0]))).cast("q")
WHYS: Final = ("", "timeout", "cancelled", "lease", "shutdown")


class SharedPage:
    """The shared page: each field is one whole number, written by one side only, so no lock is needed.

    The process writes `PULSE` and `CURRENT` and what it has run; the supervisor writes the others.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Map the page of `fd`; None: one that is shared with nobody."""
        # Without a file it is this process's alone, also when that forks.
        self._map: Any = mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE) if fd is None else mmap.mmap(fd, PAGE_BYTES)
        self.fields = memoryview(self._map).cast("q")
        self.parts = cycle([(slice(part.start, part.stop), cycle(part).__next__) for part in _RECENT])
        """Its two parts for what has run, in turns: each pulse empties one, and what runs from then on is noted there."""
        _, self.turn = next(self.parts)

    def close(self) -> None:
        """Let go of the page; nothing can be read from it any more."""
        self.fields.release()
        self._map.close()

    def silence_s(self) -> float:
        """For how long the loop of the process has not turned; 0 before it first did."""
        pulse_ns = self.fields[PULSE]
        return (Clock.monotonic_ns() - pulse_ns) / 1e9 if pulse_ns else 0.0

    @property
    def current(self) -> int:
        """The fence of the attempt whose code the process is in; 0: that of none."""
        return self.fields[CURRENT]

    @current.setter
    def current(self, fence: int) -> None:
        self.fields[CURRENT] = self.fields[self.turn()] = fence

    def recent(self) -> frozenset[int]:
        """The fences of the attempts whose code the process was in since the last pulse, or between that and the one before."""
        return frozenset(fence for fence in self.fields[_RECENT[0].start : _RECENT[1].stop] if fence > 0)

    @property
    def cancelled(self) -> int:
        """The fence of the attempt that somebody asked to stop; for processes that run one job at a time."""
        return self.fields[_CANCELLED]

    @cancelled.setter
    def cancelled(self, fence: int) -> None:
        self.fields[_CANCELLED] = fence

    @property
    def why(self) -> str:
        """Why the job of this process is sent SIGTERM; empty: the supervisor did not send it."""
        return WHYS[self.fields[_WHY]]

    @why.setter
    def why(self, why: str) -> None:
        self.fields[_WHY] = WHYS.index(why)


class LastWords:
    """The file that a process writes its stack to when it is asked for it, and when it dies of a fault."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def listen(self) -> None:
        """In the process: let the interpreter write its stack there, also from C code that holds its lock."""
        # What is on already is not put in place again, though a job may have replaced the handler: so off first.
        disable()
        enable(self._fd, all_threads=False)
        for number in (DUMP_SIGNAL, ASIDE_SIGNAL):
            unregister(number)
            register(number, self._fd, all_threads=True, chain=False)

    def listen_aside(self) -> None:
        """In a process of many jobs: let a thread take `ASIDE_SIGNAL`; call it once, before job code is imported."""
        pthread_sigmask(signal.SIG_BLOCK, {ASIDE_SIGNAL})
        self._never, self._open = os.pipe()  # Nothing is written there.
        monkey.get_original("_thread", "start_new_thread")(self._wait_aside, ())

    def _wait_aside(self) -> None:
        pthread_sigmask(_UNBLOCK, {ASIDE_SIGNAL})
        _read(self._never, 1)

    def take(self) -> str:
        """In the supervisor: what was written since this was last asked."""
        data = os.pread(self._fd, DUMP_BYTES_MAX, 0)
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)  # Both sides have one place in the file.
        return data.decode("utf-8", "replace").strip()


def page_of(fd: int) -> SharedPage:
    """Return the page of `fd` in the process that the supervisor shares it with, and close `fd`.

    A job may write to each file that is open in its process, and a mapping keeps its file open: so nothing may be written to
    that from now on but by way of the mappings that are there, where the system has such a seal.
    """
    page = SharedPage(fd)
    with suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
    os.close(fd)
    return page


def page_file() -> int:
    """The fd of a file for a page; where the system has such a seal, it keeps its size: who maps one that has shrunk dies."""
    fd = nameless_file(PAGE_BYTES)
    with suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def nameless_file(size: int = 0) -> int:
    """The fd of a file that no path leads to and that ends with its last user."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("givalia", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
    os.ftruncate(fd, size)
    return fd
