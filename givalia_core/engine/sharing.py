"""Sharing a store: other servers come and go, and change rows of the same store.

One server, the *keeper*, looks after each running job and knows its lease; the job's row names the keeper. Another server may
still settle the job (the fence decides), or take it over when the job's worker connects there or the keeper is gone. So leases
and awaited jobs in memory become *suspects*, and are read again, when the store refuses a change of this server or another
server says that it changed something. A store that is not shared never gives cause for any of this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Final

import msgpack

from givalia_core import variants
from givalia_core.clock import Now
from givalia_core.engine import failures, verbs, words, workers
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Lease
from givalia_core.engine.records import Effect, Reply, Tell, hook_of
from givalia_core.errors import NotFound
from givalia_core.model import ENDED, RUNNING, Job
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Kind, Stop
from givalia_core.store.shared import Event, News, Watched
from givalia_core.views import text_id

WATCH_US: Final = 2_500_000  # How often we poll for other servers' changes: the bound when their news is lost,
WATCH_DEAF_US: Final = 500_000  # and while no news arrives at all.
SWEEP_SHARED_US: Final = 10_000_000  # How often each of several servers sweeps expiries and retention.
AWAITED_LEAST: Final = 16  # Awaited jobs that are read again in one batch,
AWAITED_MOST: Final = 4_096  # if they are small.
REVIEWED_BYTES: Final = 4 << 20


class Pace:
    """The number of suspects that a batch reads: all that are leased here, and a few awaited ones, since each may be large."""

    def __init__(self) -> None:
        self._room = AWAITED_LEAST

    def some(self, desk: Desk) -> set[bytes]:
        """Return the suspects that the next batch reads."""
        suspects = desk.suspects
        if len(suspects) <= self._room:
            return set(suspects)
        leased = {job_id for job_id in suspects if job_id in desk.leases}
        return leased | set(islice(suspects - leased, self._room))

    def note(self, suspects: Iterable[bytes], found: Mapping[bytes, Job]) -> None:
        """Read fewer jobs in the next batch after large ones, and more again after small ones."""
        jobs = [job for job_id in suspects if (job := found.get(job_id)) is not None]
        count = sum(len(job.params) + len(job.result or b"") for job in jobs)
        if count > REVIEWED_BYTES:
            self._room = max(self._room // 2, AWAITED_LEAST)
        elif len(jobs) >= self._room // 2:
            self._room = min(self._room * 2, AWAITED_MOST)


class Sharing:
    """This server's knowledge of the other servers, and of when it must ask the store again."""

    def __init__(self, desk: Desk, now: Now) -> None:
        self.all_own = False
        """The next `watch` must name everything that this server looks after."""
        self._desk = desk
        self._watched: Watched | None = None  # The store's answer in the present turn.
        self._watched_us: int | None = None  # When the store was watched last; None: watch it next.
        self._is_deaf = False
        self._swept_rows_us = now.mono_us

    def hear(self, news: News, now: Now) -> None:
        """Take in the news of other servers; call this before the turn."""
        desk = self._desk
        variants.hear(desk.routing, news)
        desk.suspects.update(job_id for job_id in news.changed if job_id in desk.leases or job_id in desk.waits)
        if news.must_watch or (self._is_deaf and not news.is_deaf):
            self._watched_us = None
        if news.must_watch or news.changed or news.ready or news.nearing:
            desk.aside.hear(now)  # The change may have ended a hold.
        self._is_deaf = news.is_deaf

    def must_watch(self, now: Now) -> bool:
        """Return whether the store must be watched in this turn."""
        each_us = WATCH_DEAF_US if self._is_deaf else WATCH_US
        return self._watched_us is None or now.mono_us - self._watched_us >= each_us

    def begin(self, now: Now) -> bool:
        """Begin a turn; return whether it sweeps expiries and retention."""
        if self.must_watch(now):
            self._desk.routing.forget_windows()  # The others may have changed them unnoticed.
        is_sweeping = now.mono_us - self._swept_rows_us >= SWEEP_SHARED_US
        if is_sweeping:
            self._swept_rows_us = now.mono_us
        return is_sweeping

    def watch(self, watched: Watched | None, now: Now) -> list[Effect]:
        """Take in the store's answer to `watch`; return the hook calls that are owed for it."""
        desk, self._watched, self._watched_us = self._desk, watched, now.mono_us
        if watched is None:
            return []
        note_others(desk, watched)
        owed = hooks(desk, watched.events)
        if self.all_own:
            forget_unknown(desk, watched.own)
        desk.suspects.update(job.id for job in watched.own if job.stop_asked)
        if not self.all_own and watched.looked_after not in (None, len(desk.leases)):
            self.all_own, self._watched_us = True, None  # News was lost, or a commit came late: ask for all.
        else:
            self.all_own = False
        return owed

    @property
    def finds_strays(self) -> bool:
        """Return whether this turn found jobs that perhaps no server looks after."""
        return self._watched is not None and bool(self._watched.own or self._watched.strayed)

    def care(self, batch: Batch) -> None:
        """Take care of the jobs that no server looks after, if the store was watched in this turn."""
        if self._watched is not None:
            care(batch, self._watched)

    def end(self) -> None:
        """End the turn."""
        self._watched = None

    def suspend(self) -> None:
        """Note that the store went away: the next `watch` is due at once and names everything."""
        self._watched, self._watched_us, self.all_own = None, None, True


