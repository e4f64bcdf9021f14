"""Lets the tests in this folder import its helpers, and gives them scripted servers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def scripted() -> Iterator[Callable[..., Any]]:
    """Start servers for clients, each with its script."""
    from scripted_server import Port, ScriptedServer, serve

    with ExitStack() as opened:

        def start(script: Any = serve) -> ScriptedServer:
            server = ScriptedServer(Port.CLIENT, script)
            opened.callback(server.close)
            return server

        yield start
