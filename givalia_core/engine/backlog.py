"""The backlog of each module for operators: its workers, how late its jobs are, and the jobs that no worker can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from givalia_core.clock import Now
from givalia_core.routing import Routing
from givalia_core.store.base import Ready, Route

MODULES_MAX: Final = 2_000  # Modules that `info` shows; those with workers come first.


class Backlog:
    """The sums, module by module, of a store's ready jobs and of the workers that routing knows."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._since_us: dict[str, int] = {}
        self._untaken: dict[str, int] = {}
        self.ready: dict[str, int] = {}
        """The number of ready jobs of each module, as far as they were counted."""

    def add(self, found: Ready) -> None:
        """Take in the ready jobs of a route."""
        if not found.jobs:
            return
        module = found.route.module
        self.ready[module] = self.ready.get(module, 0) + found.jobs
        if found.since_us is not None:
            self._since_us[module] = min(found.since_us, self._since_us.get(module, found.since_us))
        if not _can_be_taken(self._routing, found.route):
            self._untaken[module] = self._untaken.get(module, 0) + found.jobs

    def modules(self, now: Now) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each module that is served or has ready jobs, with its map for `info`."""
        served = _workers_by_module(self._routing)
        names = dict.fromkeys((*served, *sorted(self.ready)))
        for module in list(names)[:MODULES_MAX]:
            yield (
                module,
                {
                    "workers": served.get(module, 0),
                    "ready_age_us": max(now.timer_us - self._since_us.get(module, now.timer_us), 0),
                    "untaken": self._untaken.get(module, 0),
                },
            )


def _can_be_taken(routing: Routing, route: Route) -> bool:
    """Return whether a connected worker, here or at another server, can take jobs from a route or variant."""
    return (route.module, route.target) in routing.takers or bool(routing.elsewhere.able(route))


def _workers_by_module(routing: Routing) -> dict[str, int]:
    """Return how many connected workers, here and at other servers, can run each module; 0: it is broken on all of them."""
    having, broken = routing.roster.having, routing.roster.broken
    served = {module: len(workers) - len(broken.get(module, ())) for module, workers in having.items()}
    for module in routing.elsewhere.modules():
        served[module] = served.get(module, 0) + 1
    return served