def about(desk: Desk) -> bytes:
    """Describe this server for the others: its workers and their modules, its hooks and its policy."""
    return words.pack(
        {
            # Without values that change from moment to moment: each change is written, and read by all the others.
            "workers": [{**worker, "processes": [], "runs": {}} for worker in words.own_workers(desk)],
            "modules": words.own_modules(desk),
            "hooks": sorted(desk.listening),
            "policy": desk.policy,
        }
    )


def note_others(desk: Desk, watched: Watched) -> None:
    """Take in the descriptions of the others, and note the jobs that memory can no longer trust."""
    desk.live = watched.live
    desk.others = [msgpack.unpackb(other) for other in watched.others if other]
    desk.routing.elsewhere.tell([worker for other in desk.others for worker in other["workers"]])
    desk.suspects.update(job_id for job_id in desk.waits if job_id not in desk.leases)
    if watched.has_lapsed:
        desk.suspects.update(desk.leases)


def review(desk: Desk, pace: Pace, suspects: Collection[bytes], found: dict[bytes, Job]) -> list[Effect]:
    """Update memory from these jobs as read, which is durable; return the effects that may be said now."""
    effects: list[Effect] = []
    desk.suspects -= set(suspects)
    pace.note(suspects, found)
    for job_id in suspects:
        job = found.get(job_id)
        if (lease := desk.leases.get(job_id)) is not None:
            effects += _review_lease(desk, lease, job)
        if job is None or job.state in ENDED:
            told = verbs.end_of(job) if job is not None else NotFound(f"no job has the id {text_id(job_id)} any more")
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
    """Take care of running jobs that no server looks after: the keeper is gone, or it is unknown if their batch was stored.

    Call this after the inputs: a worker has the jobs that it names. A job that this server lent to a connected worker, and that
    the worker did not name, never arrived there. Any other job's worker has a whole lease to connect.
    """
    sessions = [session for session in batch.desk.routing.sessions.values() if session.has_resumed]
    resumed = {session.join.instance for session in (*sessions, *batch.resumed)}
    least_us = batch.desk.policy.lease_us
    for found, lease_us in (*watched.strayed, *((job, least_us) for job in watched.own)):
        job = batch.unexpired(batch.see(found))
        if job.state is not RUNNING or job.fence != found.fence or job.id in batch.desk.leases or job.seq in batch.taken:
            continue
        if job.holder in resumed and job.keeper == batch.desk.me:
            failures.give_back(batch, job)
        else:
            workers.adopt(batch, job, None, max(lease_us, least_us))


def forget_unknown(desk: Desk, own: Iterable[Job]) -> None:
    """Suspect all leases in memory that are not of `own`, which are all jobs that this server looks after."""
    desk.suspects.update(desk.leases.keys() - {job.id for job in own})


def hooks(desk: Desk, events: Iterable[Event]) -> list[Effect]:
    """Return the hook calls owed for changes that were not made here."""
    return [
        hook_of(event.hook, event.job, **({} if event.running is None else {"running": event.running}))
        for event in events
        if event.hook in desk.listening
    ]
