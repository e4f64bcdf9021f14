"""One turn of the queue: decided, then on disk, then answered. The only place that has this order.

Were an answer to leave before the commit, a crash between the two would lose what somebody was told is safe; were a
dispatch to leave before it, two workers could hold one job with one fence. What arrives while a turn commits is the next
turn's batch: at one request it costs one sync, at thousands it costs one sync.

Questions that take a walk have a place of their own behind it, bounded in time: `walk`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from givalia_core.clock import SECOND_US, Clock, Now, Timekeeper
from givalia_core.engine import sharing
from givalia_core.engine.core import NOTHING_UNKEPT, Engine, Plan
from givalia_core.engine.desk import Facts
from givalia_core.engine.records import Close, Effect, Input
from givalia_core.errors import StoreAway, StoreFailed, StoreFull
from givalia_core.policy import Policy
from givalia_core.store.base import AlreadyDecided, Commit, Keeping, Opened, Store, Wanted, as_shared

PAUSE_US: Final = 5 * SECOND_US
"""A process that stood still for longer between its reading and its commit reads again: others may have decided meanwhile."""

WALK_US: Final = 2_000  # What a turn spends on questions that take a walk, at most but for the last step.
STEPS_MAX: Final = 64


def start(store: Store, opened: Opened, timer: Timekeeper, clock: Clock, policy: Policy, rng: random.Random) -> Engine:
    """An engine for a store that was just opened."""
    counts = store.counts()
    return Engine(
        policy,
        epoch=opened.epoch,
        last_seq=opened.last_seq,
        live=sum(count for (_, state), count in counts.items() if state in ("waiting", "running")),
        # Of a shared store other servers look after what runs; what nobody does turns up when it is watched.
        running=() if store.is_shared else store.running(),
        durability=store.durability,
        regrant_us=max(policy.lease_us, opened.mark.lease_us if opened.mark else 0),
        now=timer.now(clock.read()),
        rng=rng,
        is_shared=store.is_shared,
    )


def turn(engine: Engine, store: Store, timer: Timekeeper, inputs: Sequence[Input], clock: Clock) -> list[Effect]:
    """Decide everything that arrived, make it durable, and return what may now be said.

    Raises:
        StoreAway: The shared store does not answer. The engine keeps what arrived; another turn goes on with it.
        StoreError: What is on disk is unknown; nothing may be said, the server must stop.
    """
    now = timer.now(clock.read())
    # A store of somebody else may be older than the attribute.
    if engine.desk.is_full or getattr(store, "is_full", False):
        engine.desk.is_full = not store.has_room()
    shared = as_shared(store)
    if shared is not None:
        engine.hear(shared.news())
    spans = engine.begin([*engine.again.inputs, *inputs], now)
    plan: Plan | None = None
    try:
        if shared is not None and engine.must_watch:
            lease_us = engine.desk.policy.lease_us
            engine.watch(shared.watch(now, lease_us, sharing.about(engine.desk), all_own=engine.all_own))
        if shared is not None and engine.must_look:
            engine.take_up(shared.freed(engine.held))
        if spans:
            engine.fill(spans, store.upcoming(spans, now))
        facts = _facts(engine, store, now)
        if shared is not None:
            # What was read has brought the database's time: no delay is counted from before its command was there.
            now = engine.look_again(timer.now(clock.read()))
        plan = engine.decide(facts)
        if shared is not None and clock.read().mono_us - now.mono_us > PAUSE_US:
            raise AlreadyDecided
        effects = _concluded(engine, store, timer, plan, now)
    except StoreAway:
        engine.suspend(plan)
        raise
    except AlreadyDecided:
        engine.suspend(plan)
        return []
    if shared is not None and plan.batch.followed:
        shared.follow(plan.batch.followed)
    return effects


def walk(engine: Engine, store: Store, timer: Timekeeper, clock: Clock) -> list[Effect]:
    """Go on with questions that take a walk, for as long as a turn may; return the answers that are ready.

    Raises:
        StoreAway: The shared store does not answer. The engine keeps the questions; another turn goes on with them.
        StoreError: As `turn`.
    """
    questions = engine.questions
    if not questions:
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


def _concluded(engine: Engine, store: Store, timer: Timekeeper, plan: Plan, now: Now) -> list[Effect]:
    try:
        commit = _commit(store, timer, plan, now)
    except StoreFull:
        # Nothing of this batch is stored. Decided once more without new jobs, the rest fits into the reserve.
        closed = [effect for _, effect in plan.batch.effects if isinstance(effect, Close)]
        try:
            plan, commit = _without_new_jobs(engine, store, timer, now)
        except StoreFull as error:
            if store.is_shared:
                raise StoreAway(f"the disk is full and the reserve is used up: {error}") from error
            return [*_questions_alone(engine, store, now), *closed]
        return [*engine.conclude(plan, commit, _kept(store, plan, commit)), *closed]
    return engine.conclude(plan, commit, _kept(store, plan, commit))


def _questions_alone(engine: Engine, store: Store, now: Now) -> list[Effect]:
    """The reserve is used up, too: answer questions, refuse commands, and keep workers' reports until there is room."""
    held = engine.hold_changes()
    plan = engine.decide(_facts(engine, store, now))
    if plan.changes:
        engine.again.keep(held, is_unsure=False)
        raise StoreFailed("a batch of questions has changes")
    return engine.conclude_without_commit(plan, held)


def _facts(engine: Engine, store: Store, now: Now) -> Facts:
    reads = engine.reads()
    found = store.find(reads.wanted, now)
    # A requeue by id may meet a live job of the same key, and only the job itself says what its key is.
    keys = frozenset(key for job_id in reads.requeued if job_id in found.ids and (key := found.ids[job_id].key))
    if keys:
        found.live.update(store.find(Wanted(keys=keys), now).live)
    facts = Facts(found)
    if reads.expired:
        facts.expired = store.expired(now, reads.expired)
    if reads.retention is not None:
        facts.forgettable = store.forgettable(reads.retention)
    return facts


def _commit(store: Store, timer: Timekeeper, plan: Plan, now: Now) -> Commit:
    if not plan.must_commit:
        return Commit()
    return store.commit(plan.changes, timer.mark(now, plan.batch.desk.policy.lease_us), plan.retention)


def _kept(store: Store, plan: Plan, commit: Commit) -> Keeping:
    """Let a shared store keep the answers that changed nothing.

    After the changes, on which the answers may depend: an answer whose change was refused is decided again.
    """
    shared = as_shared(store) if plan.batch.unchanged else None
    if shared is None:
        return NOTHING_UNKEPT
    return shared.keep(plan.batch.standing({plan.changes[place].job.seq for place in commit.refused}))


def _without_new_jobs(engine: Engine, store: Store, timer: Timekeeper, now: Now) -> tuple[Plan, Commit]:
    engine.desk.is_full = True
    engine.desk.drop_hints()
    plan = engine.decide(_facts(engine, store, now))
    return plan, _commit(store, timer, plan, now)
