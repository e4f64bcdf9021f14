"""Words for why no worker has taken a ready job. Their cost does not depend on the number of connected workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from givalia_core.headline import headline
from givalia_core.model import Job
from givalia_core.protocol.messages import ANY
from givalia_core.routing import Routing
from givalia_core.specifiers import satisfies
from givalia_core.store.base import Route
from givalia_core.takers import WorkerSession

NAMED_MAX: Final = 5  # Workers that an explanation names.
EXAMINED_MAX: Final = 100  # Workers that an explanation examines.


def not_taken(routing: Routing, job: Job) -> str:
    """Say why no worker has taken this ready job yet."""
    if _is_taken_elsewhere(routing, job):
        return "it is for a worker of another server to take, or about to be"
    if job.specifier is not None and (words := _no_version(routing, job)):
        return words
    if not routing.serving.get(Route(job.module, job.target_worker)):
        return _not_served(routing, job.module, job.target_worker)
    if routing.credits((job.module, job.target)) <= 0:
        could = list(islice(routing.serving[Route(job.module, job.target_worker)], EXAMINED_MAX))
        return f"every worker that could take it {'drains' if all(each.is_draining for each in could) else 'is full'}"
    return "it is about to be given to a worker"


def _not_served(routing: Routing, module: str, target_worker: str) -> str:
    """Say why no worker serves a route."""
    if target_worker != ANY:
        named = routing.roster.named.get(target_worker)
        if not named:
            return f"worker {target_worker} is not connected"
        return f"worker {target_worker} has no module {module}{_because(named, module)}"
    broken = routing.roster.broken.get(module, {})
    if len(routing.roster.having.get(module, ())) > len(broken):
        return f"every worker with module {module} takes only jobs for its own name"
    return f"no worker has module {module}{_because(broken, module)}"


def _no_version(routing: Routing, job: Job) -> str | None:
    """Explain that the workers that could take the job have other versions than it asks for; None if that is not so."""
    if (job.module, job.target) in routing.takers:
        return None
    found = dict.fromkeys(f"{name} with {version}" for name, version in islice(_versions(routing, job), EXAMINED_MAX))
    if not found:
        return None
    here = routing.serving.get(Route(job.module, job.target_worker), ())
    versions = {session.announced[job.module].version for session in here}  # There are fewer versions than workers.
    if job.specifier is not None and any(satisfies(version, job.specifier) for version in versions):
        return f"jobs ask for too many different versions of {job.module}; it waits until some of those are gone"
    named = ", ".join([*found][:NAMED_MAX]) + (f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else "")
    who = "no worker" if job.target_worker == ANY else f"no worker {job.target_worker}"
    return f"{who} has {job.module} {job.specifier}; connected: {named}"


def _versions(routing: Routing, job: Job) -> Iterator[tuple[str, str]]:
    """Yield the name and version of each worker that could take the job if its version fitted."""
    for session in routing.serving.get(Route(job.module, job.target_worker), ()):
        yield session.join.name, session.announced[job.module].version
    for worker in routing.elsewhere.takers(Route(job.module, job.target_worker)):
        yield worker["name"], worker.get("versions", {}).get(job.module, "an unknown version")


def _is_taken_elsewhere(routing: Routing, job: Job) -> bool:
    """Return whether no worker of this server takes the job, but a worker of another server does."""
    return (job.module, job.target) not in routing.takers and bool(routing.elsewhere.able(Route(job.module, job.target)))


def _because(sessions: Iterable[WorkerSession], module: str) -> str:
    for session in islice(sessions, EXAMINED_MAX):
        announced = session.announced.get(module)
        if announced is not None and announced.broken:
            return f" that works: on {session.join.name}, {headline(announced.broken)}"
    return ""
