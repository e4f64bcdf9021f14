"""The types of the store seam for where jobs wait: routes, their next dues, and their ready jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from givalia_core.model import Job, split_target

READY_COUNTED_TO: Final = 10_000  # Ready jobs to count in all;
READY_COUNTED_LEAST: Final = 100  # after that, so many on each route,
READY_ROUTES_MAX: Final = 5_000  # until so many routes are counted.
VARIANTS_MAX: Final = 50  # Variants of one route: each costs a little in every batch, so an enq that needs another is refused.


class Route(NamedTuple):
    """A route: jobs of this module with this `Job.target`.

    A *variant* of a route is the same route with a specifier. Stores order texts by code points: the variants of a route stand
    together, directly behind the route.
    """

    module: str
    target: str

    @property
    def specifier(self) -> str | None:
        """The versions of the module's distribution that may run the jobs; None: any."""
        return split_target(self.target)[1]

    @property
    def plain(self) -> Route:
        """The same route without a specifier."""
        return Route(self.module, split_target(self.target)[0])


class Timer(NamedTuple):
    """A waiting job that is not due yet, as the near window keeps it; sorts by due, then in the order of enq."""

    due_us: int  # On the timer clock.
    seq: int


class Span(NamedTuple):
    """One question about a route: which `limit` jobs fall due next."""

    route: Route
    limit: int


class Near(NamedTuple):
    """The answer to a `Span`: whether a job is due already, the next timers, and whether there are more."""

    is_ready: bool
    timers: list[Timer]
    more: bool


class Ready(NamedTuple):
    """The number of ready jobs of a route, and the due of the first on the timer clock; None if none is ready."""

    route: Route
    jobs: int
    since_us: int | None


class ReadyBudget:
    """The ready jobs that `Store.ready` may still count, and the routes on which it may count them."""

    def __init__(self) -> None:
        self._left = READY_COUNTED_TO
        self._routes = 0

    @property
    def is_spent(self) -> bool:
        """Return whether no further route is counted."""
        return not self._left and self._routes >= READY_ROUTES_MAX

    @property
    def limit(self) -> int:
        """The most jobs to count on the next route."""
        return max(self._left, READY_COUNTED_LEAST)

    def count(self, jobs: int) -> None:
        """Note the jobs of a route."""
        self._routes += 1
        self._left = max(self._left - jobs, 0)


def by_module(found: Iterable[Ready]) -> dict[str, int]:
    """Sum up the ready jobs of each module; modules without any are left out."""
    sums: dict[str, int] = {}
    for (module, _), jobs, _ in found:
        if jobs:
            sums[module] = sums.get(module, 0) + jobs
    return sums


class Share:
    """The bytes of params that the claims of one `find` may bring, used up job by job."""

    def __init__(self, claimed_bytes: int) -> None:
        self._left = claimed_bytes
        self.cut: set[Route] = set()

    def take(self, route: Route, jobs: list[Job], more: Iterable[Job]) -> bool:
        """Add the next jobs of a route while there is room; return False if some were left out."""
        more = list(more)
        count = sum([len(job.params) for job in more])
        if count <= self._left:
            self._left -= count
            jobs += more
            return True
        for job in more:
            if jobs and self._left <= 0:
                self.cut.add(route)
                return False
            self._left -= len(job.params)
            jobs.append(job)
        return True
