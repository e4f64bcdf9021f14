"""One turn of the queue: decided, then on disk, then answered. The only place that has this order.

Were an answer to leave before the commit, a crash between the two would lose what somebody was told is safe; were a
dispatch to leave before it, two workers could hold one job with one fence. What arrives while a turn commits is the next
turn's batch: at one request it costs one sync, at thousands it costs one sync.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from givalia_core.clock import Clock, Now, Timekeeper
from givalia_core.engine import sharing
from givalia_core.engine.core import Engine, Plan
from givalia_core.engine.desk import Facts
from givalia_core.engine.records import Close, Effect, Input
from givalia_core.errors import Busy, StoreAway, StoreFailed, StoreFull
from givalia_core.policy import Policy
from givalia_core.store.base import Commit, Opened, Store, Wanted, as_shared


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
        effects = _concluded(engine, store, timer, plan, now)
    except StoreAway:
        engine.suspend(plan)
        raise
    if shared is not None and plan.batch.followed:
        shared.follow(plan.batch.followed)
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
            failed = StoreAway if store.is_shared else StoreFailed
            raise failed(f"the disk is full and the reserve is used up: {error}") from error
        return [*engine.conclude(plan, commit), *closed]
    return engine.conclude(plan, commit)


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
    for name in reads.pages:
        try:
            facts.pages[name] = store.page(*name, now)
        except Busy as error:
            facts.pages[name] = error
    if reads.info:
        try:
            facts.counts, facts.ready, facts.described = store.counts(), store.ready(now), store.describe()
        except Busy as error:
            facts.info_refused = error
    return facts


def _commit(store: Store, timer: Timekeeper, plan: Plan, now: Now) -> Commit:
    if not plan.must_commit:
        return Commit()
    return store.commit(plan.changes, timer.mark(now, plan.batch.desk.policy.lease_us), plan.retention)


def _without_new_jobs(engine: Engine, store: Store, timer: Timekeeper, now: Now) -> tuple[Plan, Commit]:
    engine.desk.is_full = True
    engine.desk.drop_hints()
    plan = engine.decide(_facts(engine, store, now))
    return plan, _commit(store, timer, plan, now)
