"""The answers in a batch that changed no job; we remember those that the commit lets stand."""

from __future__ import annotations

from collections.abc import Set

from givalia_core.engine import remembered
from givalia_core.engine.batch import Batch, Unchanged
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.messages import Kind
from givalia_core.store.shared import Kept


def recall(batch: Batch, kind: Kind, request: bytes) -> Answer | None:
    """Return the known answer to this request, which changed no job; None if there is none."""
    if batch.unchanged and (here := batch.unchanged.get(request)) is not None:
        batch.touched += [(seq, batch.author) for seq in (here.number, *here.seqs)]
        return here.answer
    kept = batch.found.answers
    if kept and (packed := kept.get(request)) is not None:
        return remembered.unpack(kind, packed)
    return batch.desk.remembered.get(kind, request)


def remember(batch: Batch, request: bytes, answer: Answer, *, is_enq: bool, since: int) -> bool:
    """Remember the answer of a command that changed no job; return false if there is no room for it.

    Args:
        batch: The batch in which the command was decided.
        request: The id of the command.
        answer: Its answer.
        is_enq: Whether the id could become that of a job.
        since: The length of `touched` before the command was decided.
    """
    if not batch.desk.remembered.has_room(len(batch.unchanged)):
        return False
    seqs = frozenset(seq for seq, _ in batch.touched[since:])
    number = -1 - len(batch.unchanged)
    batch.unchanged[request] = Unchanged(answer, is_enq, seqs, number)
    batch.touched.append((number, batch.author))
    return True


def standing(batch: Batch, refused: Set[int]) -> list[Kept]:
    """Return the answers that changed no job, except those that depend on refused changes."""
    return [
        Kept(request, remembered.pack(each.answer), each.is_enq)
        for request, each in batch.unchanged.items()
        if each.number not in refused and each.seqs.isdisjoint(refused)
    ]
