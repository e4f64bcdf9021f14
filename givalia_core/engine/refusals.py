"""The handling of a commit that the store refused in part: the rest stands, and the refused changes are decided again."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from givalia_core.engine import answers, unchanged, workers
from givalia_core.engine.records import Effect, Reply
from givalia_core.model import WAITING
from givalia_core.store.base import Commit, Hold
from givalia_core.store.shared import Keeping

if TYPE_CHECKING:  # A step of the turn calls this.
    from givalia_core.engine.steps import Decided

Frame = tuple[int, int]  # Its connection and request.


def take_back(decided: Decided, commit: Commit, keeping: Keeping) -> tuple[Set[int], Set[Frame]]:
    """Drop what memory believes of refused changes.

    Returns:
        The seqs of the refused jobs (and numbers of refused answers), and the frames that cannot be answered yet.
    """
    engine, batch, desk = decided.arrived.engine, decided.batch, decided.batch.desk
    changes, now = decided.changes, decided.arrived.now
    lost = [changes[place].job for place in commit.refused if place not in commit.held]
    held: dict[int, Hold] = {changes[place].job.seq: hold for place, hold in commit.held.items()}
    if not commit.refused:
        engine.also_keys = frozenset()
    elif lost:
        engine.also_keys = engine.also_keys | {job.key for job in lost if job.key is not None}
        desk.routing.forget_windows()
        desk.suspects.update(job.id for job in lost if job.id in desk.leases)
    else:
        engine.also_keys = frozenset()
    desk.aside.meet(held.values(), now)
    for place in commit.held:
        # As far as we know, the job waits where it did before, or does not exist.
        was, job = changes[place]
        desk.routing.discard(job)
        if was is not None and was.state is WAITING:
            desk.routing.offer(was, now)
    refused = {job.seq for job in lost} | held.keys() | {batch.unchanged[request].number for request in keeping.decided}
    return refused, engine.again.take_back(decided.arrived.inputs, batch, refused, held)


def conclude(decided: Decided, refused: Set[int], busy: frozenset[bytes]) -> None:
    """Let memory believe the answers and messages that changed no job."""
    batch = decided.batch
    if batch.unchanged:
        _remember_answers(decided, refused, busy)
    if batch.resumed or batch.ends_hold:
        workers.conclude(batch)


def _remember_answers(decided: Decided, refused: Set[int], busy: frozenset[bytes]) -> None:
    """Remember the answers that changed nothing and stand; replace those that cannot be kept for now by a refusal."""
    batch = decided.batch
    if busy:
        numbers = {batch.unchanged[request].number for request in busy}
        answers.forget(batch, decided.arrived.inputs, numbers)
        refused = refused | numbers
    batch.desk.remembered.add(unchanged.standing(batch, refused), decided.arrived.now.mono_us)


def may_be_said(seq: int, effect: Effect, refused: Set[int], unanswerable: Set[Frame]) -> bool:
    """Return whether an effect that depends on this job is true, and answers no frame that is decided again."""
    return seq not in refused and not (isinstance(effect, Reply) and (effect.conn, effect.request) in unanswerable)
