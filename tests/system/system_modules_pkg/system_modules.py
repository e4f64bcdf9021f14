"""Job code for the system tests: it writes down what it does, stays, spins, and ends in every way that code can end."""

from __future__ import annotations

import os
import time
from typing import Any

import gevent

from givalia_core import Fail, Retry, WorkModule


def write_line(file: str, *words: object) -> None:
    """Append one line in one write, so that lines of several processes never mix and none is lost with its process."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


class Note(WorkModule):
    """Writes its id and the time to the file that its params name."""

    def process(self) -> None:
        write_line(self.params, self.job.id, time.time(), self.job.attempt)


class Echo(WorkModule):
    """Returns its params."""

    def process(self) -> Any:
        return self.params


class Pay(WorkModule):
    """Writes into the database that its params name and is done in that transaction; the first attempt rolls back."""

    def process(self) -> None:
        import psycopg

        with psycopg.connect(self.params) as connection:
            connection.execute("INSERT INTO public.paid VALUES (%s, %s)", (self.job.id, self.job.attempt))
            self.job.complete_in(connection, f"paid in attempt {self.job.attempt}")
            if self.job.attempt == 1:
                raise Retry(after=0.1)
        raise RuntimeError("behind the commit nothing counts any more")


class Stay(WorkModule):
    """Says that it has started, then stays for some seconds or until somebody asks it to stop."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        if "progress" in self.params:
            self.progress(*self.params["progress"])
        end = time.monotonic() + self.params["seconds"]
        while time.monotonic() < end:
            if self.cancelled:
                raise RuntimeError("stopped as asked")
            time.sleep(0.02)
        return self.job.attempt


class StayOnce(WorkModule):
    """Stays on its first attempt, whatever happens; every later one returns at once."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        if self.job.attempt == 1:
            time.sleep(self.params["seconds"])
        return self.job.attempt


class Spin(WorkModule):
    """Holds the interpreter for some seconds without ever giving way."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        end = time.monotonic() + self.params["seconds"]
        turns = 0
        while time.monotonic() < end:
            turns += 1
        return turns


class Odd(BaseException):
    """Not even an Exception."""


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class End(WorkModule):
    """Ends in the way that its params name."""

    backoff = 0

    def process(self) -> Any:
        return getattr(self, "end_" + self.params)()

    def end_system_exit_0(self) -> None:
        raise SystemExit(0)

    def end_system_exit_1(self) -> None:
        raise SystemExit(1)

    def end_keyboard_interrupt(self) -> None:
        raise KeyboardInterrupt

    def end_generator_exit(self) -> None:
        raise GeneratorExit

    def end_greenlet_exit(self) -> None:
        raise gevent.GreenletExit

    def end_gevent_timeout(self) -> None:
        raise gevent.Timeout(3)

    def end_base_exception(self) -> None:
        raise Odd("odd")

    def end_recursion(self) -> None:
        self.end_recursion()

    def end_memory(self) -> None:
        raise MemoryError

    def end_real_memory(self) -> bytes:
        return bytes(1 << 62)

    def end_unspeakable(self) -> None:
        raise Unspeakable

    def end_long_error(self) -> None:
        raise ValueError("long " * 100_000 + "end of it")

    def end_surrogate_error(self) -> None:
        raise ValueError("half a pair \udc80 and a \x00 zero")

    def end_retry_after(self) -> Any:
        if self.job.attempt == 1:
            raise Retry(after=0.3)
        return self.job.attempt

    def end_fail(self) -> None:
        raise Fail("for good")

    def end_huge_result(self) -> bytes:
        return bytes(300 << 10)

    def end_object_result(self) -> object:
        return object()

    def end_deep_result(self) -> Any:
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        return deep

    def end_big_int_result(self) -> int:
        return 1 << 80

    def end_surrogate_result(self) -> str:
        return "\udc80"

    def end_nan_result(self) -> float:
        return float("nan")

    def end_much_output(self) -> str:
        for _ in range(1024):
            print("x" * 1023)
        return "printed"

    def end_wide_output(self) -> str:
        print("\udc80 \x1b[2J \u202e é")
        return "printed"

    def end_leftover_greenlet(self) -> str:
        gevent.spawn(lambda: 1 / 0)
        return "left one behind"

    def end_timeout(self) -> None:
        time.sleep(60)

    def end_progress(self) -> str:
        for step in range(1_000):
            self.progress(step / 1000, f"step {step}")
        self.progress(float("nan"), "no number")
        self.progress(7, "x" * 10_000)
        return "told"
