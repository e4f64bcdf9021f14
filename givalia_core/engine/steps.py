"""The steps of one turn, each a type that leads to the next: arrived, read, decided.

`Arrived` reads from the store what the turn needs. `Read` decides. `Decided` is stored and, once durable, returns what may be
said. So no step can be taken too early, and the real server and the simulation run the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Final, NamedTuple

from givalia_core import variants
from givalia_core.clock import SECOND_US, Now, Timekeeper
from givalia_core.engine import answers, failures, leases, refusals, sharing, verbs, workers
from givalia_core.engine.batch import NOBODY, Batch
from givalia_core.engine.desk import Lease, Names, wanted
from givalia_core.engine.questions import KINDS
from givalia_core.engine.records import Effect, Gone, Input, Reply, Tell
from givalia_core.model import ENDED, RUNNING, WAITING, Job
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Heard, Kind
from givalia_core.store.base import Change, Commit, Found, Near, Retention, Route, Span, Store, Wanted
from givalia_core.store.shared import Keeping

if TYPE_CHECKING:  # The engine has the memory that these steps use.
    from givalia_core.engine.turn import Engine

EXPIRED_AT_ONCE: Final = 1_000
FORGOTTEN_AT_ONCE: Final = 200  # The record of each is read first.
NOTHING: Final = Commit()
NOTHING_UNKEPT: Final = Keeping()


class Arrived:
    """A turn whose inputs have arrived; its near windows must be filled (`spans`) before it can read the rest."""

    suspects: frozenset[bytes] = frozenset()  # Jobs that this turn reads again.
    learning: frozenset[Route] = frozenset()  # Routes whose variants this turn reads.

    def __init__(self, engine: Engine, inputs: Sequence[Input], now: Now) -> None:
        desk = engine.desk
        self.engine, self.now = engine, now
        engine.begin(now)
        self.inputs: list[Input] = [*desk.acts.take()] if desk.acts.submitted else []
        for given in inputs:
            if isinstance(given, Gone) or given.kind not in KINDS:
                self.inputs.append(given)
            else:
                engine.ask(given)
        if desk.aside.waiting:
            desk.aside.leave(inputs)
        self.is_sweeping = self.sweeps_rows = self.has_expired = engine.is_sweeping
        if engine.sharing is not None:
            self.sweeps_rows, self.has_expired = engine.sharing.begin(now), False
        self.spans: list[Span] = desk.routing.tick(now)

    def fill(self, nears: Sequence[Near]) -> None:
        """Fill the near windows with the store's answers to `spans`."""
        windows = self.engine.desk.routing.windows
        for span, near in zip(self.spans, nears, strict=True):
            windows[span.route].fill(near)

    def read(self, store: Store) -> Read:
        """Read from the store at once all that the turn needs."""
        engine, now, names = self.engine, self.now, Names()
        found = store.find(self._wanted(names), now)
        if names.requeued:
            # A requeue by id may meet a live job of the same key, and only the job itself says what its key is.
            keys = frozenset(key for job_id in names.requeued if job_id in found.ids and (key := found.ids[job_id].key))
            if keys:
                found.live.update(store.find(Wanted(keys=keys), now).live)
        expired = store.expired(now, EXPIRED_AT_ONCE) if self.has_expired else ()
        retention = engine.retention(now) if self.sweeps_rows or engine.forget_more else None
        return Read(self, found, expired, retention if retention is not None and store.forgettable(retention) else None)

    def _wanted(self, names: Names) -> Wanted:
        """Collect in `names` what the commands name; return the question for that and for jobs to lend."""
        engine, desk, standing = self.engine, self.engine.desk, self.engine.again.standing
        for given in self.inputs:
            if isinstance(given, Asked):
                asked = engine.again.unanswered(given) if standing else given
                answers.VERBS[given.kind].needs(names, asked, desk)
        if engine.also_keys or desk.suspects or names.resumed or desk.lapsed or desk.routing.unlearned or names.variants:
            self._add_doubts(names)
        claims = engine.lender.claims(names.reporting)
        may_lend = engine.sharing is not None and self._may_lend(engine.sharing)
        return wanted(names, claims, may_lend=may_lend)

    def _add_doubts(self, names: Names) -> None:
        """Add what memory is unsure of: other servers may have changed it, or a refusal has shown that it is wrong."""
        engine, desk = self.engine, self.engine.desk
        names.keys |= engine.also_keys
        self.suspects = frozenset(engine.pace.some(desk) | names.resumed)
        names.ids |= self.suspects | desk.lapsed
        names.variants |= desk.routing.unlearned
        self.learning = frozenset(names.variants)

    def _may_lend(self, sharing: sharing.Sharing) -> bool:
        """Return whether a job may become ready in this turn that is of no new command and no claim."""
        return bool(self.inputs or sharing.finds_strays or (self.is_sweeping and self.engine.desk.leases))


