"""Clients in a fork of their process: each begins anew, and leaves the connection to the parent."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

WORDS: Final = "the process was forked, and the call is its parent's"


class Forkable(Protocol):
    """State that belongs to one process."""

    def begin_anew(self) -> None:
        """Forget what is the parent's; called in the child before any other code there."""


_all: Final[weakref.WeakSet[Forkable]] = weakref.WeakSet()


def begins_anew(what: Forkable) -> None:
    """Have `begin_anew` called in each fork, as long as this lives."""
    _all.add(what)


def _in_child() -> None:
    for each in list(_all):
        each.begin_anew()


os.register_at_fork(after_in_child=_in_child)
