"""Acts by filter: `cancel`, `ext` and `requeue` for all jobs that a filter admits, a page at a time.

A page is a walk that finds jobs and then submits ordinary commands by id, which the engine decides like those of any client.
Each command has a request id made from the run's id and the job's seq, so a page sent again changes nothing twice. A run
visits each job once: in the order of enq up to the last job that existed when the run began, or backwards from the job that
ended last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.clock import Now
from givalia_core.engine import dues
from givalia_core.engine.records import UNDECIDED, Effect, Refusal, Reply
from givalia_core.errors import BadRequest, DuplicateKey, GivaliaError, WrongState
from givalia_core.model import CANCELLED, DEAD, ENDED, RUNNING, WAITING, Job, JobState
from givalia_core.protocol.answers import ActedPage, Answer, Cancelled
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Act, Cancel, Ext, Kind, Requeue
from givalia_core.store.base import SCAN_MAX, Cursor, Filter, Store, Wanted

CONN: Final = -1  # Stands for a connection; connection numbers begin at 1.
AT_ONCE: Final = 100  # Commands in one batch: a batch delays the commands of others.
STATES_OF: Final[dict[str, tuple[JobState, ...]]] = {
    "cancel": (WAITING, JobState.READY, RUNNING),
    "ext": (WAITING, JobState.READY, RUNNING),
    "requeue": (DEAD, CANCELLED),
}
"""The states of the jobs to which an act applies."""
_DONE: Final = {"ext": "moved", "requeue": "requeued"}  # The count's name for a success; an answer to `cancel` has its own.


class Awaiting(NamedTuple):
    """The ticket of the commands whose answers a walk waits for."""

    ticket: int


Walk: TypeAlias = Generator["bool | Awaiting", tuple[Now, int], Answer]


class Acts:
    """The commands that pages have submitted, which the engine decides in its next batch, and their answers."""

    def __init__(self) -> None:
        self.submitted: list[Asked] = []
        self._last = 0
        self.answers: dict[int, list[Answer] | None] = {}  # By ticket; None: not answered yet.

    def submit(self, kind: Kind, messages: list[Any]) -> int:
        """Submit these commands for the next batch; return the ticket for their answers."""
        self._last += 1
        self.answers[self._last] = None
        self.submitted.append(Asked(CONN, self._last, kind, messages))
        return self._last

    def take(self) -> list[Asked]:
        """Take out and return the commands submitted since the last call."""
        taken, self.submitted = self.submitted, []
        return taken

    def without_own(self, effects: list[Effect]) -> list[Effect]:
        """Keep the answers to these commands that a walk still waits for, and return the other effects."""
        others: list[Effect] = []
        for effect in effects:
            if not isinstance(effect, Reply) or effect.conn != CONN:
                others.append(effect)
            elif effect.request in self.answers:
                self.answers[effect.request] = effect.answers
        return others

    def is_answered(self, ticket: int) -> bool:
        """Return whether the answers have arrived or the ticket was dropped."""
        return self.answers.get(ticket, ()) is not None

    def collect(self, ticket: int) -> list[Answer]:
        """Return the answers and forget them."""
        return self.answers.pop(ticket, None) or []

    def drop(self, ticket: int) -> None:
        """Forget a ticket whose answers no walk waits for any more."""
        self.answers.pop(ticket, None)


def page(acts: Acts, store: Store, message: Act, wanted: Filter, last_seq: int) -> Walk:
    """Act on the jobs of one page; return the counts of the outcomes and the place where the next page begins.

    Args:
        acts: Receives the commands.
        store: Has the jobs.
        message: The request.
        wanted: Its filter.
        last_seq: The seq of the newest job.
    """
    now, rows = yield False
    _refuse_nonsense(message, wanted, now)
    if not wanted.is_by_end:
        wanted = wanted._replace(by_enq=True)
    end_seq = message.end_seq
    if end_seq is None:
        end_seq = store.find(Wanted(numbers=True), now).floor or last_seq
    after = None if message.after_a is None or message.after_b is None else (message.after_a, message.after_b)
    jobs: list[Job] = []
    left = SCAN_MAX
    while True:
        looked_at = min(rows, left)
        found = store.page(wanted, after, message.limit - len(jobs), now, looked_at)
        jobs += [_brief(job) for job in found.jobs if _is_meant(wanted, job, now, end_seq)]
        after, left = _within(wanted, found.after, end_seq), left - looked_at
        if after is None or len(jobs) == message.limit or not left:
            break
        now, rows = yield False
    if message.dry_run:
        held = _held_keys(store, jobs, now) if message.act == "requeue" else set()
        counts = Counter(_would_be(message, job, now, held) for job in jobs)
    else:
        counts = Counter()
        for start in range(0, len(jobs), AT_ONCE):
            ticket = acts.submit(*_commands(message, jobs[start : start + AT_ONCE]))
            yield Awaiting(ticket)
            counts += _counted(message, acts.collect(ticket))
    return ActedPage(dict(counts), end_seq, *(after or ()))


def _refuse_nonsense(message: Act, wanted: Filter, now: Now) -> None:
    if message.act == "ext" and (message.delta_us is None) == (message.at_us is None):
        raise Refusal(BadRequest("ext takes either a time or an at"))
    states = STATES_OF[message.act]
    if wanted.state is not None and wanted.state not in states:
        raise Refusal(BadRequest(f"{message.act} is for jobs that are {' or '.join(states)}, not {wanted.state}"))
    if message.act == "requeue" and wanted.state is None:
        raise Refusal(BadRequest("requeue by filter names a state: dead or cancelled"))
    dues.due_of(0, message.at_us, now)


def _brief(job: Job) -> Job:
    return job.changed(params=b"", result=None, error=None)


def _is_meant(wanted: Filter, job: Job, now: Now, end_seq: int) -> bool:
    """Return whether the run acts on this job; a filter without a state admits jobs of all states."""
    return wanted.is_by_end or (job.seq <= end_seq and job.state not in ENDED and not job.is_expired(now))


def _within(wanted: Filter, after: Cursor | None, end_seq: int) -> Cursor | None:
    """Return the cursor where the run goes on; None if the jobs behind it came after the run began."""
    return after if after is None or wanted.is_by_end or after[1] < end_seq else None


def _held_keys(store: Store, jobs: list[Job], now: Now) -> set[str]:
    """Return the keys of these jobs that live jobs hold."""
    keys = frozenset(job.key for job in jobs if job.key is not None)
    return set(store.find(Wanted(keys=keys), now).live) if keys else set()


def _would_be(message: Act, job: Job, now: Now, held: set[str]) -> str:
    """Return the outcome that the act would have for a job; `held` are the keys that live jobs would hold by then."""
    if message.act == "requeue" and job.key is not None:
        if job.key in held:
            return DuplicateKey.code
        held.add(job.key)
    if job.state is not RUNNING:
        try:
            if message.act == "ext":
                dues.moved_due(job, message.delta_us, message.at_us, now)
        except Refusal as refused:
            return refused.error.code
        return _DONE.get(message.act, "cancelled")
    return "stop_requested" if message.act == "cancel" and message.running else str(RUNNING)


def _commands(message: Act, jobs: list[Job]) -> tuple[Kind, list[Any]]:
    """Return the commands by id for these jobs."""
    run = message.run or message.request
    requests = [blake2b(run + job.seq.to_bytes(8), digest_size=16).digest() for job in jobs]
    made: list[Any]
    if message.act == "cancel":
        made = [Cancel(request, None, job.id, message.running) for request, job in zip(requests, jobs, strict=True)]
        return Kind.CANCEL, made
    if message.act == "ext":
        move = message.delta_us, message.at_us
        return Kind.EXT, [Ext(request, None, job.id, *move) for request, job in zip(requests, jobs, strict=True)]
    due = max(message.delta_us or 0, 0), message.at_us
    return Kind.REQUEUE, [Requeue(request, None, job.id, *due) for request, job in zip(requests, jobs, strict=True)]


def _counted(message: Act, answers: list[Answer]) -> Counter[str]:
    """Count the outcomes of the commands.

    Raises:
        Refusal: Some commands were not decided; the client must send the page again.
    """
    counts: Counter[str] = Counter()
    for answer in answers:
        # A `BadRequest` decides a command of ours: it refuses the content, such as an ext beyond ten years.
        if isinstance(answer, UNDECIDED) and not isinstance(answer, BadRequest):
            raise Refusal(answer)
        counts[_outcome(message, answer)] += 1
    return counts


def _outcome(message: Act, answer: Answer) -> str:
    if isinstance(answer, WrongState):
        return str(answer.details.get("state", answer.code))
    if isinstance(answer, GivaliaError):
        return answer.code
    return answer.outcome if isinstance(answer, Cancelled) else _DONE[message.act]
