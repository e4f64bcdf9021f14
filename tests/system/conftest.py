"""Puts this folder on the path for its helpers (`system_*`), and builds and installs the wheels that every test here runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "unit"):  # The engine's rig is there.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# It mounts file systems, which only root may: `make test-all` asks for it.
collect_ignore = [] if os.environ.get("GIVALIA_FULL_S") else ["test_full_disk.py"]
# Networks of a test's own are for root only; the same claims are tested through a proxy in `test_silent_proxy.py`.
if os.geteuid() != 0 or shutil.which("ip") is None:
    collect_ignore.append("test_silent_network.py")

from system_install import Installed, Wheels  # noqa: E402
from system_rig import Rig  # noqa: E402


@pytest.fixture(scope="session")
def release(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the whole release: core, plugins, example package."""
    return Installed(tmp_path_factory.mktemp("release"), wheels.all)


@pytest.fixture(scope="session")
def plain(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the core and the modules that these tests run, and no plugin."""
    return Installed(tmp_path_factory.mktemp("plain"), wheels.plain)


@pytest.fixture
def rig(plain: Installed, tmp_path: Path) -> Iterator[Rig]:
    """Real processes round a fresh store; whatever is left of them is ended with the test."""
    with Rig(plain, tmp_path) as rig:
        yield rig


@pytest.fixture(scope="module")
def shared_rig(plain: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The same for tests of one file that do not get in each other's way."""
    with Rig(plain, tmp_path_factory.mktemp("rig")) as rig:
        yield rig
