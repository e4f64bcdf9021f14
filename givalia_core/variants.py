"""The variants of routes: the versions of a module that jobs ask for, as far as the store and other servers say.

A variant has a window in `Routing` while jobs wait there, and until the store is next asked after the last one has gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from givalia_core.routing import Routing
from givalia_core.store.base import VARIANTS_MAX, Route
from givalia_core.store.shared import News


def learn(routing: Routing, asked: Iterable[Route], found: Mapping[Route, Sequence[Route]]) -> None:
    """Take in the store's answer: jobs wait on these variants of the routes in `asked`, and on no others."""
    for plain in sorted(asked):
        variants = found.get(plain, ())
        for gone in routing.variants.get(plain, {}).keys() - set(variants):
            routing.close_window(gone)
        if len(variants) >= VARIANTS_MAX:
            routing.crowded.add(plain)
        for route in variants:
            if route not in routing.windows:
                routing.open_window(route)
        routing.unlearned.discard(plain)


def learn_more(routing: Routing) -> None:
    """Ask again about routes with more variants than may have windows: some may have gone."""
    routing.unlearned |= routing.crowded & routing.serving.keys()
    routing.crowded.clear()


def hear(routing: Routing, news: News) -> None:
    """Take in what other servers say of jobs that wait."""
    for route in news.ready:
        if (window := routing.window(route)) is not None:
            window.say_ready()
    for route, due_us in news.nearing.items():
        if (window := routing.window(route)) is not None:
            window.hear(due_us)
