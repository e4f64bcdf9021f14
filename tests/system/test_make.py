"""`make` uses the chosen Python, and fails if any part of the tests fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess, run

import pytest

ROOT = Path(__file__).parents[2]


def program(path: Path, code: str) -> Path:
    """A program that stands in for another."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return path


def environ(**more: str) -> dict[str, str]:
    """An environment without what a make around these tests, or their caller, has put there."""
    ours = ("MAKE", "MFLAGS", "PYTHONS", "GIVALIA_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


@pytest.mark.parametrize(("asked_for", "is_made_anew"), [("9.9.1", False), ("9.9.2", True), ("9.9.1t", True)])
def test_the_environment_is_made_anew_for_another_python(tmp_path: Path, asked_for: str, is_made_anew: bool) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".installed-9.9.1").touch()
    python = program(tmp_path / "python", f"echo {asked_for}")

    done = run(
        ["make", "--dry-run", f"PYTHON={python}", f"VENV={venv}", "unit"],
        cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    assert (f"{python} -m venv --clear {venv}" in done.stdout) is is_made_anew
    assert f"{venv}/bin/python -m pytest" in done.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path with a make that fails for one Python, and with Pythons of all kinds."""
    folder = tmp_path / "bin"
    program(folder / "make", 'echo "made with $*"; case "$*" in *3.13.7*) exit 2; esac')
    program(folder / "python3.11", "echo 3.11.7")
    program(folder / "python3.12", "echo 'the command exists in other versions' >&2; exit 127")
    program(folder / "python3.13", "echo 3.13.7")
    program(folder / "old", "echo 3.10.2; exit 1")
    return folder


def pythons(path: Path, names: str = "") -> CompletedProcess[str]:
    """Run the fast tests on these Pythons."""
    return run(
        [sys.executable, ROOT / "tests" / "pythons.py"],
        env=environ(PATH=f"{path}:/nowhere", PYTHONS=names, MAKEFLAGS="PYTHON=python9"),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_each_python_on_the_path_is_tested_in_an_environment_of_its_own(path: Path) -> None:
    (path / "python3.13").unlink()

    done = pythons(path)

    assert done.returncode == 0
    made, *summary = done.stdout.splitlines()
    assert made.endswith("PYTHON=python3.11 VENV=build/pythons/3.11.7 unit")
    assert summary == ["python3.11: 3.11.7 passed", "python3.12: does not run"]


def test_a_failure_on_one_python_fails_the_whole_and_the_others_are_tested(path: Path) -> None:
    done = pythons(path, f"python3.13 {path}/python3.11")

    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == ["python3.13: 3.13.7 failed", f"{path}/python3.11: 3.11.7 passed"]


@pytest.mark.parametrize(
    ("name", "words"), [("old", "3.10.2 is too old"), ("python3.12", "does not run"), ("nothing", "does not run: ")]
)
def test_a_python_that_was_named_must_run(path: Path, name: str, words: str) -> None:
    done = pythons(path, f"python3.11 {name}")

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"{name}: {words}")


def test_tests_on_no_python_at_all_are_a_failure(tmp_path: Path) -> None:
    assert pythons(tmp_path).returncode == 1


@pytest.mark.parametrize("part", ["test_alerts", "test_vandals", "tests/postgres", "tests/unit"])
def test_a_part_that_a_signal_ends_has_failed(tmp_path: Path, part: str) -> None:
    python = program(tmp_path / "python", f'case "$*" in *{part}*) kill -9 $$; esac')
    code = "import runpy, sys; sys.executable = sys.argv[1]; runpy.run_path(sys.argv[2], run_name='__main__')"

    done = run([sys.executable, "-c", code, python, ROOT / "tests" / "parts.py"], env=environ(), timeout=60, check=False)

    assert done.returncode != 0


def test_every_test_is_in_one_part(tmp_path: Path) -> None:
    python = program(tmp_path / "python", f'echo "$@" >> {tmp_path}/given')
    code = "import runpy, sys; sys.executable = sys.argv[1]; runpy.run_path(sys.argv[2], run_name='__main__')"

    run([sys.executable, "-c", code, python, ROOT / "tests" / "parts.py"], env=environ(), timeout=60, check=True)

    parts = [line.split() for line in (tmp_path / "given").read_text().splitlines()]
    for folder in ("tests", "plugins", "example_modules_pkg"):
        for file in (ROOT / folder).rglob("test_*.py"):
            having = [part for part in parts if any(ROOT / each in file.parents for each in part)]
            assert sum(f"--ignore={file}" not in part for part in having) == 1, file
    assert not any(each.endswith(".py") and not each.startswith("--ignore=") for part in parts for each in part)
