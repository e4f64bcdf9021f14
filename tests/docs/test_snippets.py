"""Every snippet of every page does what the page says: see `docs_player` for what is done with which."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_pages import PAGES, blocks, named
from docs_player import Player
from docs_stage import Stage

PLAYED = [page for page in PAGES if any(block.language in ("python", "toml", "console", "jsonl") for block in blocks(page))]
KNOWN = {"python", "toml", "console", "jsonl", "json", "hex", "text", "mermaid", "make", ""}


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


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_of_a_page_has_a_language_that_somebody_checks(page: Path) -> None:
    unknown = [(block.place, block.language) for block in blocks(page) if block.language not in KNOWN]

    assert not unknown
