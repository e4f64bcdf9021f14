"""Puts the helpers of tests on the path: those for waiting, for installed releases (`system_*`) and for the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE / "system", HERE / "unit"):  # The rig of the engine is among the unit tests.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from both_clients import LoopThread  # noqa: E402
from system_install import Wheels  # noqa: E402

from givalia_core import Client  # noqa: E402


@pytest.fixture(scope="module", params=["blocking", "asyncio"])
def any_client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`Client`, and then `AsyncClient` behind the same face: what is claimed of the one is claimed of the other."""
    if request.param == "blocking":
        yield Client
        return
    with LoopThread() as thread:
        yield thread.client


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Everything that a release consists of, as wheels."""
    return Wheels(tmp_path_factory.mktemp("wheels"))
