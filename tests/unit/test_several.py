"""Verbs for several jobs: names go in parts, each a call of its own, and the result of each is shown."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from givalia_core.cli import several
from givalia_core.errors import BadRequest, ConnectionLost, GivaliaError, NotFound


class Asked:
    """Answers each part, but for those that are to fail."""

    def __init__(self, *answers: GivaliaError | OSError | None) -> None:
        self.parts: list[tuple[str, int]] = []
        self._answers = list(answers)

    def fail(self, _: str) -> None:
        raise self._answers[0]  # type: ignore[misc]

    def __call__(self, keys: list[str] | None, ids: list[str] | None) -> Sequence[str | GivaliaError]:
        names = keys if ids is None else ids
        assert names is not None
        self.parts.append(("key" if ids is None else "id", len(names)))
        error = self._answers.pop(0) if self._answers else None
        if isinstance(error, ConnectionLost):
            raise error
        return [error or "cancelled"] * len(names)


def show(asked: Asked, **given: Any) -> None:
    chosen = argparse.Namespace(**{"key": [], "id": None, "json": False, **given})
    several.show_each(chosen, asked, several.ShownJob(lambda answer: {"answer": answer}, str))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of three."""
    monkeypatch.setattr(several, "PART_NAMES", 3)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven ids on standard input."""
    lines = "".join(f"id-{number}\n" for number in range(7))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines.encode())))


@pytest.mark.usefixtures("few", "piped")
def test_names_from_standard_input_are_asked_for_in_parts_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked()

    show(asked, id=["-"], json=True)

    printed = capsys.readouterr()
    assert asked.parts == [("id", 3), ("id", 3), ("id", 1)]
    assert [json.loads(line)["id"] for line in printed.out.splitlines()] == [f"id-{number}" for number in range(7)]
    assert printed.err == "givalia: 7 OK\n"


@pytest.mark.usefixtures("few", "piped")
def test_a_part_that_fails_says_how_many_were_answered_before(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConnectionLost):
        show(Asked(None, None, ConnectionLost("gone")), id=["-"])

    assert capsys.readouterr().err == (
        "givalia: 6 were answered before this: 6 OK\n"
        "givalia: what became of the 1 names after those 6 is unknown: they were under way\n"
    )


@pytest.mark.usefixtures("few", "piped")
def test_nothing_is_in_doubt_that_was_not_sent_or_was_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionLost):
        show(Asked(None, ConnectionLost("no server", sent=False)), id=["-"])
    assert "unknown" not in capsys.readouterr().err

    monkeypatch.setattr(several.show, "emit", Asked(OSError(28, "No space left on device")).fail)
    with pytest.raises(OSError, match="No space"):
        show(Asked(), key=["a", "b"])
    assert "unknown" not in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_refused_jobs_are_named_and_counted_by_their_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show(Asked(None, NotFound("no such job")), key=["a", "b", "c", "d"])

    printed = capsys.readouterr().err
    assert ended.value.code == NotFound.exit_code
    assert "givalia: NOT_FOUND: d: no such job" in printed
    assert "1 NOT_FOUND, 3 OK" in printed


def test_keys_and_ids_are_not_mixed() -> None:
    with pytest.raises(BadRequest, match="by one of them only"):
        show(Asked(), key=["a"], id=["b"])
