"""The table of commands, with the reads and the decision of each, and the functions that answer frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from givalia_core.engine import changes, failures, leases, unchanged, verbs, workers
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Names
from givalia_core.engine.records import Input, Refusal, Reply
from givalia_core.errors import Busy, GivaliaError
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind

FORGETFUL: Final = Busy("the answer cannot be remembered for now, so nothing was decided", retry_after=2.0)
LATE: Final = Busy(
    "the command is older than its client waits for the answer; nothing was decided", retry_after=0.05, late=True
)


Known = Callable[[Batch, Any], Answer | None]


class Verb(NamedTuple):
    """A row of the table.

    `decide` takes one command, or with `is_whole` a frame of them, and returns its answer or answers; None if the answer
    comes later. A verb that changes something on request has `known`, which finds the answer to a request that changed a job
    before; the first field of its message is the request id.
    """

    needs: Callable[[Names, Asked, Desk], None]
    decide: Callable[..., Any]
    known: Known | None = None
    is_whole: bool = False


VERBS: Final[dict[Kind, Verb]] = {
    Kind.ENQ: Verb(verbs.needs_enq, verbs.enq, changes.known_enq),
    Kind.STAT: Verb(verbs.needs_named, verbs.stat),
    Kind.WAIT: Verb(verbs.needs_named, verbs.wait),
    Kind.CANCEL: Verb(verbs.needs_named, changes.cancel, changes.known_cancel),
    Kind.EXT: Verb(verbs.needs_named, changes.ext, changes.known_move),
    Kind.REQUEUE: Verb(changes.needs_requeue, changes.requeue, changes.known_move),
    Kind.RESUME_LENDING: Verb(changes.needs_resume, changes.resume_lending, changes.known_to_none),
    Kind.JOIN: Verb(workers.needs_nothing, workers.join),
    Kind.ANNOUNCE: Verb(workers.needs_nothing, workers.announce, is_whole=True),
    Kind.RESUME: Verb(workers.needs_resumed, workers.resume, is_whole=True),
    Kind.CREDIT: Verb(workers.needs_nothing, workers.credit),
    Kind.BEAT: Verb(leases.needs_held, workers.beat, is_whole=True),
    Kind.SUCCEED: Verb(leases.needs_reported, leases.succeed),
    Kind.FAIL: Verb(leases.needs_reported, failures.fail),
    Kind.RELEASE: Verb(leases.needs_reported, failures.release),
    Kind.PROGRESS: Verb(leases.needs_held, failures.progress),
    Kind.PROCESSES: Verb(workers.needs_nothing, workers.processes, is_whole=True),
}


def answer(batch: Batch, asked: Asked, place: int, standing: Mapping[int, Answer]) -> None:
    """Decide one frame, the input at this place of its batch; `standing` has the answers that stand already."""
    batch.author = (place, 0)
    session = batch.desk.routing.sessions.get(asked.conn)
    if session is not None:
        session.heard, session.beat_mono_us = asked.request, batch.now.mono_us
    verb = VERBS[asked.kind]
    answers: list[Answer] = _answer_whole(verb, batch, asked) if verb.is_whole else []
    for number, message in enumerate(asked.messages) if not verb.is_whole else ():
        batch.author = (place, number)
        if number in standing:
            answers.append(standing[number])
        elif (told := answer_one(verb, batch, asked, message)) is not None:
            answers.append(told)
    if answers or not asked.messages:
        batch.effects.append((0, Reply(asked.conn, asked.request, answers)))


def _answer_whole(verb: Verb, batch: Batch, asked: Asked) -> list[Answer]:
    try:
        return verb.decide(batch, asked)  # type: ignore[no-any-return]
    except Refusal as refused:
        return [refused.error]


def answer_one(verb: Verb, batch: Batch, asked: Asked, message: Any) -> Answer | None:
    """Return the answer to one command: its verb's, or the error that the verb raised; None if the answer comes later."""
    if isinstance(message, GivaliaError):
        return message
    if verb.known is not None:
        return _answer_once(verb, verb.known, batch, asked, message)
    try:
        return verb.decide(batch, asked, message)  # type: ignore[no-any-return]
    except Refusal as refused:
        return refused.error


def _answer_once(verb: Verb, find: Known, batch: Batch, asked: Asked, message: Any) -> Answer | None:
    """Answer a changing command: as before if its request is known, with `LATE` if it is older than its client waits."""
    request, found, is_enq = message[0], batch.found, asked.kind is Kind.ENQ
    is_new = not (request in found.ids or request in batch.ids or request in found.requests or request in batch.requests)
    known = None if is_new else find(batch, message)
    if known is None and (batch.unchanged or batch.desk.remembered.bytes or found.answers):
        known = unchanged.recall(batch, asked.kind, request)
    if known is not None:
        return known
    if asked.until_us is not None and batch.now.mono_us > asked.until_us:
        return LATE
    since = len(batch.touched)
    try:
        answer: Answer = verb.decide(batch, asked, message)
    except Refusal as refused:
        answer = refused.error
        if not refused.is_decided:
            return answer
    if asked.is_once or (is_enq and request in batch.ids) or request in batch.requests:
        return answer  # The command never comes again, or the job remembers the answer.
    return answer if unchanged.remember(batch, request, answer, is_enq=is_enq, since=since) else FORGETFUL


def forget(batch: Batch, inputs: Sequence[Input], numbers: set[int]) -> None:
    """Replace these answers (`Unchanged.number`) by a refusal: nothing was decided."""
    replies = {(effect.conn, effect.request): effect.answers for _, effect in batch.effects if isinstance(effect, Reply)}
    for number, (place, command) in batch.touched:
        if number in numbers:
            asked = inputs[place]
            assert isinstance(asked, Asked)
            replies[asked.conn, asked.request][command] = FORGETFUL
