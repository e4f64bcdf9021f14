"""The state of a process that all code relies on, and that any job can change for the jobs after it."""

from __future__ import annotations

import builtins
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time

# The C functions behind those of `signal`: the latter make an enum of each answer, which takes time.
from _signal import getsignal as get_handler  # type: ignore[import-not-found]
from _signal import pthread_sigmask as get_mask
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import isclass
from itertools import chain, compress
from locale import LC_ALL, setlocale
from operator import is_
from os import O_CLOEXEC, O_RDONLY, close, fchdir, fstat, getcwd, umask
from os import open as open_file
from resource import RLIM_INFINITY, getrlimit, setrlimit
from signal import SIG_BLOCK, SIG_SETMASK, SIGCHLD, getitimer, pthread_sigmask, setitimer
from signal import signal as set_handler
from sys import getprofile, getrecursionlimit, getswitchinterval, gettrace, modules, setrecursionlimit
from threading import stack_size
from typing import Any, Final

from givalia_core.frozen import BUILTINS
from givalia_core.loggers import Logging

__builtins__ = BUILTINS

_LIMITS: Final = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)
_SIGNALS: Final = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_STREAMS: Final = (0, 1, 2)
_MODULES: Final = (builtins, logging, os, signal, socket, sys, threading, time)
_CLASSED: Final = (logging, socket, threading)  # The classes of the others are in C and cannot be changed.
# Each once: some classes have two names.
_PARTS: Final[list[tuple[str, Any]]] = [
    (module.__name__, part)
    for module in _MODULES
    for part in dict.fromkeys((module, *filter(isclass, vars(module).values() if module in _CLASSED else ())))
    if part is module or part.__module__ == module.__name__
]


class _Namespaces:
    """The objects in some namespaces; two thousand of them are compared after each job that runs apart."""

    def __init__(self, spaces: Sequence[Mapping[str, Any]]) -> None:
        self._spaces = spaces
        self._sizes = list(map(len, spaces))
        # Not strings and numbers: libraries set some of them, such as `logging.raiseExceptions`.
        self._is_wanted = [not isinstance(value, (int, str)) for space in spaces for value in space.values()]
        self._names = [[name for name, value in space.items() if not isinstance(value, (int, str))] for space in spaces]
        self._values = [[space[name] for name in names] for space, names in zip(spaces, self._names, strict=True)]
        self._all = list(chain.from_iterable(self._values))

    def changed(self) -> list[int]:
        """Return the numbers of the namespaces in which a name has another object or none; new names are no change."""
        # First compare in order, in one go: half the time of a lookup of each name, and nearly always there is no change.
        # New names come last in a namespace, so those of the last namespace disturb no other.
        *sizes, last = map(len, self._spaces)
        if sizes == self._sizes[:-1] and last >= self._sizes[-1]:
            values = chain.from_iterable(space.values() for space in self._spaces)
            if all(map(is_, compress(values, self._is_wanted), self._all)):
                return []
        found = enumerate(zip(self._spaces, self._names, self._values, strict=True))
        return [number for number, (space, names, values) in found if not all(map(is_, map(space.get, names), values))]


class Contents:
    """The contents of common modules, their classes and the interpreter at one moment; additions are no change."""

    # Libraries that are imported late add modules, finders, environment variables and warning filters: a job that needs one
    # must not lose its process each time.

    def __init__(self) -> None:
        self._parts = _Namespaces([vars(part) for _, part in _PARTS])
        self._modules = _Namespaces([modules])
        self._lists = _lists()
        self._values = _values()

    def changed(self) -> list[str]:
        """Return in words which of them have changed."""
        names = dict.fromkeys(_PARTS[number][0] for number in self._parts.changed())
        changed = [f"changes to the module {name}" for name in names]
        if self._modules.changed():
            changed.append("changes to sys.modules")
        now = _lists()
        changed += [words for words, were in self._lists.items() if not set(map(id, now[words])).issuperset(map(id, were))]
        values = _values()
        return changed + [words for words, was in self._values.items() if values[words] != was]


