"""A turn whose commit met a full disk: what still fits into the reserve is stored, and the rest is refused or kept."""

from __future__ import annotations

from typing import Final

from givalia_core.clock import Timekeeper
from givalia_core.engine import unchanged
from givalia_core.engine.records import Close, Effect, Input, Reply
from givalia_core.engine.steps import NOTHING_UNKEPT, Decided
from givalia_core.errors import StoreAway, StoreFailed, StoreFull
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Commit, Store
from givalia_core.store.shared import Keeping, as_shared

COMMANDS: Final = frozenset({Kind.ENQ, Kind.CANCEL, Kind.EXT, Kind.REQUEUE})
CHANGES_NOTHING: Final = frozenset(
    {Kind.STAT, Kind.WAIT, Kind.JOIN, Kind.ANNOUNCE, Kind.CREDIT, Kind.BEAT, Kind.PROGRESS, Kind.PROCESSES}
    | {Kind.RESUME_LENDING}
)
FULL: Final = "the disk of the store is full, and the reserve is used up: nothing can be changed until there is room"


def without_new_jobs(refused: Decided, store: Store, timer: Timekeeper) -> list[Effect]:
    """Decide the turn again without new jobs: nothing of it is stored yet, and the rest fits into the reserve.

    Raises:
        StoreAway: The reserve of a shared store is used up, too.
        StoreFailed: A bug: a batch of questions has changes.
    """
    arrived, desk = refused.arrived, refused.batch.desk
    closed = [effect for _, effect in refused.batch.effects if isinstance(effect, Close)]
    desk.is_full = True
    desk.drop_hints()
    try:
        decided = arrived.read(store).decide()
        commit = decided.store(store, timer)
    except StoreFull as error:
        if store.is_shared:
            raise StoreAway(f"the disk is full and the reserve is used up: {error}") from error
        return [*_questions_alone(refused, store), *closed]
    return [*decided.committed(commit, kept(decided, store, commit)), *closed]


def kept(decided: Decided, store: Store, commit: Commit) -> Keeping:
    """Let a shared store keep the answers that changed nothing.

    Call this after the commit of the changes: an answer that depends on a refused change is decided again.
    """
    shared = as_shared(store) if decided.batch.unchanged else None
    if shared is None:
        return NOTHING_UNKEPT
    return shared.keep(unchanged.standing(decided.batch, {decided.changes[place].job.seq for place in commit.refused}))


def _questions_alone(refused: Decided, store: Store) -> list[Effect]:
    """Answer questions, refuse commands, and keep workers' reports until there is room: the reserve is used up, too."""
    arrived, engine = refused.arrived, refused.arrived.engine
    held = _hold_changes(refused)
    decided = arrived.read(store).decide()
    if decided.changes:
        engine.again.keep(held, is_unsure=False)
        raise StoreFailed("a batch of questions has changes")
    must_mark = engine.must_mark
    effects = decided.committed(Commit())
    engine.must_mark, engine.desk.is_stuck = must_mark, False
    engine.again.keep(held, is_unsure=False)
    engine.again.is_stuck = True
    return effects


def _hold_changes(refused: Decided) -> list[Input]:
    """Leave in this turn only input that changes nothing; return the input to decide when the store has room again.

    Clients are told that the disk is full, unless part of their frame took effect before.
    """
    arrived, engine = refused.arrived, refused.arrived.engine
    engine.desk.drop_hints()
    held: list[Input] = []
    kept: list[Input] = []
    for given in arrived.inputs:
        if isinstance(given, Asked) and given.kind in CHANGES_NOTHING:
            kept.append(given)
        elif isinstance(given, Asked) and given.kind in COMMANDS and not engine.again.standing.get((given.conn, given.request)):
            engine.owed.append(Reply(given.conn, given.request, [StoreFull(FULL)] * len(given.messages)))
        else:
            held.append(given)
    arrived.inputs, engine.desk.is_stuck = kept, True
    return held
