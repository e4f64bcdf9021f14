"""The params of a job on the command line."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from givalia_core.cli import params
from givalia_core.errors import BadRequest, TooLarge


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    def say(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return say


def test_params_are_in_the_argument_in_a_file_or_on_standard_input(tmp_path: Path, said: Any) -> None:
    (tmp_path / "params.json").write_text('{"b": "é"}\n', encoding="utf-8")
    said(b"[3]\n")

    assert params.read('{"a": 1}') == {"a": 1}
    assert params.read(f"@{tmp_path / 'params.json'}") == {"b": "é"}
    assert params.read("-") == [3]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"text", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"NaN", "NaN is no JSON"),
        (b"[" * 99_999, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_by_the_name_of_where_it_was(tmp_path: Path, said: Any, data: bytes, words: str) -> None:
    (tmp_path / "params").write_bytes(data)
    said(data)

    with pytest.raises(BadRequest, match=words) as of_file:
        params.read(f"@{tmp_path / 'params'}")
    with pytest.raises(BadRequest, match=words) as of_input:
        params.read("-")

    assert str(of_file.value).startswith(str(tmp_path))
    assert str(of_input.value).startswith("standard input")


@pytest.mark.parametrize("name", ["", "nowhere", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(name: str) -> None:
    with pytest.raises(BadRequest, match=r"--params @"):
        params.read(f"@{name}")


def test_there_is_an_end_to_what_is_read(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "BYTES_MAX", 1 << 20)
    said(b'"' + b"x" * (1 << 20) + b'"')

    with pytest.raises(TooLarge, match="standard input has more than 1 MiB"):
        params.read("-")