NO_IDS: Final[frozenset[bytes]] = frozenset()
NO_SEQS: Final[Set[int]] = frozenset()
NO_FRAMES: Final[Set[tuple[int, int]]] = frozenset()


class Read(NamedTuple):
    """A turn for which everything was read."""

    arrived: Arrived
    found: Found
    expired: Sequence[Job]  # Jobs whose `expires` has passed.
    retention: Retention | None  # None: no ended job may be forgotten.

    def decide(self) -> Decided:
        """Decide everything that arrived, then lend ready jobs to free workers."""
        arrived, found, engine, desk = self.arrived, self.found, self.arrived.engine, self.arrived.engine.desk
        if found.floor or arrived.learning or arrived.suspects:
            self._learn()
        batch = Batch(desk, found, arrived.now)
        standing = engine.again.standing
        for place, given in enumerate(arrived.inputs):
            if isinstance(given, Gone):
                self._leave(batch, given.conn)
            else:
                answers.answer(batch, given, place, standing.get((given.conn, given.request), NONE) if standing else NONE)
        batch.author = NOBODY
        if arrived.is_sweeping or self.expired or desk.lapsed or engine.sharing is not None:
            self._sweep(batch)
        engine.lender.lend(batch, has_numbers=engine.sharing is None or found.floor > 0)
        return Decided(arrived, batch, self.retention)

    def _leave(self, batch: Batch, conn: int) -> None:
        """Forget a connection that is gone, and its questions."""
        self.arrived.engine.questions.leave(conn)
        workers.lose(batch, conn, "its connection has ended")

    def _learn(self) -> None:
        """Take in what was read beside the jobs that the inputs name."""
        arrived, found, desk = self.arrived, self.found, self.arrived.engine.desk
        if found.floor:
            desk.use_numbers(found.floor)
        if arrived.learning:
            variants.learn(desk.routing, arrived.learning, found.variants)
        if arrived.suspects:
            arrived.engine.owed += sharing.review(desk, arrived.engine.pace, arrived.suspects, found.ids)

    def _sweep(self, batch: Batch) -> None:
        """End leases and jobs whose time has passed, and workers that missed two beats."""
        desk, now_us, others = batch.desk, batch.now.mono_us, self.arrived.engine.sharing
        if others is not None:
            others.care(batch)
        if desk.is_stuck:
            return
        if self.arrived.is_sweeping:
            for lease in [lease for lease in desk.leases.values() if lease.expires_mono_us <= now_us]:
                failures.expire(batch, lease)
            silent_us = now_us - desk.policy.lease_us * 2 // 3 - SECOND_US
            for conn in [conn for conn, worker in desk.routing.sessions.items() if worker.beat_mono_us < silent_us]:
                workers.silence(batch, conn)
            if desk.losses.gone:
                desk.losses.sweep(now_us - desk.policy.lease_us, desk.routing.elsewhere.instances)
        if self.expired or desk.lapsed:
            self._expire(batch)

    def _expire(self, batch: Batch) -> None:
        """End the jobs whose `expires` has passed."""
        lapsed = [job for job_id in batch.desk.lapsed if (job := self.found.ids.get(job_id)) is not None]
        batch.desk.lapsed.clear()
        for job in (*self.expired, *lapsed):
            current = batch.jobs.get(job.seq, job)
            if current.is_expired(batch.now):
                batch.expire(current)


NONE: Final[dict[int, Answer]] = {}


