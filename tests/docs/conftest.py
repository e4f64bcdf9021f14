"""Puts this folder on the path for its helpers (`docs_*`), and starts the server and the worker of the pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from docs_stage import Stage  # noqa: E402


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server with a fresh queue and a worker with the example modules, as processes on free ports."""
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage
