"""Job code for tests of the worker's processes: it has one of its own, blocks others, and takes no notice of anybody."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
import time
from typing import Any

from system_modules import Echo, Stay, write_line

from givalia_core import WorkModule


class EchoApart(Echo):
    """Returns the process that it ran in, which is its own, and its params."""

    isolation = "process"

    def process(self) -> Any:
        return [os.getpid(), self.params]


class StayApart(Stay):
    """Stays in a process of its own."""

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
    """Starts a thread, which beside greenlets is one, and has that turn without ever giving way."""

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
