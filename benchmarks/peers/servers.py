"""The peers' native servers: each on a free port of loopback, with a fresh folder; the process that started it ends it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import harness

from peers import bring

_HOST: Final = "127.0.0.1"
_START_S: Final = 20.0
_LOCALE: Final = {"LC_ALL": "C"}


class Kind(NamedTuple):
    """A way to run a server. In its flags, `{port}` and `{folder}` stand for those of the server."""

    package: str
    program: str
    flags: Sequence[str]
    words: str
    """The place of an answered job, in words."""
    hello: bytes
    answer: bytes
    """The start of its answer to `hello` once it is ready: a server that still loads its data listens, too."""

    def brought(self) -> bring.Program:
        """Return the program; bring it if it is missing."""
        return bring.program(self.package, self.program)


_BEANSTALKD: Final = Kind(
    package="beanstalkd",
    program="beanstalkd",
    flags=("-l", _HOST, "-p", "{port}"),
    words="in memory",
    hello=b"stats\r\n",
    answer=b"OK",
)
_GEARMAND: Final = Kind(
    package="gearman-job-server",
    program="gearmand",
    flags=("--listen", _HOST, "--port", "{port}", "--log-file", "stderr", "--pid-file", "{folder}/pid"),
    words="in memory",
    hello=b"version\n",
    answer=b"OK",
)
_REDIS: Final = Kind(
    package="redis-server",
    program="redis-server",
    flags=("--bind", _HOST, "--port", "{port}", "--dir", "{folder}"),
    words="in memory, with the snapshots that are its default",
    hello=b"PING\r\n",
    answer=b"+PONG",
)

KINDS: Final = {
    "beanstalkd": _BEANSTALKD,
    "beanstalkd -f0": _BEANSTALKD._replace(
        flags=(*_BEANSTALKD.flags, "-b", "{folder}", "-f0"), words="a log on disk, synced at each write"
    ),
    "gearmand": _GEARMAND,
    "redis": _REDIS,
    "redis always": _REDIS._replace(
        flags=(*_REDIS.flags, "--appendonly", "yes", "--appendfsync", "always"), words="a log on disk, synced at each write"
    ),
}


class Server:
    """A server as a process, which can be killed and started again on its port and folder."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        folder.mkdir()
        self._kind = kind
        self._folder = folder
        self.port = _free_port()
        self.start()

    def start(self) -> None:
        """Start the server; return when it answers.

        Raises:
            harness.Broken: The server ended, or did not answer in time.
        """
        program = self._kind.brought()
        flags = [flag.format(port=self.port, folder=self._folder) for flag in self._kind.flags]
        with (self._folder.parent / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program.path, *flags],
                cwd=self._folder,
                env=os.environ | _LOCALE | program.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid
        end = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > end or self._process.poll() is not None:
                said = (self._folder.parent / "server.log").read_text(errors="replace")
                self.kill()
                raise harness.Broken(f"{self._kind.program} did not start: {said[-500:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server with -9."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((_HOST, self.port), timeout=1) as connection:
            connection.sendall(self._kind.hello)
            return connection.recv(4096).startswith(self._kind.answer)
        return False


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as taken:
        return int(taken.getsockname()[1])
