"""Tests mirror the rooms: each module of the engine, the worker and the store has a test file with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ROOT / "givalia_core"
LINES_MOST = 600
MODULES = sorted(
    path.relative_to(HOUSE)
    for room in ("engine", "worker", "store")
    for path in (HOUSE / room).rglob("*.py")
    if path.name != "__init__.py" and "suite" not in path.parts  # The suite is tests itself.
)
FOLDERS = (ROOT / "tests", ROOT / "plugins", ROOT / "example_modules_pkg")
TESTS = sorted(path for folder in FOLDERS for path in folder.rglob("test_*.py"))


def names(module: Path) -> set[str]:
    """The names that the file of a module's tests may have: with a room before its own name, or without."""
    rooms = [room for room in module.parent.parts if room != "upkeep"]
    return {f"test_{module.stem}.py", *(f"test_{room}_{module.stem}.py" for room in rooms)}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_has_tests_by_its_name(module: Path) -> None:
    found = {path.name for folder in ("unit", "contract") for path in (ROOT / "tests" / folder).glob("test_*.py")}

    assert names(module) & found, f"one of {', '.join(sorted(names(module)))}"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_tests_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MOST
