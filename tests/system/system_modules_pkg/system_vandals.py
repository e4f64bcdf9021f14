"""Jobs that break what all code of their process uses, and jobs that do not notice: these keep what they use by name."""

from __future__ import annotations

import builtins
import importlib
import os
from os import F_OK, _exit, access
from typing import Any

from gevent import sleep
from system_modules import write_line

from givalia_core import WorkModule

FDS = range(3, 200)
JUNK = b"junk"


def loud(*_: Any, **__: Any) -> Any:
    """Stand for a function that was there before."""
    raise RuntimeError("this is broken")


def break_module(name: str) -> None:
    """Replace all functions and classes of a module."""
    module = importlib.import_module(name)
    for each, value in list(vars(module).items()):
        if callable(value) and not each.startswith("__"):
            setattr(module, each, loud)


def break_builtins() -> None:
    """Replace what any code calls sooner or later."""
    for name in ("isinstance", "issubclass", "len", "str", "type", "getattr", "any", "max", "list", "dict", "print", "iter"):
        setattr(builtins, name, loud)


def break_clock() -> None:
    """Stop the clock, in each module that has it, as libraries that fake the time do."""
    import sys
    import time

    names = ("time", "monotonic", "monotonic_ns", "perf_counter")
    faked = {id(getattr(time, name)) for name in names}
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if id(value) in faked:
                setattr(module, name, lambda: 0)


def break_sockets() -> None:
    """Replace the methods of gevent's sockets."""
    from gevent import socket

    for name in ("send", "sendall", "recv", "recv_into", "close", "accept", "connect"):
        setattr(socket.socket, name, loud)


def break_recursion() -> None:
    """Leave no room to call anything."""
    import sys

    sys.setrecursionlimit(40)


def each_fd(do: Any) -> None:
    """Do something with each descriptor."""
    for fd in FDS:
        try:
            do(fd)
        except OSError:
            continue


def fill_with(data: bytes) -> Any:
    """Write to a descriptor, without waiting."""

    def write(fd: int) -> None:
        os.set_blocking(fd, False)
        os.write(fd, data)

    return write


def drain(fd: int) -> None:
    """Read what there is, without waiting."""
    os.set_blocking(fd, False)
    os.read(fd, 1 << 16)


def nowhere(fd: int) -> None:
    """Let a descriptor that is open lead to nowhere."""
    os.fstat(fd)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


BREAK = {
    "builtins": break_builtins,
    "clock": break_clock,
    "gevent sockets": break_sockets,
    "recursion": break_recursion,
    **{name: lambda name=name: break_module(name) for name in ("gevent", "gevent.socket", "msgpack", "logging", "time", "os")},
    "close all": lambda: each_fd(os.close),
    "write to all": lambda: each_fd(fill_with(JUNK * 8)),
    "write little to all": lambda: each_fd(fill_with(b"j")),
    "read from all": lambda: each_fd(drain),
    "truncate all": lambda: each_fd(lambda fd: os.ftruncate(fd, 0)),
    "nowhere": lambda: each_fd(nowhere),
}


class Vandal(WorkModule):
    """Breaks what it is told to, for good, and goes on as it is told to."""

    def process(self) -> str:
        BREAK[self.params["what"]]()
        if self.params["then"] == "stay":
            sleep(60)
        return "done"


class VandalApart(Vandal):
    isolation = "process"


class Patient(WorkModule):
    """Waits until a file is there; the attempt."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.attempt)
        while not access(self.params["gate"], F_OK):
            sleep(0.05)
        return self.job.attempt


class Sleeper(WorkModule):
    """Sleeps."""

    def process(self) -> None:
        sleep(60)


class Leave(WorkModule):
    """Ends its process."""

    def process(self) -> None:
        _exit(0)


class Quick(WorkModule):
    """Does nothing; the attempt."""

    def process(self) -> int:
        return self.job.attempt


class QuickApart(Quick):
    isolation = "process"
