"""Objects in a fork of their process: each is told, and leaves sockets, files and work in flight to the parent.

A fork copies every object and shares every open file description, but only the thread that forked goes on. A lock may be held
by a thread that does not exist there, `shutdown` of a socket also closes it for the parent, and a resumed greenlet does the
parent's work a second time.
"""

from __future__ import annotations

import logging
import os
import socket
import weakref
from typing import Final, NoReturn, Protocol

from givalia_core.errors import WrongProcess

log = logging.getLogger("givalia")


class Forkable(Protocol):
    """State that belongs to one process."""

    def after_fork(self) -> None:
        """Give up what belongs to the parent. Called in the child before any other code there; must not wait."""


_all: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
_silent: list[socket.socket] = []  # Both ends of a connection that carries no bytes.


def register(what: Forkable) -> None:
    """Call `after_fork` in each fork from now on, as long as this object lives."""
    _all.add(what)


def unregister(what: Forkable) -> None:
    """Undo `register`: the object no longer holds anything of this process."""
    _all.discard(what)


def _in_child() -> None:
    for each in list(_all):
        try:
            each.after_fork()
        except Exception:  # The remaining objects must still be told.
            log.exception("%s is not safe to use in this fork", type(each).__name__)


os.register_at_fork(after_in_child=_in_child)


def detach(*fds: int) -> None:
    """In a fork: replace these file descriptors with a connection that carries no bytes.

    The parent's sockets are then out of reach, whatever this process sends, shuts down or closes. The numbers stay taken:
    otherwise a greenlet that waits for one of them would be woken by the next file that the child opens.
    """
    fds = tuple(fd for fd in fds if fd >= 0)
    try:
        if not _silent:
            _silent.extend(socket.socketpair())
            for each in _silent:
                each.setblocking(False)  # The child's loop shares the parent's epoll, so it may read here for a parent's event.
        for fd in fds:
            os.dup2(_silent[0].fileno(), fd, inheritable=False)
    except OSError:  # The child has no file descriptors left.
        for fd in fds:
            os.close(fd)


class Home:
    """The process in which an object was started; `is_left` is true in forks."""

    def __init__(self, what: str) -> None:
        """Begin in this process; messages call the object `what`."""
        self._what = what
        self._pid = os.getpid()
        self.is_left = False
        self._has_said = False

    def leave(self) -> None:
        """Note that this process is a fork."""
        self.is_left = True

    def check(self) -> None:
        """Refuse to go on in a fork.

        Raises:
            WrongProcess: This process is a fork. Nothing was done.
        """
        if self.is_left:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise `WrongProcess`."""
        raise WrongProcess(self._words(), pid=self._pid)

    def warn(self) -> None:
        """Log once that a call in a fork does nothing."""
        if not self._has_said:
            self._has_said = True
            log.warning("%s; the call does nothing", self._words())

    def _words(self) -> str:
        return f"the {self._what} runs in process {self._pid}, and this is a fork of it (process {os.getpid()})"
