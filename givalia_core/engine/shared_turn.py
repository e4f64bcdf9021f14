"""One turn of a server that shares its store: the steps of `turn`, and before and after them the work of other servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from givalia_core.clock import SECOND_US, Clock, Timekeeper
from givalia_core.engine import full, sharing
from givalia_core.engine.records import Close, Effect, Input
from givalia_core.engine.steps import Arrived, Decided
from givalia_core.errors import StoreAway, StoreFull
from givalia_core.store.shared import AlreadyDecided, SharedStore

if TYPE_CHECKING:  # The engine calls this.
    from givalia_core.engine.turn import Engine

PAUSE_US: Final = 5 * SECOND_US
"""A process that stood still for longer between its reading and its commit reads again: others may have decided meanwhile."""


def turn(engine: Engine, store: SharedStore, timer: Timekeeper, inputs: Sequence[Input], clock: Clock) -> list[Effect]:
    """Do the work of `turn.turn` with a shared store."""
    others = engine.sharing
    assert others is not None
    now = timer.now(clock.read())
    others.hear(store.news(), now)
    arrived = Arrived(engine, inputs, now)
    decided: Decided | None = None
    try:
        _look_at_others(arrived, store, others)
        if arrived.spans:
            arrived.fill(store.upcoming(arrived.spans, now))
        known = arrived.read(store)
        # The read has brought the database's time: no delay is counted from a time before its command arrived.
        arrived.now = engine.now = now = timer.now(clock.read())
        decided = known.decide()
        if clock.read().mono_us - now.mono_us > PAUSE_US:
            raise AlreadyDecided
        effects = _committed(decided, store, timer)
    except StoreAway:
        _suspend(arrived, decided, others)
        raise
    except AlreadyDecided:
        _suspend(arrived, decided, others)
        return []
    others.end()
    if decided.batch.followed:
        store.follow(decided.batch.followed)
    return effects


def _look_at_others(arrived: Arrived, store: SharedStore, others: sharing.Sharing) -> None:
    """Watch the store if that is due, and take up the commands whose holds may be over."""
    engine, now = arrived.engine, arrived.now
    if others.must_watch(now):
        lease_us = engine.desk.policy.lease_us
        watched = store.watch(now, lease_us, sharing.about(engine.desk), all_own=others.all_own)
        engine.owed += others.watch(watched, now)
        arrived.has_expired = watched is not None and watched.has_expired
    if engine.desk.aside.must_look(now):
        freed = store.freed(engine.desk.aside.names)
        arrived.inputs = [*engine.again.take_up(freed, now), *arrived.inputs]


def _committed(decided: Decided, store: SharedStore, timer: Timekeeper) -> list[Effect]:
    try:
        commit = decided.store(store, timer)
    except StoreFull:
        return full.without_new_jobs(decided, store, timer)
    return decided.committed(commit, full.kept(decided, store, commit))


def _suspend(arrived: Arrived, decided: Decided | None, others: sharing.Sharing) -> None:
    """Answer nothing and decide all again: the store went away in this turn, or met an answer of another server.

    The decisions, if there were any yet, may be stored.
    """
    engine = arrived.engine
    if decided is not None:
        engine.owed += [effect for _, effect in decided.batch.effects if isinstance(effect, Close)]
    is_unsure = decided is not None and bool(decided.changes or decided.batch.unchanged)
    engine.again.keep(arrived.inputs, is_unsure=is_unsure)
    engine.again.add(engine.questions.take_all())
    engine.desk.drop_hints()
    others.suspend()
