"""Puts the helpers that build and run installed releases (`system_*`) on the path, for all folders that use them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SYSTEM = Path(__file__).parent / "system"
if str(SYSTEM) not in sys.path:
    sys.path.insert(0, str(SYSTEM))

from system_install import Wheels  # noqa: E402


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Everything that a release consists of, as wheels."""
    return Wheels(tmp_path_factory.mktemp("wheels"))
