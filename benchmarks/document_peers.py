"""The part of `docs/benchmarks.md` about the peers, from what `make bench-peers` wrote.

It knows no more of that file than that its `sections` hold figures as those of our own runs do; without the file there is no
such part.
"""

from __future__ import annotations

import json
from pathlib import Path

from markdown import measured, table


def part(file: Path) -> str:
    """The part of the page; empty if the peers were not measured."""
    if not file.exists():
        return ""
    run = json.loads(file.read_text(encoding="utf-8"))
    parts = ["## Beside others\n"]
    for title, section in run["sections"].items():
        rows = [(figure["name"], measured(figure)) for figure in section["figures"]]
        parts.append(f"### {title}\n\n{section.get('words', '')}\n\n{table(('figure', 'measured'), rows)}")
    return "\n".join(parts)
