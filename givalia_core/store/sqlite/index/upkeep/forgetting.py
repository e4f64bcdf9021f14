"""Forgetting: ended jobs whose time is over, and jobs that are set aside because their records are damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from givalia_core.model import CANCELLED, DEAD, DONE, Job, JobState
from givalia_core.store.base import Retention
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.questions import in_order
from givalia_core.store.sqlite.index.upkeep import filing
from givalia_core.store.sqlite.index.upkeep.sweeper import Sweeper
from givalia_core.store.sqlite.places import Damaged, Place
from givalia_core.store.sqlite.records import Forgotten

_PASSED_OVER: Final = 1_000  # After so many jobs that ended too recently to be forgotten, the rest waits.


def to_forget(index: Index, retention: Retention, in_state: Mapping[JobState, int]) -> list[tuple[Forgotten, Job]]:
    """Return the jobs that a commit with this retention forgets, with the records that say so; each job's own record allows it.

    Raises:
        Damaged: The index files a job among those to be forgotten, and its record says otherwise.
    """
    found: list[tuple[Forgotten, Job]] = []
    for states, keep in (((DONE, CANCELLED), retention.keep_ended), ((DEAD,), retention.keep_dead)):
        lanes = [index.ended[state] for state in states]
        beyond = sum(in_state[state] for state in states) - keep
        if beyond <= 0 and all(lane.low > retention.now_us for lane in lanes):
            continue
        passed_over = 0
        for (when, _, slot), job in in_order(index, lanes):
            if len(found) == retention.limit or passed_over == _PASSED_OVER or not (when <= retention.now_us or beyond > 0):
                break
            if job.state not in states or job.forget_at_us != when:
                raise Damaged(f"job {job.seq} is filed as one to be forgotten, and its record says otherwise")
            if not (when <= retention.now_us or job.ended_at_us <= retention.ended_before_us):
                passed_over += 1
                continue
            found.append((Forgotten(job.seq, index.slots.version(slot) + 1, slot), job))
            beyond -= 1
    return found


def forget(index: Index, sweeper: Sweeper, forgotten: Sequence[Forgotten], places: list[int]) -> None:
    """File jobs as forgotten, as the records at these places say."""
    sweeper.written.append((places, [record.seq for record in forgotten]))
    for record, place in zip(forgotten, places, strict=True):
        filing.forget(index, record.slot, place)
        sweeper.forget(record.slot)
    sweeper.is_behind = True


class Bad(NamedTuple):
    """A job with bad records, and the reason; `lane` names the lane that it is filed in."""

    slot: int  # The index's own.
    place: Place
    lane: str
    why: str


def take_bad(index: Index) -> list[Bad]:
    """Return the jobs that were found bad since the last time."""
    bad, index.jobs.bad = index.jobs.bad, {}
    places = {slot: index.slots.place(slot) for slot in bad}
    return [
        Bad(slot, places[slot], " ".join(map(str, index.lanes.filed(slot).key)), why)
        for slot, why in bad.items()
        if places[slot].seq
    ]


def drop_bad(index: Index, bad: Bad) -> None:
    """Drop a job whose records were set aside."""
    index.slots.free(bad.slot)
    index.jobs.drop(bad.slot)
