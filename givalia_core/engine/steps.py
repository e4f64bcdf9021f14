"""The steps of one turn, each a type that leads to the next: arrived, read, decided; after the commit, what may be said.

None of them asks a store: `Arrived` says what must be read, `Read` takes it, `Decided` says what must be committed. So a step
cannot be taken too early, and the same steps run under the real server and under the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from givalia_core.clock import SECOND_US, STEP_US, Now
from givalia_core.engine import answers, leases, sharing, words
from givalia_core.engine.batch import NOBODY, Batch, Names, wanted
from givalia_core.engine.desk import Lease
from givalia_core.engine.questions import KINDS
from givalia_core.engine.records import Effect, Gone, Input, Reply, Tell
from givalia_core.model import ENDED, RUNNING, WAITING, Job
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Dispatch, Heard, Kind, Progressed, item
from givalia_core.store.base import Change, Commit, Found, Hold, Keeping, Near, Retention, Route, Span, Wanted

if TYPE_CHECKING:  # The engine is made of these steps' memory.
    from givalia_core.engine.turn import Engine

GAP_US: Final = 2 * SECOND_US  # A silence of the loop for longer was a pause of the process: nobody could beat (K5).
SWEEP_US: Final = SECOND_US  # How often leases, expiries and retention are looked after.
EXPIRED_AT_ONCE: Final = 1_000
FORGOTTEN_AT_ONCE: Final = 200  # The record of each is read first.
NOTHING_UNKEPT: Final = Keeping()


class Asks(NamedTuple):
    """What must be read before a turn can be decided: jobs by name, jobs to lend, and jobs to end or to forget."""

    wanted: Wanted
    requeued: frozenset[bytes]  # Ids whose keys must be looked up as well.
    expired: int
    retention: Retention | None


class Arrived:
    """A turn whose inputs have arrived; the near windows must be filled (`spans`) before it can say what else it must read."""

    def __init__(self, engine: Engine, inputs: Sequence[Input], now: Now) -> None:
        desk = engine.desk
        gap_us = now.mono_us - engine.now.mono_us
        if gap_us > GAP_US:
            engine.bridge(gap_us, now)
        elif desk.held_up_us:
            engine.forget_gap(now)
        if desk.remembered.bytes:
            desk.remembered.forget(now.mono_us, desk.held_up_us)
        if abs(now.timer_us - now.wall_us - engine.ahead_us) > STEP_US:
            engine.take_step(now)
        self.engine, self.now = engine, now
        engine.now = now
        self.inputs: list[Input] = [*desk.acts.take()] if desk.acts.submitted else []
        for given in inputs:
            if isinstance(given, Gone):
                engine.questions.leave(given.conn)
                self.inputs.append(given)
            elif given.kind in KINDS:
                engine.ask(given)
            else:
                self.inputs.append(given)
        if desk.aside.waiting:
            desk.aside.leave(inputs)
        desk.routing.begin(desk.clogged)
        self.is_sweeping = self.sweeps_rows = self.has_expired = now.mono_us - engine.swept_us >= SWEEP_US
        if self.is_sweeping:
            engine.swept_us = now.mono_us
            if desk.routing.crowded:
                desk.routing.learn_more()
        if engine.sharing is not None:
            self.sweeps_rows, self.has_expired = engine.sharing.begin(now), False
        self.suspects: frozenset[bytes] = frozenset()  # Jobs that this turn reads again.
        self.learning: frozenset[Route] = frozenset()  # Routes whose variants this turn reads.
        self.spans: list[Span] = desk.routing.tick(now)

    def fill(self, nears: Sequence[Near]) -> None:
        """Give the near windows what the store has for `spans`."""
        windows = self.engine.desk.routing.windows
        for span, near in zip(self.spans, nears, strict=True):
            windows[span.route].fill(near)

    def asks(self) -> Asks:
        """Return what the commands name, and the jobs that may be lent."""
        engine, desk, names = self.engine, self.engine.desk, Names()
        if engine.also_keys:
            names.keys |= engine.also_keys
        standing = engine.again.standing
        for given in self.inputs:
            if isinstance(given, Asked):
                asked = engine.again.unanswered(given) if standing else given
                answers.VERBS[given.kind].needs(names, asked, desk)
        if desk.suspects or names.resumed:
            self.suspects = frozenset(engine.pace.some(desk) | names.resumed)
            names.ids |= self.suspects
        if desk.lapsed:
            names.ids |= desk.lapsed
        if desk.routing.unlearned:
            names.variants |= desk.routing.unlearned
        if names.variants:
            self.learning = frozenset(names.variants)
        claims = engine.lender.claims(names.reporting)
        may_lend = engine.sharing is not None and self._may_lend(engine.sharing)
        forgets = self.sweeps_rows or engine.forget_more
        return Asks(
            wanted(names, claims, may_lend=may_lend),
            frozenset(names.requeued) if names.requeued else NO_IDS,
            EXPIRED_AT_ONCE if self.has_expired else 0,
            engine.retention(self.now) if forgets else None,
        )

    def _may_lend(self, sharing: sharing.Sharing) -> bool:
        """Return whether a job may become ready in this turn besides those of new commands and of claims."""
        return bool(self.inputs or sharing.finds_strays or (self.is_sweeping and self.engine.desk.leases))


NO_IDS: Final[frozenset[bytes]] = frozenset()


class Read:
    """A turn for which everything was read.

    Args:
        arrived: The step before.
        found: The jobs that were asked for.
        expired: Jobs whose `expires` has passed.
        forgettable: Whether any ended job may be forgotten.
    """

    def __init__(self, arrived: Arrived, found: Found, expired: Sequence[Job], *, forgettable: bool) -> None:
        self.arrived, self.found, self.expired, self.forgettable = arrived, found, expired, forgettable

    def decide(self) -> Decided:
        """Decide everything that arrived, then lend what is ready to the workers that are free."""
        arrived, found = self.arrived, self.found
        engine, desk = arrived.engine, arrived.engine.desk
        if found.floor:
            desk.use_numbers(found.floor)
        if arrived.learning:
            desk.routing.learn(arrived.learning, found.variants)
        batch = Batch(desk, found, arrived.now)
        if arrived.suspects:
            engine.owed += sharing.review(desk, engine.pace, arrived.suspects, found.ids)
        standing = engine.again.standing
        for place, given in enumerate(arrived.inputs):
            if isinstance(given, Gone):
                leases.lose(batch, given.conn, "its connection has ended")
            else:
                answers.answer(batch, given, place, standing.get((given.conn, given.request), NONE) if standing else NONE)
        batch.author = NOBODY
        if engine.sharing is not None:
            engine.sharing.care(batch)
        if not desk.is_stuck:
            if arrived.is_sweeping:
                leases.sweep(batch)
            if self.expired or desk.lapsed:
                self._expire(batch)
        # Whoever shares a store lends with numbers of this batch only: those of an earlier one may be below another's. And a
        # worker that has just announced may have more urgent jobs on variants that nobody had a window for.
        has_numbers = engine.sharing is None or found.floor
        if has_numbers and not (desk.is_draining or desk.is_holding or desk.is_stuck or desk.routing.unlearned):
            engine.lender.lend(batch)
        else:
            engine.lender.hold()
        return Decided(arrived, batch, engine.retention(arrived.now) if self.forgettable else None)

    def _expire(self, batch: Batch) -> None:
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

    def committed(self, commit: Commit, keeping: Keeping = NOTHING_UNKEPT) -> list[Effect]:
        """The commit is durable: renew what memory believes, and return what may now be said.

        Args:
            commit: What became of the changes.
            keeping: What a shared store did not keep of the answers that changed nothing.
        """
        engine, batch, desk = self.arrived.engine, self.batch, self.arrived.engine.desk
        engine.must_mark = False
        engine.forget_more = commit.forgotten >= FORGOTTEN_AT_ONCE
        held: dict[int, Hold] = {}
        refused: set[int] = set()
        if commit.refused or keeping.decided or engine.also_keys:
            held, refused = self._take_refused(commit, keeping)
        unanswerable = engine.again.take_back(self.arrived.inputs, batch, refused, held)
        if batch.unchanged:
            self._remember_answers(refused, keeping.busy)
        for resumed in batch.resumed:
            resumed.has_resumed = True
        if batch.ends_hold:
            desk.is_holding = False
            desk.routing.forget_windows()  # They are read again at once, with all that has become ready meanwhile.
        # Progress goes first: who waits hears it before the end.
        effects = _progress(batch) if batch.progressed else []
        if engine.owed:
            effects += engine.owed
            engine.owed = []
        if desk.aside.waiting or desk.aside.holds:
            effects += desk.aside.overdue(self.arrived.now)
        self._renew(refused, effects)
        if refused:
            effects += [
                effect
                for seq, effect in batch.effects
                if seq not in refused and not (isinstance(effect, Reply) and (effect.conn, effect.request) in unanswerable)
            ]
        else:
            effects += [effect for _, effect in batch.effects]
        self._dispatch(effects)
        return desk.acts.without_own(effects) if desk.acts.answers else effects

    def _renew(self, refused: set[int], effects: list[Effect]) -> None:
        """Let memory believe the changes that are stored, and add the answers to those who waited for an end."""
        batch, desk = self.batch, self.batch.desk
        by_job, claims, held = desk.waits.by_job, batch.claims, desk.leases
        self._lent: list[Job] = []
        for was, job in self.changes:
            if refused and job.seq in refused:
                batch.take_back_credits(job.seq)
                continue
            state = job.state
            desk.live += (state not in ENDED) - (was is not None and was.state not in ENDED)
            if was is None and state is WAITING:
                continue
            lease = held.get(job.id)
            if lease is not None and (state is not RUNNING or job.fence != lease.job.fence):
                del held[job.id]
                lease = None
            if state is RUNNING:
                if job.seq in claims:
                    self._lent.append(job)
                elif lease is not None:
                    lease.job = job
                elif job.seq in batch.taken:
                    leases.take_over(batch, job)
            elif state is not WAITING and job.id in by_job:
                end = words.end(job)
                effects += [Reply(conn, request, [end], job.id) for conn, request in desk.waits.end(job.id)]

    def _dispatch(self, effects: list[Effect]) -> None:
        """Let the leases of the jobs that were lent begin, and send each worker its jobs."""
        if not self._lent:
            return
        batch, desk, now = self.batch, self.batch.desk, self.arrived.now
        lease_us = desk.policy.lease_us
        dispatches: dict[int, list[Item]] = {}
        for job in self._lent:
            room = batch.claims[job.seq]
            session = room.session
            # A lease runs from the worker's last message, as the worker itself counts.
            desk.leases[job.id] = Lease(job, room, session.beat_mono_us + lease_us)
            if session.conn not in dispatches:
                dispatches[session.conn] = []
            dispatches[session.conn].append(_dispatch_of(job, now))
        for conn, items in dispatches.items():
            worker = desk.routing.sessions.get(conn)
            if worker is not None:
                effects.append(Tell(conn, Kind.DISPATCH, [item(Heard(worker.heard, lease_us)), *items]))

    def _take_refused(self, commit: Commit, keeping: Keeping) -> tuple[dict[int, Hold], set[int]]:
        """Drop what was believed of refused changes; return the holds of those that are held, and the seqs of all."""
        engine, desk, changes, now = self.arrived.engine, self.batch.desk, self.changes, self.arrived.now
        lost = [changes[place].job for place in commit.refused if place not in commit.held]
        held = {changes[place].job.seq: hold for place, hold in commit.held.items()}
        keys = {job.key for job in lost if job.key is not None}
        engine.also_keys = engine.also_keys | keys if lost and commit.refused else frozenset()
        if lost:
            desk.routing.forget_windows()
            desk.suspects.update(job.id for job in lost if job.id in desk.leases)
        desk.aside.meet(held.values(), now)
        for place in commit.held:
            # As far as anybody knows, the job waits where it did before, or is not there.
            was, job = changes[place]
            desk.routing.discard(job)
            if was is not None and was.state is WAITING:
                desk.routing.offer(was, now)
        decided = {self.batch.unchanged[request].number for request in keeping.decided}
        return held, {job.seq for job in lost} | held.keys() | decided

    def _remember_answers(self, refused: set[int], busy: frozenset[bytes]) -> None:
        """Remember the answers that changed nothing and stand; those that cannot be kept for now are told to nobody."""
        batch = self.batch
        if busy:
            numbers = {batch.unchanged[request].number for request in busy}
            answers.forget(batch, self.arrived.inputs, numbers)
            refused = refused | numbers
        batch.desk.remembered.add(batch.standing(refused), self.arrived.now.mono_us)


def _progress(batch: Batch) -> list[Effect]:
    """Return what those who wait are told of the progress of their jobs: one frame for each connection."""
    told: dict[int, list[Item]] = {}
    for (conn, request), progress in batch.progressed.items():
        told.setdefault(conn, []).append(item(Progressed(request, *progress)))
    return [Tell(conn, Kind.PROGRESSED, items) for conn, items in told.items()]


def _dispatch_of(job: Job, now: Now) -> Item:
    due_us = job.due_at_us if job.on_wall else job.due_at_us - now.told_ahead_us
    return item(
        Dispatch(
            job.id, job.fence, job.module, job.attempt, due_us, job.key, job.target_worker, job.priority, job.timeout_us,
            job.specifier, job.params,
        )
    )  # fmt: skip
