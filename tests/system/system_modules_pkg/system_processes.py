"""Job code for tests of the worker's processes: it runs in its own process, blocks other jobs, and ignores requests to stop."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import logging.config
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from system_modules import Chatty, Echo, Stay, write_line

from givalia_core import Client, WorkModule


class EchoApart(Echo):
    """Returns the process that it ran in, which is its own, and its params."""

    isolation = "process"

    def process(self) -> Any:
        return [os.getpid(), self.params]


class StayApart(Stay):
    """Stays in a process of its own."""

    isolation = "process"


class ChattyApart(Chatty):
    """Does so in a process of its own."""

    isolation = "process"


class Rest(WorkModule):
    """Writes down that it starts, waits as for a slow service, and writes down that it ends."""

    backoff = 0

    def process(self) -> int:
        write_line(self.params["file"], "start", self.job.id, self.job.attempt, os.getpid())
        time.sleep(self.params["seconds"])
        write_line(self.params["file"], "end", self.job.id, self.job.attempt, os.getpid())
        return self.job.attempt


class Hold(WorkModule):
    """Sits in C code with the interpreter's lock in its hand, where no other thread of its process can run, for hours."""

    def process(self) -> None:
        write_line(self.params["file"], "start", self.job.id, self.job.attempt, os.getpid())
        re.match(r"(a+)+$", "a" * 48 + "b")


class Stubborn(WorkModule):
    """Goes on whatever is raised in it."""

    backoff = 0

    def process(self) -> str:
        write_line(self.params["file"], "start", self.job.id, self.job.attempt, os.getpid())
        end = time.monotonic() + self.params["seconds"]
        while time.monotonic() < end:
            try:
                time.sleep(0.05)
            except BaseException as error:
                write_line(self.params["file"], "took", self.job.id, type(error).__name__, getattr(error, "why", "?"))
        return "went on"


class StubbornApart(Stubborn):
    """Goes on in a process of its own."""

    isolation = "process"


class Tidy(WorkModule):
    """Stays until it must go, and cleans up then."""

    isolation = "process"

    def process(self) -> None:
        write_line(self.params["file"], "start", self.job.id, self.job.attempt, os.getpid())
        try:
            time.sleep(self.params["seconds"])
        finally:
            write_line(self.params["file"], "cleaned", self.job.id, self.job.attempt, os.getpid())


class Grow(WorkModule):
    """Takes so many MiB of memory, and stays."""

    isolation = "process"

    def process(self) -> int:
        taken = b"\1" * (self.params["mib"] << 20)
        time.sleep(self.params["seconds"])
        return len(taken)


class Say(WorkModule):
    """Logs a line and says how far it is."""

    def process(self) -> str:
        self.log.warning("said by %s", self.params)
        self.progress(0.5, "half")
        return "said"


class SayApart(Say):
    """Does so in a process of its own."""

    isolation = "process"


def mute_structlog() -> None:
    """Have `structlog` say nothing, where it is installed."""
    import structlog

    structlog.configure(processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory())


MUTES: dict[str, Callable[[], object]] = {
    "dictConfig": lambda: logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL"}}),
    "disable": lambda: logging.disable(logging.CRITICAL),
    "basicConfig": lambda: logging.basicConfig(force=True, level=logging.CRITICAL),
    "structlog": mute_structlog,
}


class Mute(WorkModule):
    """Changes how its process logs, as its params say, and leaves it so."""

    def process(self) -> None:
        MUTES[self.params]()


class MuteApart(Mute):
    """The same in a process of its own."""

    isolation = "process"


class Dated(WorkModule):
    """Writes down which attempt starts and when, and stays; only every second one heeds that it is cancelled."""

    backoff = 0

    def process(self) -> None:
        write_line(self.params["file"], self.job.id, self.job.attempt, self.job.fence, time.time())
        end = time.monotonic() + self.params["seconds"]
        while time.monotonic() < end:
            if self.cancelled and self.params["heeds"]:
                raise RuntimeError("stopped as asked")
            time.sleep(0.02)


class DatedApart(Dated):
    """Does so in a process of its own."""

    isolation = "process"


class SpinAside(WorkModule):
    """Starts a thread, which beside greenlets is one, and has that turn without ever yielding."""

    def process(self) -> None:
        def spin() -> None:
            end = time.monotonic() + self.params["seconds"]
            while time.monotonic() < end:
                pass

        aside = threading.Thread(target=spin)
        aside.start()
        aside.join()


class Fork(WorkModule):
    """Forks; the fork waits a moment and ends as it likes, and the exit code is the result."""

    def process(self) -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(0.3)
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class ForkApart(Fork):
    """Does so in a process of its own."""

    isolation = "process"


class ForkWhileSaying(WorkModule):
    """Forks again and again while its threads log; each fork logs a line, too. Returns how the forks have ended."""

    isolation = "process"
    FORKS = 20

    def process(self) -> list[int]:
        is_over = threading.Event()
        threads = [threading.Thread(target=self.say, args=(is_over,)) for _ in range(3)]
        for each in threads:
            each.start()
        try:
            return [self.fork() for _ in range(self.FORKS)]
        finally:
            is_over.set()
            for each in threads:
                each.join()

    def say(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            self.log.info("a thread says " + "something " * 500)

    def fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            self.log.info("a fork says something")
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class AskFromFork(WorkModule):
    """Has a client in common with its forks; each checks its own results. Returns how the forks have ended."""

    client: Client

    def process(self) -> list[int]:
        cls = AskFromFork
        if not hasattr(cls, "client"):
            cls.client = Client("127.0.0.1", self.params)
        self.ask()
        codes = [self.fork() for _ in range(3)]
        self.ask()
        return codes

    def ask(self) -> None:
        for number in range(3):
            said = f"{self.job.id} {os.getpid()} {number}"
            if AskFromFork.client.enq("Echo", params=said).wait(20) != said:
                os._exit(9)

    def fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            self.ask()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class AskFromProcess(AskFromFork):
    """Does so in a process of its own, with the standard library's processes."""

    isolation = "process"

    def fork(self) -> int:
        process = multiprocessing.get_context("fork").Process(target=self.ask)
        process.start()
        process.join()
        return process.exitcode if process.exitcode is not None else -99


class SleepInC(WorkModule):
    """Waits in C code, which a signal would end early; returns how long that took and what was left of it."""

    def process(self) -> tuple[float, int]:
        began = time.monotonic()
        left = ctypes.CDLL(None).sleep(self.params)
        return time.monotonic() - began, left


class HangInCleanUp(WorkModule):
    """Runs out of its time, and then waits for something that never comes, whatever is raised in it."""

    timeout = 1.0

    def process(self) -> None:
        try:
            time.sleep(600)
        finally:
            while True:
                with contextlib.suppress(BaseException):
                    time.sleep(600)