class Decided:
    """A turn that is decided; nothing of it is true before the commit.

    `changes` and `retention` must be committed if `must_commit` says so.
    """

    def __init__(self, arrived: Arrived, batch: Batch, retention: Retention | None) -> None:
        self.arrived, self.batch, self.retention = arrived, batch, retention
        self.changes: list[Change] = batch.changes() if batch.jobs else []
        self.must_commit = bool(self.changes) or arrived.engine.must_mark or retention is not None

    def store(self, store: Store, timer: Timekeeper) -> Commit:
        """Commit the turn, if there is anything to commit.

        Raises:
            StoreFull: Nothing of it is stored.
        """
        if not self.must_commit:
            return NOTHING
        mark = timer.mark(self.arrived.now, self.batch.desk.policy.lease_us)
        learned = self.batch.found.learned
        if learned is None:  # A third-party store may not take the argument.
            return store.commit(self.changes, mark, self.retention)
        return store.commit(self.changes, mark, self.retention, learned)

    def committed(self, commit: Commit, keeping: Keeping = NOTHING_UNKEPT) -> list[Effect]:
        """Update memory after the durable commit, and return what may now be said."""
        engine, batch, desk = self.arrived.engine, self.batch, self.batch.desk
        engine.must_mark, engine.forget_more = False, commit.forgotten >= FORGOTTEN_AT_ONCE
        refused, unanswerable = NO_SEQS, NO_FRAMES
        if commit.refused or keeping.decided or engine.also_keys or engine.again.has_state:
            refused, unanswerable = refusals.take_back(self, commit, keeping)
        if batch.unchanged or batch.resumed or batch.ends_hold:
            refusals.conclude(self, refused, keeping.busy)
        effects = self._first() if batch.progressed or engine.owed or desk.aside.waiting or desk.aside.holds else []
        lent = self._renew(refused, effects)
        for seq, effect in batch.effects:
            if not refused or refusals.may_be_said(seq, effect, refused, unanswerable):
                effects.append(effect)
        if lent:
            self._dispatch(lent, effects)
        return desk.acts.without_own(effects) if desk.acts.answers else effects

    def _first(self) -> list[Effect]:
        """Return the effects that leave first: progress, which a waiter must get before the end, and what is owed."""
        engine = self.arrived.engine
        effects = [*self.batch.progress(), *engine.owed, *self.batch.desk.aside.overdue(self.arrived.now)]
        engine.owed = []
        return effects

    def _renew(self, refused: Set[int], effects: list[Effect]) -> list[Job]:
        """Update memory from the stored changes, and answer the waiters of ended jobs; return the jobs that were lent."""
        batch, desk = self.batch, self.batch.desk
        lent: list[Job] = []
        for was, job in self.changes:
            if refused and job.seq in refused:
                batch.take_back_credits(job.seq)
                continue
            state = job.state
            desk.live += (state not in ENDED) - (was is not None and was.state not in ENDED)
            if job.seq in batch.claims and state is RUNNING:
                lent.append(job)
            elif was is None or was.state is RUNNING or state is not WAITING:
                self._renew_lease(job, effects)
        return lent

    def _renew_lease(self, job: Job, effects: list[Effect]) -> None:
        """Update memory from a change of a job that has run or has ended."""
        desk = self.batch.desk
        lease = desk.leases.get(job.id)
        if lease is not None and (job.state is not RUNNING or job.fence != lease.job.fence):
            del desk.leases[job.id]
            lease = None
        if job.state is RUNNING:
            if lease is not None:
                lease.job = job
            elif job.seq in self.batch.taken:
                workers.take_over(self.batch, job)
        elif job.state is not WAITING and job.id in desk.waits.by_job:
            end = verbs.end_of(job)
            effects += [Reply(conn, request, [end], job.id) for conn, request in desk.waits.end(job.id)]

    def _dispatch(self, lent: list[Job], effects: list[Effect]) -> None:
        """Begin the leases of the jobs that were lent, and send each worker its jobs."""
        batch, desk = self.batch, self.batch.desk
        lease_us = desk.policy.lease_us
        dispatches: dict[int, list[Item]] = {}
        for job in lent:
            room = batch.claims[job.seq]
            session = room.session
            if job.id in desk.leases:  # The lease of an attempt that has ended in this batch.
                del desk.leases[job.id]
            # A lease runs from the worker's last message, as the worker itself counts.
            desk.leases[job.id] = Lease(job, room, session.beat_mono_us + lease_us)
            dispatches.setdefault(session.conn, []).append(leases.dispatch_of(job, self.arrived.now))
        for conn, items in dispatches.items():
            worker = desk.routing.sessions.get(conn)
            if worker is not None:
                effects.append(Tell(conn, Kind.DISPATCH, [item(Heard(worker.heard, lease_us)), *items]))