def _lists() -> dict[str, tuple[Any, ...]]:
    return {
        "changes to sys.path": tuple(sys.path),
        "changes to how modules are found": (*sys.meta_path, *sys.path_hooks),
    }


def _values() -> dict[str, Any]:
    return {
        "a trace function": (gettrace(), getprofile()),
        "a locale": setlocale(LC_ALL),
        "a switch interval": getswitchinterval(),
        "a stack size of threads": stack_size(),
    }


class Surroundings:
    """The state of a process at one moment: folder, umask, signals, limits, streams, logging.

    Args:
        get_handler: Returns the handler of a signal; gevent's own function where gevent handles SIGCHLD.
        set_handler: Sets the handler of a signal.
    """

    def __init__(
        self,
        get_handler: Callable[[int], Any] = get_handler,
        set_handler: Callable[[int, Any], object] = set_handler,
    ) -> None:
        self._get_handler, self._set_handler = get_handler, set_handler
        self.logs = Logging()
        self._folder = open_file(".", O_RDONLY | O_CLOEXEC)
        self._were = self._look()

    def changed(self) -> list[str]:
        """Return in words the parts that have changed."""
        now = self._look()
        changed = [] if now == self._were else [words for words, was in self._were.items() if now[words] != was]
        return changed if self.logs.are_kept() else [*changed, "loggers"]

    def take_streams(self) -> None:
        """Accept the present standard streams: no job has changed them."""
        self._were["standard streams"] = _streams()

    def close(self) -> None:
        """Close the descriptor of the folder."""
        with suppress(OSError):
            close(self._folder)

    def restore(self) -> None:
        """Restore the state as far as possible: closed files and lowered limits stay."""
        self.logs.restore()
        with suppress(OSError):
            fchdir(self._folder)
        umask(self._were["umask"])
        setrecursionlimit(self._were["recursion limit"])
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            stream = getattr(sys, name)
            if stream is not None and not _is_open(stream):  # Only the object was closed, and not the descriptor.
                mode = "w" if fd else "r"
                with suppress(OSError, ValueError):
                    setattr(sys, name, open(fd, mode, 1, stream.encoding, stream.errors, closefd=False))  # noqa: SIM115
        for timer in _TIMERS:
            setitimer(timer, 0)
        for number, handler in zip([*_SIGNALS, SIGCHLD], self._were["signal handlers"], strict=True):
            with suppress(OSError, ValueError, TypeError):
                self._set_handler(number, handler)
        pthread_sigmask(SIG_SETMASK, self._were["blocked signals"])
        for limit, (soft, hard) in zip(_LIMITS, self._were["limits"], strict=True):
            with suppress(OSError, ValueError):
                setrlimit(limit, (soft, hard))
            with suppress(OSError, ValueError):
                setrlimit(limit, (soft, min(hard, getrlimit(limit)[1], key=_size)))

    def _look(self) -> dict[str, Any]:
        mask = umask(0o077)
        umask(mask)
        try:
            folder: str | None = getcwd()  # noqa: PTH109 - Not by way of a Path, after every job.
        except OSError:
            folder = None  # The folder was removed.
        return {
            "working folder": folder,
            "umask": mask,
            "recursion limit": getrecursionlimit(),
            "signal handlers": [*map(get_handler, _SIGNALS), self._get_handler(SIGCHLD)],
            "blocked signals": get_mask(SIG_BLOCK, ()),
            "timers": [getitimer(timer) != (0.0, 0.0) for timer in _TIMERS],
            "limits": list(map(getrlimit, _LIMITS)),
            "standard streams": _streams(),
        }


def _streams() -> list[Any]:
    return [*map(_identity, _STREAMS), *map(_is_open, (sys.stdin, sys.stdout, sys.stderr))]


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_open(stream: Any) -> bool:
    return stream is not None and not getattr(stream, "closed", False)


def _size(limit: int) -> float:
    return float("inf") if limit == RLIM_INFINITY else limit
