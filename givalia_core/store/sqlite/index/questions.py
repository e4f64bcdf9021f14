"""Reads of the index beside the path of a job: near and ready jobs of a route, and jobs that run, expire, or ended last."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import Final

from givalia_core.clock import Now
from givalia_core.model import Job
from givalia_core.store.base import VARIANTS_MAX, Near, Ready, Route, Span, Timer
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.lane import Lane
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.runs import Entry
from givalia_core.store.sqlite.index.slots import FAR
from givalia_core.store.sqlite.places import Damaged

_READ_AT_ONCE: Final = 64
_READ_TOGETHER: Final = 16  # Jobs that may all be large.


def _lanes_of(index: Index, route: Route) -> list[Lane]:
    """Return the lanes of a route on which jobs may wait."""
    return [lane for lane in index.routes.get(route, ()) if lane.low < FAR]


def ended_last(index: Index, keys: Iterable[str]) -> dict[str, Job]:
    """Return for each of these keys the job that ended last, if one has.

    Raises:
        Damaged: The chain of a key is broken.
    """
    found: dict[str, Job] = {}
    for key in keys:
        slot = _newest_slot(index, key)
        if slot is not None and (job := index.jobs.of((slot,)).get(slot)) is not None:
            found[key] = job
    return found


def _newest_slot(index: Index, key: str) -> int | None:
    slot = index.chains.head(key, index.names.slots(index.names.of_key(key))) or 0
    for _ in range(index.slots.most + 1):
        if not slot:
            return None
        if index.jobs.is_there(slot):
            return slot
        slot = index.chains.older(slot)
    raise Damaged("the ended jobs of a key go round in a circle")


def holder(index: Index, key: str) -> int | None:
    """Return the seq of the live job that has this key."""
    named = index.names.slots(index.names.of_key(key))
    slots = [slot for slot in named if index.jobs.is_there(slot) and not index.slots.is_past(slot)]
    jobs = index.jobs.of(slots).values()
    return next((job.seq for job in jobs if job.key == key and job.is_live), None)


def has_id(index: Index, job_id: bytes) -> bool:
    """Return whether a job has this id."""
    slots = [slot for slot in index.names.slots(index.names.of_id(job_id)) if index.jobs.is_there(slot)]
    return any(job.id == job_id for job in index.jobs.of(slots).values())


def variants(index: Index, plain: Route) -> list[Route]:
    """Return the variants of a route on which jobs wait, in the order of their texts."""
    start = f"{plain.target} "
    targets = [target for target in index.targets.get(plain.module, ()) if target.startswith(start)]
    routes = (Route(plain.module, target) for target in sorted(targets))
    found = (route for route in routes if any(next(index.lanes.walk(lane), None) for lane in _lanes_of(index, route)))
    return list(islice(found, VARIANTS_MAX))


def near(index: Index, span: Span, now: Now) -> Near:
    """Return the next dues on a route."""
    is_ready = False
    parts: list[list[Timer]] = []
    for lane in _lanes_of(index, span.route):
        now_us, shift_us = (now.wall_us, now.timer_ahead_us) if lane.on_wall else (now.timer_us, 0)
        is_ready = is_ready or bool(index.lanes.first(lane, now_us, 1))
        entries = index.lanes.after(lane, (now_us, FAR, 0), span.limit + 1)
        parts.append([Timer(when + shift_us, seq) for when, seq, _ in entries])
    timers = list(islice(merge(*parts), span.limit + 1))
    return Near(is_ready, timers[: span.limit], len(timers) > span.limit)


def ready_on(index: Index, route: Route, now: Now, limit: int) -> Ready:
    """Count the ready jobs of a route, up to `limit`."""
    left = limit
    dues: list[int] = []
    for lane in _lanes_of(index, route):
        until_us, shift_us = (now.wall_us, now.timer_ahead_us) if lane.on_wall else (now.timer_us, 0)
        for due_us, _, _ in index.lanes.first(lane, until_us, 1):
            dues.append(due_us + shift_us)
            left -= count_until(index.lanes, lane, until_us, left)
    return Ready(route, limit - left, min(dues, default=None))


def running(index: Index) -> Iterator[Job]:
    """Yield every running job."""
    slots = [slot for _, _, slot in index.lanes.after(index.running, (0, 0, FAR), index.slots.most)]
    for start in range(0, len(slots), _READ_TOGETHER):
        some = slots[start : start + _READ_TOGETHER]
        jobs = index.jobs.of(some)
        yield from (jobs[slot] for slot in some if slot in jobs)


def expired(index: Index, now: Now, limit: int) -> list[Job]:
    """Return waiting jobs whose `expires_at_us` has passed, at most `limit`."""
    found: list[Job] = []
    for on_wall, now_us in ((False, now.timer_us), (True, now.wall_us)):
        lane = index.expiring[on_wall]
        if lane.low > now_us:
            continue
        for when, _, slot in index.lanes.walk(lane):
            if when > now_us or len(found) >= limit:
                break
            if index.jobs.is_there(slot):
                # This lane keeps entries with former times of a job.
                jobs = index.jobs.of((slot,)).values()
                found += [job for job in jobs if job.is_expired(now) and job.expires_at_us == when]
    return found


def in_order(index: Index, lanes: Sequence[Lane]) -> Iterator[tuple[Entry, Job]]:
    """Yield the jobs of some lanes with their entries, in order, reading a few records at a time."""
    entries = merge(*(index.lanes.walk(lane) for lane in lanes))
    while some := list(islice(entries, _READ_AT_ONCE)):
        jobs = index.jobs.peek([slot for _, _, slot in some])
        yield from ((entry, jobs[entry[2]]) for entry in some if entry[2] in jobs)


def count_until(lanes: Lanes, lane: Lane, until: int, most: int) -> int:
    """Return how many entries count and are no later than `until`, at most `most`, without sorting anything."""
    if lane.low > until:
        return 0
    lanes.prune(lane)
    found = {slot for _, _, slot in lanes.counting(lane, islice(lane.front, bisect_right(lane.front, (until, FAR, 0))))}
    if lane.bound is not None and lane.bound[0] <= until:
        found.update(slot for _, _, slot in lanes.counting(lane, [entry for entry in lane.loose if entry[0] <= until]))
        for whens, seqs, slots, low, high in lanes.runs.stretches(lane.number, max(lane.bound, (lane.low, -1, 0))):
            if len(found) >= most:
                break
            due = slice(low, bisect_right(whens, until, low, high))
            entries = [entry for entry in zip(whens[due], seqs[due], slots[due], strict=True) if entry[2] < lanes.slots.end]
            lanes.slots.ensure(slot for _, _, slot in entries)
            found.update(slot for _, _, slot in lanes.counting(lane, entries))
    return min(len(found), most)
