"""The engine, and one turn of the queue: decided, then on disk, then answered. This module sets that order.

If an answer left before the commit, a crash between the two would lose a job that a client was told is safe. If a dispatch left
before the commit, two workers could hold one job with one fence. Input that arrives while a turn commits is the next turn's
batch: one request costs one sync, and thousands cost one sync.

A turn raises StoreAway if a shared store does not answer: the engine keeps the input, and another turn goes on with it.
After any other StoreError the content of the disk is unknown; nothing may be said, and the server must stop.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Final

from givalia_core import variants
from givalia_core.clock import SECOND_US, STEP_US, Clock, Now, Timekeeper
from givalia_core.engine import full, questions, shared_turn, sharing, steps
from givalia_core.engine.again import Again
from givalia_core.engine.desk import Desk, Lease
from givalia_core.engine.leases import Lender
from givalia_core.engine.questions import Questions
from givalia_core.engine.records import Effect, Input
from givalia_core.engine.steps import Arrived
from givalia_core.errors import StoreAway, StoreFull
from givalia_core.model import REMEMBERED_AT_LEAST_US, Job
from givalia_core.policy import Policy
from givalia_core.protocol.asked import Asked
from givalia_core.store.base import Opened, Retention, Store
from givalia_core.store.shared import as_shared

GAP_US: Final = 2 * SECOND_US  # A longer silence of the loop was a pause of the process: no worker could beat (K5).
SWEEP_US: Final = SECOND_US  # How often leases, expiries and retention are swept.
WALK_US: Final = 2_000  # The most that a turn spends on questions that take a walk; only the last step may exceed it.
STEPS_MAX: Final = 64


class Engine:
    """Memory of one queue; `turn.turn` decides with it.

    Args:
        policy: Limits and defaults.
        epoch: The boot epoch of the store.
        last_seq: The highest seq that was given.
        live: How many jobs wait or run.
        running: The jobs that were running; each gets a whole lease, for its worker to name it again.
        durability: What the answer to an enq says.
        regrant_us: The length of those leases, no shorter than the one that their workers were told.
        now: The time.
        rng: The source of chance, for the jitter of retries.
        is_shared: Whether other servers have the store open.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        epoch: int,
        last_seq: int,
        live: int,
        running: Iterable[Job],
        durability: str,
        regrant_us: int,
        now: Now,
        rng: random.Random,
        is_shared: bool = False,
    ) -> None:
        self.desk = Desk(policy, epoch, last_seq, rng, is_shared=is_shared)
        self.desk.durability = durability
        self.desk.live = live
        for job in running:
            self.desk.leases[job.id] = Lease(job, None, now.mono_us + regrant_us)
        self.again = Again(self.desk)
        self.questions = Questions(self.desk)
        self.lender = Lender(self.desk)
        self.sharing = sharing.Sharing(self.desk, now) if is_shared else None
        self.pace = sharing.Pace()
        self.now = now
        self.owed: list[Effect] = []
        """Effects that leave with the next answers, whatever becomes of the batch."""
        self.must_mark = True
        """The next commit must store the mark of the clocks, even without changes."""
        self.also_keys: frozenset[str] = frozenset()
        """The keys of refused changes: the jobs that hold them must be read."""
        self.forget_more = False
        self.swept_us = now.mono_us
        self.is_sweeping = False
        """This turn sweeps leases, expiries and retention."""
        self.ahead_us = now.timer_ahead_us
        """The distance of the clocks when the near windows were last filled: a slow drift adds up."""
        self._held_up_until_us = 0

    def ask(self, asked: Asked) -> None:
        """Take a question that needs a walk."""
        if (refused := questions.refused(asked)) is not None:
            self.owed.append(refused)
        else:
            self.questions.add(asked)

    def begin(self, now: Now) -> None:
        """Take in the time, and update memory for it."""
        desk, gap_us, self.now = self.desk, now.mono_us - self.now.mono_us, now
        desk.routing.begin(desk.clogged)
        if gap_us > GAP_US:
            self.bridge(gap_us, now)
        elif desk.held_up_us and now.mono_us > self._held_up_until_us:
            desk.held_up_us = 0
        if desk.remembered.bytes:
            desk.remembered.forget(now.mono_us, desk.held_up_us)
        if abs(now.timer_us - now.wall_us - self.ahead_us) > STEP_US:
            self.take_step(now)
        self.is_sweeping = now.mono_us - self.swept_us >= SWEEP_US
        if self.is_sweeping:
            self.swept_us = now.mono_us
            if desk.routing.crowded:
                variants.learn_more(desk.routing)

    def bridge(self, gap_us: int, now: Now) -> None:
        """Extend leases and answers by the time for which the process stood still: no worker could beat (K5)."""
        desk = self.desk
        for lease in desk.leases.values():
            lease.expires_mono_us += gap_us
        for session in desk.routing.sessions.values():
            session.beat_mono_us += gap_us
        desk.losses.extend(gap_us)
        desk.held_up_us += gap_us  # Commands may have waited in our sockets for as long.
        self._held_up_until_us = now.mono_us + REMEMBERED_AT_LEAST_US

    def take_step(self, now: Now) -> None:
        """Note that the wall clock was set: other absolute jobs are due now, and the new distance must be kept."""
        self.desk.routing.forget_windows()
        self.must_mark = True
        self.ahead_us = now.timer_ahead_us

    def retention(self, now: Now) -> Retention:
        """Return the rule for which ended jobs may be forgotten."""
        policy, now_us = self.desk.policy, now.timer_us
        return Retention(
            now_us, now_us - REMEMBERED_AT_LEAST_US, policy.retain_max, policy.retain_dead_max, steps.FORGOTTEN_AT_ONCE
        )

    def wake_in_us(self, now: Now) -> int:
        """Return how long the loop may sleep unless something arrives; never over a second (K4)."""
        again, desk = self.again, self.desk
        if again.is_stuck:
            return again.pause_us
        if self.lender.hurry or self.forget_more or desk.acts.submitted or (self.questions.lines and self.questions.has_work):
            return 0
        if again.inputs or desk.suspects:
            return again.pause_us
        due_us = desk.routing.next_due_us()
        if desk.routing.unlearned or desk.routing.spent:
            return 0
        most_us = min(desk.aside.next_us(now), SWEEP_US) if desk.aside.waiting else SWEEP_US
        return most_us if due_us is None else min(max(due_us - now.timer_us, 0), most_us)


