"""The output of a benchmark while it works."""

from __future__ import annotations

import sys


def say(words: str) -> None:
    """Print a progress line on standard error: standard output is for the figures."""
    print(f"  {words}", file=sys.stderr, flush=True)
