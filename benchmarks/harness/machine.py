"""The machine, and its present speed without Givalia: the speed makes figures of two days comparable."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Final

from harness.figures import Figure
from harness.rig import HOST


def calibrate(folder: str | None) -> list[Figure]:
    """Return the present speed of this machine and disk, without Givalia: it makes figures of two days comparable."""
    return [
        Figure("fdatasync of 4 KiB, p50", _fdatasync_ms(folder), "ms"),
        Figure("loopback round trip, p50", round_trip_ms(), "ms"),
        Figure("a million turns of a Python loop", loop_ms(), "ms"),
        Figure("processes that wanted to run in the minute before", os.getloadavg()[0], ""),
    ]


def _fdatasync_ms(folder: str | None) -> float:
    sync = getattr(os, "fdatasync", os.fsync)
    took: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(200):
            began = time.perf_counter()
            os.pwrite(file.fileno(), bytes(4096), 0)
            sync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


_ECHO: Final = (
    "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
    "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\nwhile data := s.recv(4096): s.sendall(data)"
)


def round_trip_ms() -> float:
    """Return the time of one message to another process over loopback and back, p50."""
    took: list[float] = []
    with socket.create_server((HOST, 0)) as listener:
        echo = subprocess.Popen([sys.executable, "-c", _ECHO, str(listener.getsockname()[1])])
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(2_000):
                began = time.perf_counter()
                connection.sendall(bytes(64))
                connection.recv(4096)
                took.append(time.perf_counter() - began)
    echo.wait()
    return statistics.median(took) * 1e3


def loop_ms() -> float:
    """Return the time of a million turns of a Python loop: the present speed, which varies within minutes on some machines."""
    began = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    return (time.perf_counter() - began) * 1e3


def versions() -> dict[str, str]:
    """Return the versions of the measured packages and of the machine."""
    packages = {name: importlib.metadata.version(name) for name in ("gevent", "msgpack", "pluggy")}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    release = platform.release().partition("-")[0]
    machine = f"{platform.system()} {release}, {os.cpu_count()} cores"
    return {"python": python, "sqlite": sqlite3.sqlite_version, **packages, "machine": machine}
