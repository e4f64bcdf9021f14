"""A network for one test: two machines, and a router between them that can drop and delay. Creating it needs root."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final

CLIENT, SERVER = "10.77.1.2", "10.77.2.2"
_ROUTER_NEAR, _ROUTER_FAR = "10.77.1.1", "10.77.2.1"
_CLONE_NEWNET: Final = 0x40000000
_ESTABLISHED: Final = "01"
_number = itertools.count()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Network:
    """From `with` to its end there are a client's and a server's machine; they know each other through a router only."""

    def __init__(self) -> None:
        label = f"gv{os.getpid()}x{next(_number)}"
        self.client, self.router, self.server = f"{label}c", f"{label}r", f"{label}s"
        self._namespaces: list[str] = []

    def __enter__(self) -> Network:
        try:
            for name in (self.client, self.router, self.server):
                _run("ip", "netns", "add", name)
                self._namespaces.append(name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            self._join(self.client, CLIENT, _ROUTER_NEAR, "near")
            self._join(self.server, SERVER, _ROUTER_FAR, "far")
            _run(*self.inside(self.router), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        except BaseException:
            self._remove()
            raise
        return self

    def _join(self, name: str, address: str, router: str, link: str) -> None:
        """Connect a machine to the router."""
        _run("ip", "-n", name, "link", "add", "out", "type", "veth", "peer", "name", link, "netns", self.router)
        _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "out")
        _run("ip", "-n", self.router, "address", "add", f"{router}/24", "dev", link)
        _run("ip", "-n", name, "link", "set", "out", "up")
        _run("ip", "-n", self.router, "link", "set", link, "up")
        _run("ip", "-n", name, "route", "add", "default", "via", router)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    @staticmethod
    def inside(name: str) -> list[str]:
        """Return the prefix for a command that runs on this machine."""
        return [shutil.which("ip") or "ip", "netns", "exec", name]

    def enter_client(self) -> None:
        """From now on this thread makes its sockets on the client's machine."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", self.client).open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def connections(self, port: int) -> set[int]:
        """The client's ports of the connections to this port that are there now."""
        found = set()
        for line in _run(*self.inside(self.client), "cat", "/proc/net/tcp").splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if state == _ESTABLISHED and int(remote.partition(":")[2], 16) == port:
                found.add(int(local.partition(":")[2], 16))
        return found

    def drop(self, ports: set[int]) -> None:
        """From now on the router drops, without a word, what belongs to these connections."""
        for port in ports:
            for side in ("sport", "dport"):
                _run("ip", "-n", self.router, "rule", "add", "pref", "10", "ipproto", "tcp", side, str(port), "blackhole")

    def slow_down(self, bytes_per_s: int) -> None:
        """From now on the link to the server takes no more than this."""
        rate = ("rate", f"{bytes_per_s * 8}bit", "burst", "5000", "latency", "500ms")
        _run("tc", "-n", self.router, "qdisc", "replace", "dev", "far", "root", "tbf", *rate)
