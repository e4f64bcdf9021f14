"""Code that runs beside jobs uses nothing by way of a module, where a job could have replaced it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import givalia_core

HOUSE = Path(givalia_core.__file__).parent
BESIDE_JOBS = [
    *(path for path in sorted((HOUSE / "worker" / "inside").glob("*.py")) if path.stem != "__init__"),
    *(HOUSE / "worker" / f"{name}.py" for name in ("channel", "notes", "reasons")),
    HOUSE / "loggers.py",
    HOUSE / "log_handler.py",
    HOUSE / "repeats.py",
    HOUSE / "protocol" / "values.py",
    HOUSE / "steady.py",
    HOUSE / "streams.py",
]
# Not functions: whoever asks wants what is there now.
ARE_STATE = {
    "sys.stdin",
    "sys.stdout",
    "sys.stderr",
    "logging.lastResort",
    "logging.basicConfig",
    "sys.path",
    "sys.meta_path",
    "sys.path_hooks",
}


def looked_up(path: Path) -> Iterator[str]:
    """What the functions of a file look up in modules when they run."""
    tree = ast.parse(path.read_text())
    modules = {
        (name.asname or name.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.Lambda)):
            body = function.body if isinstance(function.body, list) else [function.body]
            for node in (node for part in body for node in ast.walk(part)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                    yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("path", BESIDE_JOBS, ids=lambda path: path.stem)
def test_functions_are_kept_by_name(path: Path) -> None:
    assert set(looked_up(path)) <= ARE_STATE
    assert "__builtins__ = BUILTINS" in path.read_text()
