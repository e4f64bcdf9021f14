"""A process that runs jobs, without the worker round it: a test is its supervisor."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, TypeVar

import msgpack
from waits import await_true

from givalia_core.protocol.messages import Dispatch
from givalia_core.worker.notes import Begin, NoteReader, pack
from givalia_core.worker.page import SharedPage, nameless_file, page_file

PATIENCE_S = 30.0
T = TypeVar("T")

# As the nursery does it, except that this process is a new one.
PROGRAM = """
import os, signal, sys
from givalia_core.worker.attempt import child, {role}
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, child.take_no_notice)
os._exit({role}.main(*map(int, sys.argv[1:])))
"""


def job(module: str, fence: int, params: Any = None, **fields: Any) -> Dispatch:
    return Dispatch(fence.to_bytes(16), fence, module, 1, 0, payload=msgpack.packb(params), **fields)


def begin(module: str, fence: int, params: Any = None, source: str = "", **fields: Any) -> Begin:
    """A job for a process of its own, whose class is in `shop.py`."""
    return Begin(tuple(job(module, fence, params, **fields)), source or f"shop:{module}")


class JobProcess:
    """The process, and all that it has said.

    Args:
        role: The module of `attempt` whose `main` it runs: `host` or `child`.
        folder: Where its jobs' code is.
    """

    def __init__(self, role: str, folder: Path) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(PATIENCE_S)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)  # Longer notes leave the process in pieces.
        given = (theirs.fileno(), page_file(), nameless_file())
        self.channel = given[0]
        """The number of the connection in the process."""
        self.page = SharedPage(given[1])
        self._reader = NoteReader()
        self._new: list[Any] = []
        self.heard: list[Any] = []
        command = [sys.executable, "-P", "-c", PROGRAM.format(role=role), *map(str, given)]
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        environ = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        with (folder / "errors").open("ab") as errors:
            self._process = subprocess.Popen(
                command, pass_fds=given, env=environ, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        theirs.close()
        for fd in given[1:]:
            os.close(fd)

    def tell(self, *said: Any) -> None:
        self._ours.sendall(pack(said))

    def until(self, kind: type[T], fence: int | None = None) -> T:
        """Hear notes up to one of this kind, of this job if one is named."""
        while True:
            while self._new:
                self.heard.append(note := self._new.pop(0))
                if type(note) is kind and fence in (None, getattr(note, "fence", None)):
                    return note
            data = self._ours.recv(65_536)
            assert data, f"the process has ended; it said {self.heard}"
            self._new = self._reader.feed(data)

    def kept(self, kind: type[T]) -> list[T]:
        """All notes of this kind up to now."""
        return [note for note in self.heard if type(note) is kind]

    def rest(self) -> int:
        """Hear all that is left to hear; return the exit code."""
        while data := self._ours.recv(65_536):
            self._new += self._reader.feed(data)
        self.heard += self._new
        self._new = []
        return self._process.wait(PATIENCE_S)

    def unheard_bytes(self) -> int:
        """The bytes that have arrived and are not heard yet."""
        return int.from_bytes(fcntl.ioctl(self._ours, termios.FIONREAD, bytes(4)), sys.byteorder)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; where the system tells it, wait until the process has taken it."""
        self._process.send_signal(number)
        status = Path(f"/proc/{self._process.pid}/status")
        if status.exists():
            await_true(lambda: "ShdPnd:\t0000000000000000\n" in status.read_text(), "it takes the signal", PATIENCE_S, 0.001)

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._ours.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Close the connection, as a supervisor does that is gone."""
        self._ours.close()

    def wait(self) -> int:
        """The exit code, when the process has ended by itself."""
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._ours.close()
        self.page.close()
