"""Jobs that break what all code of their process uses, and jobs that do not notice, since they keep what they use by name."""

from __future__ import annotations

import builtins
import importlib
import os
from os import F_OK, _exit, access
from typing import Any

from gevent import sleep, spawn
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


def break_log_methods() -> None:
    """Replace methods of the classes of `logging`."""
    import logging

    for name in ("handle", "makeRecord", "callHandlers"):
        setattr(logging.Logger, name, loud)
    logging.StreamHandler.emit = logging.Handler.handle = loud  # type: ignore[method-assign]


def break_log_records() -> None:
    """Replace what makes the records of `logging`."""
    import logging

    logging.setLogRecordFactory(loud)


def close_log() -> None:
    """Close the stream that log lines go to."""
    import sys

    sys.stderr.close()


def trace_switches() -> None:
    """Raise at the next switch between greenlets."""
    import greenlet

    greenlet.settrace(loud)


def trace_nothing() -> None:
    """Have nobody note whose code runs."""
    import greenlet

    greenlet.settrace(None)


def exit_aside() -> None:
    """End the program in a greenlet of its own, when that comes to it."""
    import sys

    spawn(sys.exit, 3)


def interrupt_aside() -> None:
    """Raise what Ctrl-C does in the loop."""
    from gevent import get_hub

    def interrupt() -> None:
        raise KeyboardInterrupt

    get_hub().loop.run_callback(interrupt)


def find_nothing() -> None:
    """Leave no way to import anything."""
    import sys

    sys.meta_path.clear()


BREAK = {
    "log methods": break_log_methods,
    "log records": break_log_records,
    "log stream": close_log,
    "switches": trace_switches,
    "trace": trace_nothing,
    "exit aside": exit_aside,
    "interrupt aside": interrupt_aside,
    "finders": find_nothing,
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


class LeaveLater(WorkModule):
    """Ends its process after a moment."""

    def process(self) -> None:
        sleep(0.6)
        _exit(0)


class Endless:
    """Does not end when it is freed."""

    def __del__(self) -> None:
        while True:
            pass


class Clings(WorkModule):
    """Leaves something that does not end when it is freed: at once, or by the collector."""

    isolation = "process"

    def process(self) -> str:
        self.endless = Endless()
        if self.params == "cycle":
            self.endless.itself = self.endless  # type: ignore[attr-defined]
        return "done"


class ImportsApart(WorkModule):
    """Imports what no other has."""

    isolation = "process"

    def process(self) -> str:
        import this as module

        return module.__name__
