"""Puts the helpers that build and run installed releases (`system_*`) on the path, and those of the engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE / "system", HERE / "unit"):  # The engine's tests and their rig are there.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from system_install import Wheels  # noqa: E402


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Everything that a release consists of, as wheels."""
    return Wheels(tmp_path_factory.mktemp("wheels"))
