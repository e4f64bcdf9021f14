"""Every way in which job code can end, or end its process; each as a greenlet and in its own process."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gevent
from system_modules import write_line

from givalia_core import Fail, Retry, WorkModule

MIB = 1 << 20


class Odd(BaseException):
    """Not even an Exception."""


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Sly(dict[str, int]):
    """A result that runs code of its own when it is packed."""

    def items(self) -> Any:
        raise SystemExit(0)


class Raises(WorkModule):
    """Jobs that raise or return strange values."""

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

    def end_limited_memory(self) -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * MIB, hard))
        return len(bytearray(1 << 30))

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

    def end_sly_result(self) -> Any:
        return Sly(one=1)


class Kills(WorkModule):
    """Jobs that end their process, or would never end."""

    def end_exit_0(self) -> None:
        os._exit(0)

    def end_exit_1(self) -> None:
        os._exit(1)

    def end_segv(self) -> None:
        ctypes.string_at(0)

    def end_abort(self) -> None:
        os.abort()

    def end_kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        while True:  # The signal may need a moment when another thread is to take it.
            pass

    def end_busy_python(self) -> None:
        while True:
            pass

    def end_busy_c(self) -> int:
        return sum(range(1 << 60))  # Never looks at signals, and never lets go of the interpreter.

    def end_deadlock(self) -> None:
        lock = threading.Lock()
        with lock, lock:
            pass

    def end_timeout(self) -> None:
        time.sleep(60)

    def end_deaf(self) -> None:
        while True:
            try:
                time.sleep(60)
            except BaseException as error:
                print(f"{type(error).__name__}? Never mind.")


class Leaves(WorkModule):
    """Jobs that leave something behind."""

    def end_fork_returns(self) -> str:
        return "the fork" if os.fork() == 0 else "the job"

    def end_fork_raises(self) -> str:
        if os.fork() == 0:
            raise SystemExit(0)
        return "the job"

    def end_orphan(self) -> int:
        """A process in a session of its own, whose parent is gone."""
        code = (
            "import os, subprocess, sys\n"
            "print(subprocess.Popen(['sleep', '300'], start_new_session=True, stdout=-3, stderr=-3).pid)\n"
        )
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    def end_grandchild(self) -> int:
        return subprocess.Popen(["sleep", "300"], start_new_session=True).pid

    def end_thread(self) -> str:
        threading.Thread(target=time.sleep, args=(300,)).start()
        return "left"

    def end_closed_fds(self) -> str:
        os.closerange(0, 4096)
        return "closed"

    def end_closed_fds_and_stays(self) -> None:
        os.closerange(0, 4096)
        time.sleep(60)

    def end_closed_streams(self) -> str:
        os.closerange(0, 3)
        return "closed"

    def end_surroundings(self) -> str:
        os.chdir("/")
        os.umask(0o777)
        return "elsewhere"

    def end_signals(self) -> str:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGURG, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
        signal.setitimer(signal.ITIMER_REAL, 600)
        return "reset"

    def end_much_output(self) -> str:
        for _ in range(1024):
            print("x" * 1023)
        return "printed"

    def end_very_much_output(self) -> str:
        line = "x" * (MIB - 1)
        for _ in range(256):
            print(line)
        return "printed"

    def end_wide_output(self) -> str:
        print("\udc80 \x1b[2J \u202e é")
        return "printed"

    def end_leftover_greenlet(self) -> str:
        gevent.spawn(lambda: 1 / 0)
        return "left one behind"

    def end_progress(self) -> str:
        for step in range(1_000):
            self.progress(step / 1000, f"step {step}")
        self.progress(float("nan"), "no number")
        self.progress(7, "x" * 10_000)
        return "told"


class End(Raises, Kills, Leaves):
    """Ends in the way that its params name, in the process with all the greenlets."""

    backoff = 0

    def process(self) -> Any:
        return getattr(self, "end_" + self.params)()


class EndApart(End):
    """The same in a process of its own."""

    isolation = "process"


class Probe(WorkModule):
    """Says what a job finds that comes after another."""

    def process(self) -> Any:
        return {
            "folder": str(Path.cwd()),
            "umask": _umask(),
            "handlers": [str(signal.getsignal(number)).partition(" at 0x")[0] for number in sorted(signal.valid_signals())],
            "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "timer": signal.getitimer(signal.ITIMER_REAL)[0],
            "limits": [list(resource.getrlimit(limit)) for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)],
            "streams": [Path(f"/proc/self/fd/{fd}").exists() for fd in range(3)],
        }


class ProbeApart(Probe):
    """The same in a process of its own."""

    isolation = "process"


class Bystander(WorkModule):
    """Says that it has started, and sleeps until a file is there."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        while not Path(self.params["gate"]).exists():
            time.sleep(0.02)
        return self.job.attempt


def _umask() -> str:
    mask = os.umask(0o022)
    os.umask(mask)
    return f"{mask:03o}"
