"""The pages of the project, and their parts: blocks of code, headings, links, words in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README, README_JA = ROOT / "README.md", ROOT / "README.ja.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
EVERY = [*PAGES, README_JA, ROOT / "CHANGELOG.md", *sorted((ROOT / "changelog.d").glob("*.md"))]

_FENCE = re.compile(r"^ *```(?P<language>[a-z]*)(?P<info>[^\n]*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block: where it stands, its language, what follows the language on the fence, and its text."""

    place: str
    language: str
    info: str
    code: str


def named(page: Path) -> str:
    """A page's path as people write it."""
    return str(page.relative_to(ROOT))


def text(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    content = text(page)
    for found in _FENCE.finditer(content):
        line = content.count("\n", 0, found.start()) + 1
        yield Block(f"{named(page)}:{line}", found["language"], found["info"].strip(), found["code"])


def prose(page: Path) -> str:
    """Return the text of a page outside its code blocks."""
    return _FENCE.sub("", text(page))


def headings(page: Path) -> list[tuple[int, str]]:
    """The headings of a page: how deep, and the words."""
    return [(len(found[1]), found[2]) for found in _HEADING.finditer(prose(page))]


def section(page: Path, heading: str) -> str:
    """Return the text under a heading, up to the next of its depth or above; empty if there is no such heading."""
    content = text(page)
    outside = _FENCE.sub(lambda fence: " " * len(fence[0]), content)  # A shell's prompt is no heading.
    found = re.search(rf"^(#+) {re.escape(heading)}$", outside, re.MULTILINE)
    if found is None:
        return ""
    following = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(outside, found.end())
    return content[found.end() : following.start() if following else None]


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name, as GitHub makes them of headings."""
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for _, heading in headings(page))
    return set(words)


def links(page: Path) -> list[tuple[str, str]]:
    """The links of a page: the words, and where they lead."""
    return _LINK.findall(prose(page))


def is_row(line: str) -> bool:
    """Return whether a line belongs to a table."""
    return line.startswith("|")


def rows(table: str) -> list[list[str]]:
    """The rows of the first table in some text, without its head."""
    lines = list(takewhile(is_row, dropwhile(lambda line: not is_row(line), table.splitlines())))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
