"""The connected workers: by connection, name and process, and by the modules and routes that they serve.

Nothing here knows of jobs, versions or credits; `Routing` does, and asks here which workers serve a route.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from givalia_core.protocol.messages import Announce
from givalia_core.store.base import Route
from givalia_core.takers import WorkerSession

Sessions = dict[WorkerSession, None]


class Served(NamedTuple):
    """The routes that a worker served before it announced its modules, and those that it serves now."""

    before: dict[Route, None]
    now: dict[Route, None]


class Roster:
    """The indexes of the connected workers; each forgets a name as soon as no worker has it."""

    def __init__(self) -> None:
        self.sessions: dict[int, WorkerSession] = {}
        """The workers, by the number of their connection."""
        self.named: dict[str, Sessions] = {}
        """The workers of a name."""
        self.having: dict[str, Sessions] = {}
        """The workers that have announced a module."""
        self.broken: dict[str, Sessions] = {}
        """The workers that have announced a module and cannot serve it."""
        self.serving: dict[Route, Sessions] = {}
        """The workers that serve a route, whatever their version."""
        self.served: dict[WorkerSession, dict[Route, None]] = {}
        """The routes that a worker serves."""
        self._instances: dict[bytes, WorkerSession] = {}

    def join(self, session: WorkerSession) -> None:
        """Add a worker that has connected; it serves nothing before it announces."""
        self.sessions[session.conn] = session
        self.named.setdefault(session.join.name, {})[session] = None
        self._instances[session.join.instance] = session

    def of_instance(self, instance: bytes) -> WorkerSession | None:
        """Return the worker of a process."""
        return self._instances.get(instance)

    def leave(self, session: WorkerSession) -> None:
        """Forget a worker whose connection is gone; it must serve nothing any more."""
        del self.sessions[session.conn], self.served[session]
        _take_out(self.named, session.join.name, session)
        if self._instances.get(session.join.instance) is session:
            del self._instances[session.join.instance]

    def serve(self, session: WorkerSession, announced: dict[str, Announce]) -> Served:
        """Let a worker serve these modules and no others."""
        for module in session.announced:
            _take_out(self.having, module, session)
            _take_out(self.broken, module, session)
        session.announced = announced
        for module, each in announced.items():
            self.having.setdefault(module, {})[session] = None
            if each.broken is not None:
                self.broken.setdefault(module, {})[session] = None
        before, served = self.served.get(session, {}), dict.fromkeys(session.routes())
        self.served[session] = served
        for route in before.keys() - served.keys():
            _take_out(self.serving, route, session)
        for route in served:
            self.serving.setdefault(route, {})[session] = None
        return Served(before, served)


def _take_out(index: dict[Any, Sessions], name: Any, session: WorkerSession) -> None:
    if (sessions := index.get(name)) is not None:
        sessions.pop(session, None)
        if not sessions:
            del index[name]
