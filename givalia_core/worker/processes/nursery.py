"""The nursery: a small process that makes the worker's other processes, and leaves nothing of them behind.

It runs no job, has no thread and no loop of gevent, and never grows, so a fork of it takes a millisecond and is safe. Each
process that it makes leads a group of its own; when the process ends, in whatever way, the nursery kills the group. When the
supervisor is gone, by kill -9 perhaps, the nursery stops all its processes, and kills them half a second later.

The supervisor sends commands over a socket, in records of one size: make a process (with its file descriptors), or send a
signal to the group of one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from givalia_core.worker.attempt import child

RECORD: Final = struct.Struct("<Bqq")
FORK, SIGNAL, BORN, ENDED = range(4)
ROLES: Final = ("greenlets", "job")
FDS: Final = 3  # The socket to the supervisor, the shared page, the file for last words.
LAST_S: Final = 0.5
# A terminal, a service manager or a person may send these to every process of a worker. Only the supervisor acts on them.
FOR_SUPERVISOR: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(fd: int) -> None:
    """Serve the supervisor at the other end of this socket until it is gone."""
    supervisor = socket.socket(fileno=fd)
    supervisor.setblocking(True)  # gevent, at the other end, has made both ends non-blocking.
    Nursery(supervisor).serve()


class Nursery:
    """The nursery process."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor = supervisor
        self._children: set[int] = set()
        self._me = os.getpid()
        for number in FOR_SUPERVISOR:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_SUPERVISOR)  # The process was started with these blocked.
        self._rung, self._ringing = os.pipe()
        for end in (self._rung, self._ringing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._ringing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Carry out commands until the supervisor is gone."""
        poll = select.poll()
        poll.register(self._supervisor, select.POLLIN)
        poll.register(self._rung, select.POLLIN)
        is_open = True
        while is_open:
            ready = {fd for fd, _ in poll.poll()}
            if self._supervisor.fileno() in ready:
                is_open = self._obey()
            self._reap()
        self._end_all()

    def _obey(self) -> bool:
        """Carry out one command; return False if the supervisor is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._supervisor, RECORD.size, FDS)
            while data and len(data) < RECORD.size:
                data += self._supervisor.recv(RECORD.size - len(data))
        except OSError:
            return False
        if not data:
            return False
        what, a, b = RECORD.unpack(data)
        if what == FORK:
            self._fork(a, ROLES[b], fds)
        elif what == SIGNAL and a in self._children:  # The pid of a child that is not reaped cannot be reused.
            _signal_group(a, b)
        return True

    def _fork(self, ticket: int, role: str, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError:  # Too many processes, of a job perhaps: the other jobs go on.
            for fd in fds:
                os.close(fd)
            self._tell(BORN, ticket, 0)
            return
        if pid == 0:
            self._become(role, fds)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # Here and in the child, so that the group exists before either process goes on.
        for fd in fds:
            os.close(fd)
        self._children.add(pid)
        self._tell(BORN, ticket, pid)

    def _become(self, role: str, fds: list[int]) -> None:
        """In the new process: take up the role; never return."""
        code = 70
        try:
            os.setpgid(0, 0)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _prctl(_PR_SET_CHILD_SUBREAPER, role == "job")  # A job's process must know what its job leaves behind.
            if os.getppid() != self._me:
                os._exit(code)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in FOR_SUPERVISOR:
                signal.signal(number, child.take_no_notice)
            for fd in (self._supervisor.detach(), self._rung, self._ringing):
                os.close(fd)
            code = _role(role)(*fds)
            sys.stdout.flush()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 70
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._rung, 4096)
        has_ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            has_ended = True
            _signal_group(pid, signal.SIGKILL)  # Its group is what it leaves behind; the number cannot be reused yet.
            if pid in self._children:
                self._children.discard(pid)
                self._tell(ENDED, pid, status)
        if has_ended:
            self._end_strays()

    def _end_strays(self) -> None:
        """Kill processes that have left their group and lost their parent: they end with the job that started them."""
        with contextlib.suppress(OSError, ValueError):
            listed = Path(f"/proc/self/task/{self._me}/children").read_text().split()
            for pid in {int(each) for each in listed} - self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _tell(self, what: int, a: int, b: int) -> None:
        with contextlib.suppress(OSError):
            self._supervisor.sendall(RECORD.pack(what, a, b))

    def _end_all(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._children:
                _signal_group(pid, number)
            deadline = time.monotonic() + LAST_S
            while self._children and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.01)


def _ignore(_: int, __: FrameType | None) -> None:
    """Do nothing: `set_wakeup_fd` has woken the loop already."""


def _role(role: str) -> Callable[..., int]:
    if role == "job":
        return child.main
    # Not at the top: this import loads gevent, which must be neither in the forking process nor in a job's own.
    from givalia_core.worker.attempt import host

    return host.main


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _prctl(option: int, value: int) -> None:
    """Set an option of the process, on Linux; elsewhere a process must notice the end of its parent by itself."""
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

if __name__ == "__main__":
    main(int(sys.argv[1]))
