"""Objects in a fork of their process: each learns of it there, and leaves sockets, files and work in flight to the parent.

A fork has a copy of every object and shares every open file description, but of all threads only the one that forked goes on.
A lock may be held by a thread that is not there, a socket closed with `shutdown` is closed for the parent too, and a greenlet
that is resumed does the parent's work a second time.
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
        """Leave to the parent what is the parent's; called in the child before any other code there. Must not wait."""


_all: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()
_silent: list[socket.socket] = []  # Both ends of a connection on which nobody ever speaks.


def register(what: Forkable) -> None:
    """Have `after_fork` called in each fork from now on, for as long as this object lives."""
    _all.add(what)


def unregister(what: Forkable) -> None:
    """The object has nothing left that belongs to this process."""
    _all.discard(what)


def _in_child() -> None:
    for each in list(_all):
        try:
            each.after_fork()
        except Exception:  # The others must not stay the parent's for that.
            log.exception("%s is not safe to use in this fork", type(each).__name__)


os.register_at_fork(after_in_child=_in_child)


def detach(*fds: int) -> None:
    """In a fork: replace these file descriptors by a connection on which nobody ever speaks.

    The parent's sockets are then out of reach, whatever is sent, shut down or closed here. The numbers stay taken: a greenlet
    that still waits for one of them would otherwise be woken by what the child opens next.
    """
    fds = tuple(fd for fd in fds if fd >= 0)
    try:
        if not _silent:
            _silent.extend(socket.socketpair())
            for each in _silent:
                each.setblocking(False)  # A loop shares its epoll with the parent's: it may read here for what arrives there.
        for fd in fds:
            os.dup2(_silent[0].fileno(), fd, inheritable=False)
    except OSError:  # The child has no file descriptors left.
        for fd in fds:
            os.close(fd)


class Home:
    """The process in which an object was started; `is_left` in its forks."""

    def __init__(self, what: str) -> None:
        """Begin in this process; `what` is the word for it in messages."""
        self._what = what
        self._pid = os.getpid()
        self.is_left = False
        self._has_said = False

    def leave(self) -> None:
        """Note that this is a fork."""
        self.is_left = True

    def check(self) -> None:
        """Refuse to go on in a fork.

        Raises:
            WrongProcess: This is one. Nothing was done.
        """
        if self.is_left:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise `WrongProcess`."""
        raise WrongProcess(self._words(), pid=self._pid)

    def warn(self) -> None:
        """Say once in the log that a call in a fork does nothing."""
        if not self._has_said:
            self._has_said = True
            log.warning("%s; the call does nothing", self._words())

    def _words(self) -> str:
        return f"the {self._what} runs in process {self._pid}, and this is a fork of it (process {os.getpid()})"
