"""The workers connected to the other servers of a shared store, as those servers describe them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from givalia_core import specifiers
from givalia_core.protocol.messages import ANY
from givalia_core.store.base import Route


class Elsewhere:
    """The known workers of other servers; a hint, replaced each time this server polls the store."""

    def __init__(self) -> None:
        self.tell([])

    def tell(self, workers: list[dict[str, Any]]) -> None:
        """Replace the known workers."""
        self._workers = workers
        self._by_route: dict[tuple[str, str], list[dict[str, Any]]] = {}  # Built at the first question.

    @property
    def instances(self) -> set[bytes]:
        """The instance ids of these workers."""
        return {bytes.fromhex(worker["instance"]) for worker in self._workers}

    def modules(self) -> Iterator[str]:
        """Yield the modules that these workers can run, once for each worker."""
        for worker in self._workers:
            yield from worker["modules"]

    def takers(self, route: Route) -> list[dict[str, Any]]:
        """Return the workers that take jobs from a route without a specifier, whatever their version."""
        if self._workers and not self._by_route:
            for worker in self._workers:
                names = {worker["name"]} if worker["only_targeted"] else {worker["name"], ANY}
                for module in worker["modules"]:
                    for name in names:
                        self._by_route.setdefault((module, name), []).append(worker)
        return self._by_route.get(route, [])

    def able(self, route: Route) -> list[dict[str, Any]]:
        """Return the workers that take jobs from a route or variant."""
        plain, specifier = route.plain, route.specifier
        return [worker for worker in self.takers(plain) if specifier is None or _satisfies(worker, route.module, specifier)]


def _satisfies(worker: dict[str, Any], module: str, specifier: str) -> bool:
    return specifiers.satisfies(worker.get("versions", {}).get(module, ""), specifier)
