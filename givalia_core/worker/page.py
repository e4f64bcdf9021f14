"""A page of memory that a worker's process shares with its supervisor, and the file for its last words.

The supervisor must not depend on answers: a process that spins, or holds the interpreter's lock in C code, answers nothing. The
page still shows what the process wrote before, even after its death.
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

from givalia_core.frozen import BUILTINS, OwnClock
from givalia_core.settings import state_folder

__builtins__ = BUILTINS

PAGE_BYTES: Final = 4096
DUMP_BYTES_MAX: Final = 64 << 10
# Signals that harm no process without a handler for them. A signal ends a wait in C code early, so `ASIDE_SIGNAL`, for a
# process that waits, goes to a thread that does nothing else.
DUMP_SIGNAL: Final = signal.SIGURG
ASIDE_SIGNAL: Final = signal.SIGWINCH
_UNBLOCK: Final = signal.SIG_UNBLOCK
_read: Final = monkey.get_original("os", "read")
PULSE, CURRENT, _CANCELLED, _WHY = range(4)
_RECENT: Final = (
    range(8, 256),
    range(256, 504),
)  # For the code that ran since the last pulse, and since the pulse before.
_SEAL_FUTURE_WRITE: Final = 0x10  # Linux 5.1 and later; the module has no name for it.
NOTHING: Final = memoryview(bytes(8 * len(_RECENT[0]))).cast("q")
WHYS: Final = ("", "timeout", "cancelled", "lease", "shutdown")


class SharedPage:
    """The shared page: each field is an integer that only one of the two processes writes, so no lock is needed.

    The process writes `PULSE`, `CURRENT` and the code that it ran; the supervisor writes the others.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Map the page of `fd`; None: a page of this process alone."""
        # Without a file the page is private, and forks do not share it.
        self._map: Any = mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE) if fd is None else mmap.mmap(fd, PAGE_BYTES)
        self.fields = memoryview(self._map).cast("q")
        self.parts = cycle([(slice(part.start, part.stop), cycle(part).__next__) for part in _RECENT])
        """The two parts for the code that ran, in turns: each pulse empties one, which then takes the notes."""
        _, self.turn = next(self.parts)

    def close(self) -> None:
        """Unmap the page."""
        self.fields.release()
        self._map.close()

    def silence_s(self) -> float:
        """Return the seconds since the last turn of the process's loop; 0 before the first one."""
        pulse_ns = self.fields[PULSE]
        return (OwnClock.monotonic_ns() - pulse_ns) / 1e9 if pulse_ns else 0.0

    @property
    def current(self) -> int:
        """The fence of the attempt whose code runs; 0: none."""
        return self.fields[CURRENT]

    @current.setter
    def current(self, fence: int) -> None:
        self.fields[CURRENT] = self.fields[self.turn()] = fence

    def recent(self) -> frozenset[int]:
        """Return the fences of the attempts whose code ran since the pulse before the last one."""
        return frozenset(fence for fence in self.fields[_RECENT[0].start : _RECENT[1].stop] if fence > 0)

    @property
    def cancelled(self) -> int:
        """The fence of the cancelled attempt; for processes that run one job at a time."""
        return self.fields[_CANCELLED]

    @cancelled.setter
    def cancelled(self, fence: int) -> None:
        self.fields[_CANCELLED] = fence

    @property
    def why(self) -> str:
        """The reason for a SIGTERM to the job of this process; empty: the supervisor did not send it."""
        return WHYS[self.fields[_WHY]]

    @why.setter
    def why(self, why: str) -> None:
        self.fields[_WHY] = WHYS.index(why)


class LastWords:
    """The file for the stack of a process: written on request, and when the process dies of a fault."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def listen(self) -> None:
        """In the process: let the interpreter write the stack to the file, even while C code holds the interpreter's lock."""
        # `enable` does nothing while the handler is on, but a job may have replaced the handler: so `disable` first.
        disable()
        enable(self._fd, all_threads=False)
        for number in (DUMP_SIGNAL, ASIDE_SIGNAL):
            unregister(number)
            register(number, self._fd, all_threads=True, chain=False)

    def listen_aside(self) -> None:
        """In a process of many jobs: let a thread take `ASIDE_SIGNAL`; call it once, before job code is imported."""
        pthread_sigmask(signal.SIG_BLOCK, {ASIDE_SIGNAL})
        self._never, self._open = os.pipe()  # Nobody writes to this pipe.
        monkey.get_original("_thread", "start_new_thread")(self._wait_aside, ())

    def _wait_aside(self) -> None:
        pthread_sigmask(_UNBLOCK, {ASIDE_SIGNAL})
        _read(self._never, 1)

    def take(self) -> str:
        """In the supervisor: return the text written since the last call."""
        data = os.pread(self._fd, DUMP_BYTES_MAX, 0)
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)  # Both processes share the position in the file.
        return data.decode("utf-8", "replace").strip()


def page_of(fd: int) -> SharedPage:
    """Return the page of `fd` in the process that the supervisor shares it with, and close `fd`.

    A job can write to each open file of its process, and a mapping keeps its file open. So a seal, where the system has it,
    forbids all writes from now on except through the mappings that exist.
    """
    page = SharedPage(fd)
    with suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_FUTURE_WRITE)
    os.close(fd)
    return page


def page_file() -> int:
    """Return a file for a page, its size sealed where possible: a process dies when it reads a mapping that has shrunk."""
    fd = nameless_file(PAGE_BYTES)
    with suppress(OSError, AttributeError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def nameless_file(size: int = 0) -> int:
    """Return the descriptor of a file without a path, which the system deletes after its last user."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("givalia", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        folder = state_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
    os.ftruncate(fd, size)
    return fd
