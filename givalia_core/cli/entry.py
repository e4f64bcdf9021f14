"""The console scripts. Each imports its program; until then the system handles Ctrl+C, without a traceback."""

from __future__ import annotations

import signal
from importlib import import_module


def givalia() -> int:
    """Run the `givalia` command."""
    return _run("main")


def server() -> int:
    """Run `givalia-server`."""
    return _run("server")


def worker() -> int:
    """Run `givalia-worker`."""
    return _run("worker")


def _run(name: str) -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # The program takes it over: see `endings.run`.
    code: int = import_module(f"givalia_core.cli.{name}").main()
    return code
