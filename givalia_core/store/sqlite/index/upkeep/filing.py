"""The ways to file jobs in the index that only a recovery and the forgetting of jobs need. Each may be done twice."""

from __future__ import annotations

from givalia_core.model import ENDED, Job
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.lane import Lane
from givalia_core.store.sqlite.index.slots import AT, PAST, SEQ, origin_of


def when_of(lane: Lane, job: Job) -> int:
    """Return the time under which a job is filed in the lane that it belongs to."""
    if lane.is_due:
        return job.due_at_us
    return job.forget_at_us or 0 if job.state in ENDED else 0


# After a restart.


def place(index: Index, job: Job, base: int) -> int:
    """Take a slot for a job, which is found only by its id until `enter`; the version in the slot is 0."""
    slot = index.slots.take()
    index.slots.write(slot, job.seq, origin_of(job.seq, 0, base), -1, 0, 0, 0, 0)
    index.names.add(index.names.of_id(job.id), slot)
    return slot


def note(index: Index, slot: int, version: int, at: int) -> None:
    """Write down that a placed job has a later record, at this place."""
    seq, base = index.slots.at[slot], index.slots.base(slot)
    index.slots.write(slot, seq, origin_of(seq, version, base), -1, 0, at, 0, 0)


def enter(index: Index, slot: int, job: Job) -> None:
    """Enter a placed job under its key and its requests, and in its lane."""
    lane = index.lane_of(job)
    when, at = when_of(lane, job), index.slots.at
    origin = origin_of(job.seq, job.version, index.slots.base(slot))
    ended_at = job.ended_at_us if job.state in ENDED else 0
    index.slots.write(slot, job.seq, origin, lane.number, when, at[slot + AT], at[slot + PAST], ended_at)
    _name_key(index, slot, job)
    index.naming.add_requests(slot, job)
    index.lanes.stand(slot, lane, when)
    index.stand_elsewhere(slot, job)


def stand_again(index: Index, slot: int, job: Job) -> None:
    """File again, after a kill, the entries of a job that were only in memory."""
    if job.state not in ENDED or index.chains.is_head(slot):
        _name_key(index, slot, job)
    index.naming.add_requests(slot, job)
    lane = index.lane_of(job)
    index.lanes.stand(slot, lane, when_of(lane, job))
    index.stand_elsewhere(slot, job)


def name_again(index: Index, slot: int, job: Job) -> None:
    """Enter the key of a live job again after a kill: its old state may be lost, since a change of params replaces its enq."""
    if job.key is not None and job.state not in ENDED:
        index.naming.add_key(slot, job.key)


def _name_key(index: Index, slot: int, job: Job) -> None:
    if job.key is None:
        return
    if job.state in ENDED:
        index.naming.name_ended(slot, job, index.names.of_key(job.key))
    else:
        index.naming.add_key(slot, job.key)


# Forgetting.


def forget(index: Index, slot: int, at: int) -> None:
    """File a job as forgotten by the record at this place; until `drop`, its slot only tells where its records are."""
    seq, origin, _, _, changed, past, ended_at = index.slots.at[slot : slot + 7].tolist()
    index.slots.write(slot, seq, origin, index.forgotten.number, at, changed, past, ended_at)
    index.lanes.stand(slot, index.forgotten, at)
    index.jobs.drop(slot)


def unname(index: Index, jobs: dict[int, Job]) -> None:
    """Remove the names of forgotten jobs: their records, which hold the names, will be gone.

    Ids stay, since a restart needs them.
    """
    for slot, job in jobs.items():
        if job.key is not None:
            hashed = index.names.of_key(job.key)
            if index.slots.at[slot + PAST]:
                index.chains.unlink(slot, hashed)
            index.names.remove(hashed, slot)
        for past in job.answered:
            if past.request != job.id:
                index.names.remove(index.names.of_request(past.request), slot)


def drop(index: Index, slot: int, job: Job | None) -> None:
    """Free the slot of an unnamed job; `job` is None if its records were gone already, after a kill."""
    if job is not None:
        index.names.remove(index.names.of_id(job.id), slot)
    index.slots.free(slot)
    index.jobs.drop(slot)


def has_seq(index: Index, slot: int, seq: int) -> bool:
    """Return whether a slot that was written down is still that of this job."""
    if not index.slots.is_slot(slot):
        return False
    index.slots.ensure((slot,))
    return index.slots.at[slot + SEQ] == seq
