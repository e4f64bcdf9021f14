"""`pip install .` changes nothing in its source folder, which may be another user's clone."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from system_install import CHECKOUT, LEFT_OUT, build

DISTRIBUTIONS = [CHECKOUT, CHECKOUT / "example_modules_pkg", *sorted((CHECKOUT / "plugins").glob("*/"))]


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """A copy of each of our distributions, without what earlier builds may have left."""
    made = []
    for number, source in enumerate(DISTRIBUTIONS):
        made.append(copy := tmp_path / f"{number}")
        copy.mkdir()
        for name in ("pyproject.toml", "LICENSE", "README.md"):
            shutil.copy(source / name, copy)
        package = "givalia_core" if source == CHECKOUT else "src"
        shutil.copytree(source / package, copy / package, ignore=LEFT_OUT)
    return made


def test_a_build_writes_nothing_into_the_folder_it_builds_from(copies: list[Path], tmp_path: Path) -> None:
    before = [set(copy.rglob("*")) for copy in copies]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda copy: build(copy, tmp_path / f"wheel-{copy.name}"), copies))

    assert [set(copy.rglob("*")) for copy in copies] == before
