"""What an engine does because it is not alone: other servers change rows of the same store, come, and go.

Each running job is looked after by one server, its *keeper*, which knows its lease; the row names it. Another server may
settle the job all the same (the fence decides), or take it over when its worker turns up there or its keeper is gone. So what
memory says of leases and of jobs that are waited for is suspect when a change of this server was refused or when another says
that it changed something, and is then read again. A store that is not shared never gives cause for any of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

import msgpack

from givalia_core.engine import leases, words
from givalia_core.engine.desk import Batch, Desk, Lease
from givalia_core.engine.records import Effect, Reply, Tell, hook_of
from givalia_core.errors import NotFound
from givalia_core.model import ENDED, RUNNING, Job
from givalia_core.protocol.messages import Kind, Stop, item
from givalia_core.store.base import Event, News, Watched
from givalia_core.views import text_id

AWAITED_LEAST: Final = 16  # Awaited jobs that are read again in one batch,
AWAITED_MOST: Final = 4_096  # if they are small.
REVIEWED_BYTES: Final = 4 << 20


class Pace:
    """How many suspects a batch reads: all that are leased here, and a few that are waited for, each of which may be large."""

    def __init__(self) -> None:
        self._room = AWAITED_LEAST

    def some(self, desk: Desk) -> set[bytes]:
        """The suspects that the next batch reads."""
        suspects = desk.suspects
        if len(suspects) <= self._room:
            return set(suspects)
        leased = {job_id for job_id in suspects if job_id in desk.leases}
        return leased | set(islice(suspects - leased, self._room))

    def note(self, suspects: Iterable[bytes], found: Mapping[bytes, Job]) -> None:
        """Read fewer in the next batch after large ones, and more again after small ones."""
        jobs = [job for job_id in suspects if (job := found.get(job_id)) is not None]
        count = sum(len(job.params) + len(job.result or b"") for job in jobs)
        if count > REVIEWED_BYTES:
            self._room = max(self._room // 2, AWAITED_LEAST)
        elif len(jobs) >= self._room // 2:
            self._room = min(self._room * 2, AWAITED_MOST)


def hear(desk: Desk, news: News) -> None:
    """Take in what other servers say they did."""
    desk.routing.hear(news)
    desk.suspects.update(job_id for job_id in news.changed if job_id in desk.leases or job_id in desk.waits)


def about(desk: Desk) -> bytes:
    """What this server tells the others about itself: its workers and their modules, its hooks, what it decides by."""
    return words.pack(
        {
            # Without what changes from moment to moment, for each change is written and read by all the others.
            "workers": [{**worker, "processes": [], "runs": {}} for worker in words.own_workers(desk)],
            "modules": words.own_modules(desk),
            "hooks": sorted(desk.listening),
            "policy": desk.policy,
        }
    )


def note_others(desk: Desk, watched: Watched) -> None:
    """Keep what is known of the others, and what can no longer be trusted."""
    desk.live = watched.live
    desk.others = [msgpack.unpackb(other) for other in watched.others if other]
    desk.routing.elsewhere.tell([worker for other in desk.others for worker in other["workers"]])
    desk.suspects.update(job_id for job_id in desk.waits if job_id not in desk.leases)
    if watched.has_lapsed:
        desk.suspects.update(desk.leases)


def review(desk: Desk, suspects: Iterable[bytes], found: dict[bytes, Job]) -> list[Effect]:
    """Bring memory up to what was read of these jobs, which is durable; return what may be said of it now."""
    effects: list[Effect] = []
    for job_id in suspects:
        job = found.get(job_id)
        if (lease := desk.leases.get(job_id)) is not None:
            effects += _review_lease(desk, lease, job)
        if job is None or job.state in ENDED:
            told = words.end(job) if job is not None else NotFound(f"no job has the id {text_id(job_id)} any more")
            effects += [Reply(*waiter, [told], job_id) for waiter in desk.waits.end(job_id)]
    return effects


def _review_lease(desk: Desk, lease: Lease, job: Job | None) -> list[Effect]:
    known, session = lease.job, lease.session
    if job is None or job.state is not RUNNING or job.fence != known.fence or job.keeper != desk.me:
        del desk.leases[known.id]
        if lease.room is not None:
            lease.room.give_back()
        return []
    lease.job = job
    if not job.stop_asked or known.stop_asked:
        return []
    if session is not None:
        return [Tell(session.conn, Kind.STOP, [item(Stop(job.id, job.fence))])]
    return hooks(desk, [Event("on_cancel", job, running=True)])


def care(batch: Batch, watched: Watched) -> None:
    """See to running jobs that nobody looks after: their keeper is gone, or they were lent in a batch of unknown end.

    Call it after the inputs: a worker that names a job has it. What this server lent itself, to a worker that is connected and
    did not name it, never got there. Of any other job nothing is known, so its worker has a whole lease to turn up.
    """
    sessions = [session for session in batch.desk.routing.sessions.values() if session.has_resumed]
    resumed = {session.join.instance for session in (*sessions, *batch.resumed)}
    least_us = batch.desk.policy.lease_us
    for found, lease_us in (*watched.strayed, *((job, least_us) for job in watched.own)):
        job = batch.seen(found)
        if job.state is not RUNNING or job.fence != found.fence or job.id in batch.desk.leases or job.seq in batch.taken:
            continue
        if job.holder in resumed and job.keeper == batch.desk.me:
            leases.give_back(batch, job)
        else:
            leases.adopt(batch, job, None, max(lease_us, least_us))


def forget_unknown(desk: Desk, own: Iterable[Job]) -> None:
    """All that this server looks after is `own`: whatever else memory has is suspect."""
    desk.suspects.update(desk.leases.keys() - {job.id for job in own})


def hooks(desk: Desk, events: Iterable[Event]) -> list[Effect]:
    """The calls of hooks that changes owe which were not made here."""
    return [
        hook_of(event.hook, event.job, **({} if event.running is None else {"running": event.running}))
        for event in events
        if event.hook in desk.listening
    ]
