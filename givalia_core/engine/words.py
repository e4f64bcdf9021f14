"""Descriptions of jobs for people and clients, in words and in maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack

from givalia_core import why as why_room
from givalia_core.clock import Now
from givalia_core.engine import remembered
from givalia_core.engine.desk import WAITS_MAX, WAITS_PER_CONNECTION, Desk
from givalia_core.headline import headline
from givalia_core.model import REQUESTS_MOST, RUNNING, WAITING, Job, JobState
from givalia_core.protocol import frames
from givalia_core.store.base import READY_COUNTED_TO
from givalia_core.takers import WorkerSession
from givalia_core.times import length_words, to_datetime

BRIEF_BYTES_MAX: Final = 1_024
HOLDS: Final = "this server holds: it lends no job until `givalia resume`"

_packer: Any = msgpack.Packer(autoreset=True)
pack: Callable[[Any], bytes] = _packer.pack
array_head: Callable[[int], bytes] = _packer.pack_array_header
map_head: Callable[[int], bytes] = _packer.pack_map_header


def why(desk: Desk, job: Job, now: Now) -> str:
    """Say in words why the job has not run, or what became of it."""
    words = _WHY[job.shown_state(now)](desk, job, now)
    hold = desk.aside.hold_of(job) if job.is_live else None
    return words if hold is None else f"{words}; {hold.words}"


def _why_waiting(desk: Desk, job: Job, now: Now) -> str:
    left = length_words(job.due_on_timer_us(now) - now.timer_us)
    if job.attempt:
        return f"attempt {job.attempt} of {_attempts_most(desk, job)} failed{_because(job)}; next try in {left}{_held(desk)}"
    return f"not due for {left}{_held(desk)}"


def _held(desk: Desk) -> str:
    return f"; {HOLDS}" if desk.is_holding else ""


def _attempts_most(desk: Desk, job: Job) -> int:
    return job.max_attempts or desk.policy.max_attempts


def _because(job: Job) -> str:
    """Return words, to append to others, for the error of the last failed attempt."""
    line = headline(job.error)
    return f": {line}" if line else ""


def _why_ready(desk: Desk, job: Job, now: Now) -> str:  # noqa: ARG001 - All of one table take the same.
    if desk.is_draining:
        return "due, but this server drains: it lends no job, and is back when it was restarted"
    if desk.is_holding:
        return f"due, but {HOLDS}"
    return "due, but " + why_room.not_taken(desk.routing, job)


def _why_running(desk: Desk, job: Job, now: Now) -> str:
    lease = desk.leases.get(job.id)
    is_lost = lease is not None and lease.session is None
    gone = (
        f", which is not connected; its lease ends in {length_words(max(lease.expires_mono_us - now.mono_us, 0))}"
        if lease and is_lost
        else ""
    )
    asked = "; it was asked to stop" if job.stop_asked else ""
    drains = ", which drains" if lease is not None and lease.session is not None and lease.session.is_draining else ""
    shown = () if lease is None or lease.session is None else lease.session.processes
    hook = next((f", in {each.stack}" for each in shown if each.job == job.id and each.state == "hook"), "")
    return f"attempt {job.attempt} is running on worker {job.worker}{drains}{hook}{gone}{asked}"


_DEAD_WORDS = {
    "expired": "it expired before a worker could start it",
    "failed": "it failed for good",
    "exhausted": "its last attempt failed",
    "child_died": "its process died too often",
}


def _why_dead(desk: Desk, job: Job, now: Now) -> str:
    words = _DEAD_WORDS.get(job.reason or "", job.reason or "it is dead")
    attempt = f"attempt {job.attempt} of {_attempts_most(desk, job)}, " if job.attempt else ""
    ended_at = to_datetime(job.ended_on_wall_us(now) or 0).isoformat(" ", "seconds")
    return f"{words} ({attempt}{ended_at}){_because(job)}"


_WHY: Final[dict[JobState, Callable[[Desk, Job, Now], str]]] = {
    JobState.WAITING: _why_waiting,
    JobState.READY: _why_ready,
    JobState.RUNNING: _why_running,
    JobState.DONE: lambda _desk, _job, _now: "it is done",
    JobState.DEAD: _why_dead,
    JobState.CANCELLED: lambda _desk, _job, _now: "it was cancelled",
}


def status(desk: Desk, job: Job, now: Now) -> dict[str, Any]:
    """Return the map that answers `stat` and `list`."""
    state = job.shown_state(now)
    lease = desk.leases.get(job.id) if job.state is RUNNING else None
    timeleft_us = None
    if job.state is WAITING:
        timeleft_us = max(job.due_on_timer_us(now) - now.timer_us, 0)
    return {
        "id": job.id,
        "key": job.key,
        "module": job.module,
        "target_worker": job.target_worker,
        "version": job.specifier,
        "priority": job.priority,
        "state": str(state),
        "enq_at_us": job.enq_at_us,
        "due_us": job.due_on_wall_us(now),
        "started_at_us": job.started_at_us or None,
        "ended_at_us": job.ended_on_wall_us(now),
        "timeleft_us": timeleft_us,
        "attempts": job.attempt,
        "max_attempts": job.max_attempts or desk.policy.max_attempts,
        "worker": job.worker,
        "progress": None if lease is None else lease.progress,
        "stop_asked": job.stop_asked,
        "reason": job.reason,
        "error": job.error,
        "result_error": job.result_error,
        "why": why(desk, job, now),
    }


def brief(job: Job, *, params: bool) -> Job:
    """Return the job for a listing: without its result, and without its params unless they are asked for."""
    return job.changed(params=job.params if params else b"", result=None)


def info(desk: Desk, ready: int, described: dict[str, Any], now: Now) -> dict[str, Any]:
    """Return the map that answers `info`, without the jobs by module."""
    policy = desk.policy
    return {
        "durability": desk.durability,
        "draining": desk.is_draining,
        "holding": desk.is_holding,
        "store_full": desk.is_full,
        "now_us": now.wall_us,
        "live": desk.live,
        "ready": f"{READY_COUNTED_TO:,}+" if ready >= READY_COUNTED_TO else str(ready),
        "running": len(desk.leases),
        "workers": len(desk.routing.sessions),
        "stale_reports": desk.stale,
        "leases_lost": desk.losses.leases,
        "workers_lost": desk.losses.workers,
        "remembered": {
            "answers": len(desk.remembered),
            "bytes": desk.remembered.bytes,
            "bytes_max": remembered.BYTES_MAX,
        },
        **desk.about,
        "store": described,
        "limits": {
            "frame_bytes": frames.FRAME_BYTES_MAX,
            "fields_bytes": frames.FIELDS_BYTES_MAX,
            "items_per_frame": frames.ITEMS_MAX,
            "values_per_item": frames.VALUES_MAX,
            "params_bytes": frames.PARAMS_BYTES_MAX,
            "result_bytes": frames.RESULT_BYTES_MAX,
            "key_bytes": 255,
            "live_jobs": policy.live_max,
            "remembered_per_job": REQUESTS_MOST,
            "waits": WAITS_MAX,
            "waits_per_connection": WAITS_PER_CONNECTION,
        },
        "defaults": {
            "max_attempts": policy.max_attempts,
            "lease_us": policy.lease_us,
            "backoff_us": [policy.backoff_us, policy.backoff_max_us],
            "retain_us": policy.retain_us,
            "retain_max": policy.retain_max,
            "retain_dead_us": policy.retain_dead_us,
            "retain_dead_max": policy.retain_dead_max,
        },
    }


def each_worker(desk: Desk) -> Iterator[dict[str, Any]]:
    """Yield a map for each worker that is connected to this server, or to another one of a shared store."""
    for session in list(desk.routing.sessions.values()):
        yield _worker(desk, session)
    for other in list(desk.others):
        yield from other["workers"]


def _worker(desk: Desk, session: WorkerSession) -> dict[str, Any]:
    runs = Counter(lease.job.module for lease in desk.leases.of_holder(session.join.instance) if lease.session is session)
    return {**session.describe(), "runs": dict(runs), **desk.peers.get(session.conn, {})}


def own_workers(desk: Desk) -> list[dict[str, Any]]:
    """Return a map for each worker that is connected to this server."""
    return [_worker(desk, session) for session in desk.routing.sessions.values()]


def each_module(desk: Desk) -> Iterator[dict[str, Any]]:
    """Yield a map for each module of each worker that is connected to this server, or to another one of a shared store."""
    for session in list(desk.routing.sessions.values()):
        yield from _modules_of(session)
    for other in list(desk.others):
        yield from other["modules"]


def own_modules(desk: Desk) -> list[dict[str, Any]]:
    """Return a map for each module of each worker that is connected to this server."""
    return [module for session in desk.routing.sessions.values() for module in _modules_of(session)]


def _modules_of(session: WorkerSession) -> Iterator[dict[str, Any]]:
    for announced in list(session.announced.values()):
        yield {
            "module": announced.name,
            "worker": session.join.name,
            "pid": session.join.pid,
            "distribution": announced.distribution,
            "version": announced.version,
            "isolation": announced.isolation,
            "broken": announced.broken,
        }
