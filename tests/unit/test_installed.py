"""Distributions without metadata, as while an installer replaces them or after the installer was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from givalia_core import hooks, installed, modules
from givalia_core.errors import StoreUnfit
from givalia_core.server.stores import open_store
from givalia_core.settings import ServerSettings

ENTRY_POINTS = """
[givalia.modules]
HalfModule = half_package:Module
[givalia.plugins]
half-plugin = half_package:Plugin
[givalia.stores]
sqlite = half_package:Store
"""


@pytest.fixture(autouse=True)
def _half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution without METADATA on the path."""
    about = tmp_path / "half_package-1.0.dist-info"
    about.mkdir()
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "half_package.py").write_text(
        "from givalia_core import WorkModule\n"
        "class Module(WorkModule):\n"
        "    def process(self): ...\n"
        "class Plugin: ...\n"
    )  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))


def test_its_module_is_broken_and_the_others_are_served() -> None:
    found = modules.discover()

    assert found["HalfModule"].broken == "the metadata of its distribution is not there, or not yet"
    assert (found["HalfModule"].distribution, found["HalfModule"].version) == (installed.UNKNOWN, installed.UNKNOWN)
    assert any(each.broken is None for each in found.values())


def test_its_plugin_is_found_by_whoever_allows_all() -> None:
    assert ("half-plugin", "?", "?", None) in [
        (each.name, each.distribution, each.version, each.error) for each in hooks.discover()
    ]
    assert hooks.discover("another") == []
    assert len(list(hooks.missing("another", modules.GROUP))) == 1


def test_its_store_does_not_hide_who_else_claims_the_scheme() -> None:
    with pytest.raises(StoreUnfit, match=r"is served by \? and givalia"):
        open_store(ServerSettings(store="sqlite:queue.db"))


def test_it_has_no_version() -> None:
    assert installed.version_of("half-package") is None
    assert installed.version_of("never-installed") is None
    assert installed.version_of("givalia") is not None
