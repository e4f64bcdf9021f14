"""Acts by filter on the command line: the output of an interrupted run."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from givalia_core.cli import acting, common
from givalia_core.client.filters import Acted
from givalia_core.errors import BadRequest


def given(*words: str) -> argparse.Namespace:
    parser = common.Parser()
    acting.arguments(parser)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words)


class Run:
    """Stands for a client's `cancel_all`: tells of these pages, and ends as if somebody had pressed Ctrl+C."""

    def __init__(self, *pages: Acted) -> None:
        self._pages = pages

    def __call__(self, *, on_page: Any, **_: Any) -> Acted:
        for page in self._pages:
            on_page(page)
        raise KeyboardInterrupt


PAGES = Acted({"cancelled": 500}, "cancel:-:9:1:2"), Acted({"cancelled": 998, "running": 2}, "cancel:-:9:1:4")


def test_a_run_that_is_broken_off_says_what_it_has_come_to(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        acting.run(given("--all"), Run(*PAGES))

    out, err = capsys.readouterr()
    assert out == ""
    assert "998 cancelled, 2 running so far" in err
    assert "--cursor cancel:-:9:1:4\n" in err


def test_programs_get_the_cursor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        acting.run(given("--all", "--json"), Run(*PAGES))

    told = json.loads(capsys.readouterr().out)
    assert told == {"counts": {"cancelled": 998, "running": 2}, "dry_run": False, "cursor": "cancel:-:9:1:4"}


@pytest.mark.parametrize("pages", [(), (*PAGES, Acted({"cancelled": 1_000}, None))])
def test_nothing_is_said_before_the_first_page_and_after_the_last(
    capsys: pytest.CaptureFixture[str], pages: tuple[Acted, ...]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        acting.run(given("--all", "--cursor", "cancel:-:9:1:2"), Run(*pages))

    assert capsys.readouterr() == ("", "")


def test_a_refused_cursor_is_not_recommended(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(**_: Any) -> Acted:
        raise BadRequest("'nonsense' is no cursor of such a run")

    with pytest.raises(BadRequest):
        acting.run(given("--all", "--cursor", "nonsense"), refuse)

    assert "nonsense" not in capsys.readouterr().err
