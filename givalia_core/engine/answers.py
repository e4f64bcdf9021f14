"""Who decides which kind of message, and how the answers to a frame come together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from givalia_core.engine import leases, verbs
from givalia_core.engine.desk import Batch
from givalia_core.engine.records import Asked, Refusal, Reply
from givalia_core.errors import GivaliaError
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Kind, refusal

Verb = Callable[[Batch, Asked, Any], Item | None]
Report = Callable[[Batch, Asked], list[Item]]

ONE_BY_ONE: Final[dict[Kind, Verb]] = {
    Kind.ENQ: verbs.enq,
    Kind.STAT: verbs.stat,
    Kind.CANCEL: verbs.cancel,
    Kind.EXT: verbs.ext,
    Kind.REQUEUE: verbs.requeue,
    Kind.WAIT: verbs.wait,
    Kind.JOIN: leases.join,
    Kind.CREDIT: leases.credit,
    Kind.SUCCEED: leases.succeed,
    Kind.FAIL: leases.fail,
    Kind.RELEASE: leases.release,
    Kind.PROGRESS: leases.progress,
}
TOGETHER: Final[dict[Kind, Report]] = {
    Kind.ANNOUNCE: leases.announce,
    Kind.RESUME: leases.resume,
    Kind.BEAT: leases.beat,
    Kind.PROCESSES: leases.processes,
}


def answer(batch: Batch, asked: Asked, place: int, known: dict[int, Item]) -> None:
    """Decide one frame, the input at this place of its batch; of the commands that are known the answers stand already."""
    batch.author = (place, 0)
    session = batch.desk.routing.sessions.get(asked.conn)
    if session is not None:
        session.heard, session.beat_mono_us = asked.request, batch.now.mono_us
    together = TOGETHER.get(asked.kind)
    answers: list[Item] = []
    if together is not None:
        try:
            answers = together(batch, asked)
        except Refusal as refused:
            answers = [refusal(refused.error)]
    else:
        verb = ONE_BY_ONE[asked.kind]
        for number, message in enumerate(asked.messages):
            batch.author = (place, number)
            answer = known.get(number) or answer_one(verb, batch, asked, message)
            if answer is not None:
                answers.append(answer)
        if asked.messages and not answers:
            return
    batch.effects.append((0, Reply(asked.conn, asked.request, answers)))


def answer_one(verb: Verb, batch: Batch, asked: Asked, message: Any) -> Item | None:
    """What one command is answered, by the verb or by the error that it raised; None if the answer comes later."""
    if isinstance(message, GivaliaError):
        return refusal(message)
    try:
        return verb(batch, asked, message)
    except Refusal as refused:
        return refusal(refused.error)