def start(store: Store, opened: Opened, timer: Timekeeper, clock: Clock, policy: Policy, rng: random.Random) -> Engine:
    """Return an engine for a store that was just opened."""
    counts = store.counts()
    return Engine(
        policy,
        epoch=opened.epoch,
        last_seq=opened.last_seq,
        live=sum(count for (_, state), count in counts.items() if state in ("waiting", "running")),
        # In a shared store other servers look after running jobs; watching the store finds those that none looks after.
        running=() if store.is_shared else store.running(),
        durability=store.durability,
        regrant_us=max(policy.lease_us, opened.mark.lease_us if opened.mark else 0),
        now=timer.now(clock.read()),
        rng=rng,
        is_shared=store.is_shared,
    )


def turn(engine: Engine, store: Store, timer: Timekeeper, inputs: Sequence[Input], clock: Clock) -> list[Effect]:
    """Decide everything that arrived, make it durable, and return what may now be said; the module says what errors mean."""
    now = timer.now(clock.read())
    if engine.desk.is_full or getattr(store, "is_full", False):  # A third-party store may be older than the attribute.
        engine.desk.is_full = not store.has_room()
    given = [*engine.again.inputs, *inputs] if engine.again.inputs else inputs
    if (shared := as_shared(store) if engine.sharing is not None else None) is not None:
        return shared_turn.turn(engine, shared, timer, given, clock)
    arrived = Arrived(engine, given, now)
    if arrived.spans:
        arrived.fill(store.upcoming(arrived.spans, now))
    decided = arrived.read(store).decide()
    try:
        commit = decided.store(store, timer)
    except StoreFull:
        return full.without_new_jobs(decided, store, timer)
    return decided.committed(commit)


def walk(engine: Engine, store: Store, timer: Timekeeper, clock: Clock) -> list[Effect]:
    """Go on with questions that take a walk, for as long as a turn may; return the answers that are ready.

    Raises:
        StoreAway: The shared store does not answer. The engine keeps the questions; another turn goes on with them.
        StoreError: As `turn`.
    """
    questions = engine.questions
    if not questions.lines:
        return []
    questions.begin_turn()
    effects: list[Effect] = []
    began_us = before_us = clock.read().mono_us
    for _ in range(STEPS_MAX):
        try:
            told = questions.step(store, timer.now(clock.read()))
        except StoreAway:
            engine.again.add(questions.take_all())
            raise
        if told is None:
            break
        effects += told
        now_us = clock.read().mono_us
        questions.note_pace(now_us - before_us)
        before_us = now_us
        if now_us - began_us >= WALK_US:
            break
    return effects
