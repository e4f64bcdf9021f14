"""Every snippet of every page does what the page says: see `docs_player` for the treatment of each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_pages import PAGES, README_JA, blocks, named
from docs_player import Player
from docs_stage import Stage

PLAYED = [page for page in PAGES if any(block.language in ("python", "toml", "console", "jsonl") for block in blocks(page))]
LEAST_S = 30.0  # Shorter delays and deadlines depend on the speed of the machine.
_SECONDS = re.compile(
    r'(?:\btime=|--time |"time": ?|\bexpires=|--expires |\bwait\(timeout=|--wait-timeout )' r"(\d[\d.]*)(?![\d.]| \*)"
)
KNOWN = {"python", "toml", "console", "jsonl", "json", "hex", "text", "mermaid", "make", "yaml", ""}
"""What is YAML is for Prometheus, which reads it in `tests/system/test_alerts.py`."""


@pytest.mark.parametrize("page", PLAYED, ids=named)
def test_every_snippet_of_a_page_works(page: Path, stage: Stage, tmp_path: Path) -> None:
    with Player(stage, tmp_path) as player:
        assert player.play(page)
        written = sorted(tmp_path.glob("*/pyproject.toml"))
        if not written:
            return
        player.install_written()
        plugins, modules = player.ask("plugins"), player.ask("modules", "--local")

    for project in written:
        distribution = project.parent.name
        mine = [found["error"] for found in plugins if found["distribution"] == distribution]
        mine += [found["broken"] for found in modules if found["distribution"] == distribution]
        assert mine, f"{distribution} has neither a plugin nor a module"
        assert mine == [None] * len(mine)


@pytest.mark.parametrize("page", [*PLAYED, README_JA], ids=named)
def test_no_page_depends_on_how_fast_its_commands_follow_each_other(page: Path) -> None:
    """A job that is due in a second has run before the next command of a page, where the machine is busy."""
    soon = [
        f"{block.place}: {found[0]}"
        for block in blocks(page)
        for found in _SECONDS.finditer(block.code)
        if 0 < float(found[1]) < LEAST_S
    ]

    assert not soon


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_of_a_page_has_a_language_that_somebody_checks(page: Path) -> None:
    unknown = [(block.place, block.language) for block in blocks(page) if block.language not in KNOWN]

    assert not unknown
