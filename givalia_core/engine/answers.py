"""Who decides which kind of message, and how the answers to a frame come together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from givalia_core.engine import leases, verbs
from givalia_core.engine.desk import Batch
from givalia_core.engine.records import Input, Refusal, Reply
from givalia_core.errors import Busy, GivaliaError
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind

Verb = Callable[[Batch, Asked, Any], Answer | None]
FindKnown = Callable[[Batch, Any], Answer | None]
Report = Callable[[Batch, Asked], list[Answer]]

FORGETFUL: Final = Busy("the answer cannot be remembered for now, so nothing was decided", retry_after=2.0)
LATE: Final = Busy(
    "the command is older than its client waits for the answer; nothing was decided", retry_after=0.05, late=True
)

ONE_BY_ONE: Final[dict[Kind, Verb]] = {
    Kind.ENQ: verbs.enq,
    Kind.STAT: verbs.stat,
    Kind.CANCEL: verbs.cancel,
    Kind.EXT: verbs.ext,
    Kind.REQUEUE: verbs.requeue,
    Kind.WAIT: verbs.wait,
    Kind.RESUME_LENDING: verbs.resume,
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


def answer(batch: Batch, asked: Asked, place: int, known: dict[int, Answer]) -> None:
    """Decide one frame, the input at this place of its batch; of the commands that are known the answers stand already."""
    batch.author = (place, 0)
    session = batch.desk.routing.sessions.get(asked.conn)
    if session is not None:
        session.heard, session.beat_mono_us = asked.request, batch.now.mono_us
    together = TOGETHER.get(asked.kind)
    answers: list[Answer] = []
    if together is not None:
        try:
            answers = together(batch, asked)
        except Refusal as refused:
            answers = [refused.error]
    else:
        decide = _decider(asked)
        for number, message in enumerate(asked.messages):
            batch.author = (place, number)
            answer = known[number] if number in known else decide(batch, asked, message)
            if answer is not None:
                answers.append(answer)
        if asked.messages and not answers:
            return
    batch.effects.append((0, Reply(asked.conn, asked.request, answers)))


def forget(batch: Batch, inputs: Sequence[Input], numbers: set[int]) -> None:
    """Tell whoever was to be told these answers (`Unchanged.number`) that nothing was decided."""
    replies = {(effect.conn, effect.request): effect.answers for _, effect in batch.effects if isinstance(effect, Reply)}
    for number, (place, command) in batch.touched:
        if number in numbers:
            asked = inputs[place]
            assert isinstance(asked, Asked)
            replies[asked.conn, asked.request][command] = FORGETFUL


def answer_one(batch: Batch, asked: Asked, message: Any) -> Answer | None:
    """What one command is answered, by its verb or by the error that it raised; None if the answer comes later."""
    return _decider(asked)(batch, asked, message)


def _decider(asked: Asked) -> Verb:
    """What decides each command of a frame; found once, for a frame may have ten thousand."""
    verb, find_known = ONE_BY_ONE[asked.kind], verbs.KNOWN.get(asked.kind)
    return partial(_answer, verb) if find_known is None else partial(_answer_once, verb, find_known)


def _answer(verb: Verb, batch: Batch, asked: Asked, message: Any) -> Answer | None:
    if isinstance(message, GivaliaError):
        return message
    try:
        return verb(batch, asked, message)
    except Refusal as refused:
        return refused.error


def _answer_once(verb: Verb, find_known: FindKnown, batch: Batch, asked: Asked, message: Any) -> Answer | None:
    """Answer a changing command: as before if its request id is known, and not at all if it is older than its client waits."""
    if isinstance(message, GivaliaError):
        return message
    request: bytes = message[0]
    known = find_known(batch, message)
    if known is None and batch.may_recall:
        known = batch.recall(asked.kind, request)
    if known is not None:
        return known
    if asked.until_us is not None and batch.now.mono_us > asked.until_us:
        return LATE
    since = len(batch.touched)
    try:
        answer = verb(batch, asked, message)
    except Refusal as refused:
        answer = refused.error
        if not refused.is_decided:
            return answer
    is_enq = asked.kind is Kind.ENQ
    if answer is None or asked.is_once or batch.has_changed(request, is_enq=is_enq):
        return answer
    is_kept = batch.remember(request, answer, is_enq=is_enq, since=since)
    return answer if is_kept else FORGETFUL
