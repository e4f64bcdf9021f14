"""Bugs put in on purpose: a judge that has never found a bug proves nothing.

Each is a mistake that somebody could make in one evening, with the promises that must catch it. `MUTANTS` names the bugs;
entering the context of one puts the bug in, leaving the context removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from sim_server import PowerCut

from givalia_core import variants
from givalia_core.clock import Clock, Now, Reading, TimerClock
from givalia_core.engine import answers, changes, failures, leases, turn, unchanged, verbs, workers
from givalia_core.engine import batch as batches
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk
from givalia_core.engine.records import Effect, Input, Refusal
from givalia_core.engine.remembered import Remembered
from givalia_core.engine.steps import Arrived, Read
from givalia_core.engine.turn import Engine
from givalia_core.errors import Stale, StoreFull
from givalia_core.model import ENDED, RUNNING, Job, OutcomeKind, evolve
from givalia_core.protocol.answers import TAKEN, Cancelled
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.routing import Routing
from givalia_core.store.base import Claim, Commit, Timer
from givalia_core.store.memory import Memory
from givalia_core.takers import WorkerSession
from givalia_core.timers import Prefix, Window
from givalia_core.worker.link.lease_core import LeaseCore
from givalia_core.worker.link.records import LinkEvent, Lost

Patch = AbstractContextManager[Any]


class Mutant(NamedTuple):
    """One bug: the invariants of which one must notice it, and what puts it in."""

    invariants: frozenset[str]
    patches: Callable[[], Sequence[Patch]]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While this lasts, the bug is in."""
        with ExitStack() as stack:
            for patch in self.patches():
                stack.enter_context(patch)
            yield


def _swap(place: Any, name: str, value: Any) -> Patch:
    return mock.patch.object(place, name, value)


def _verb(kind: Kind, decide: Any, **other: Any) -> Patch:
    return mock.patch.dict(answers.VERBS, {kind: answers.VERBS[kind]._replace(decide=decide, **other)})


def ext_leaves_the_old_timer() -> Sequence[Patch]:
    """The near window keeps the old due of a job that was moved, and the store does not look whether it is due."""
    offer, claimable = Window.offer, Memory._claimable

    def keep_the_old(self: Window, timer: Timer, now_us: int) -> None:
        if timer.seq not in self.timers.members:
            offer(self, timer, now_us)

    def due_or_not(self: Memory, claim: Claim, now: Now, *share: Any) -> list[Job]:
        return claimable(self, claim, now._replace(timer_us=now.timer_us << 1, wall_us=now.wall_us << 1), *share)

    return [
        _swap(Window, "offer", keep_the_old), _swap(Routing, "discard", _do_nothing), _swap(Memory, "_claimable", due_or_not),
    ]  # fmt: skip


def _do_nothing(*_: Any) -> None:
    return None


def answers_leave_before_the_commit() -> Sequence[Patch]:
    """Decided, answered, then on disk."""

    def hasty(engine: Engine, store: Any, timer: TimerClock, inputs: Sequence[Input], clock: Clock) -> list[Effect]:
        now = timer.now(clock.read())
        arrived = Arrived(engine, [*engine.again.inputs, *inputs], now)
        arrived.fill(store.upcoming(arrived.spans, now))
        decided = arrived.read(store).decide()
        effects = decided.committed(Commit())
        try:
            store.commit(decided.changes, timer.mark(now), decided.retention)
        except PowerCut as cut:
            cut.effects = effects
            raise
        except StoreFull:
            return effects
        return effects

    return [_swap(turn, "turn", hasty)]


def cancel_says_yes_of_a_running_job() -> Sequence[Patch]:
    """A cancel that comes too late is answered as if it had come in time."""
    right = changes.cancel

    def cancel(batch: Batch, asked: Asked, message: Any) -> Any:
        try:
            return right(batch, asked, message)
        except Refusal as refused:
            if refused.error.details.get("state") != "running":
                raise
            return Cancelled("cancelled")

    return [_verb(Kind.CANCEL, cancel)]


def fences_are_not_checked() -> Sequence[Patch]:
    """A report on any lease of the job settles the present one."""

    def held(batch: Batch, asked: Asked, message: Any) -> Job | None:
        lease = batch.desk.leases.get(message.id)
        job = None if lease is None else batch.jobs.get(lease.job.seq, lease.job)
        return job if job is not None and job.state is RUNNING else None

    return [_swap(leases, "find_held", held), _swap(failures, "find_held", held)]


def requests_are_not_remembered() -> Sequence[Patch]:
    """A resent command takes effect again."""
    return [_swap(Batch, "by_request", lambda self, request: None)]


def what_changed_nothing_is_not_remembered() -> Sequence[Patch]:
    """A copy of a command that was refused is decided anew."""
    return [_swap(unchanged, "recall", lambda batch, kind, request: None)]


def a_refusal_is_forgotten_with_its_batch() -> Sequence[Patch]:
    """Only copies that arrive together are known."""
    return [_swap(Remembered, "add", _do_nothing)]


def a_job_remembers_the_last_four_commands() -> Sequence[Patch]:
    """However young they are, older ones are forgotten."""
    return [_swap(batches, "still_remembered", lambda answered, since_us: answered[-3:])]


def late_commands_are_decided() -> Sequence[Patch]:
    """Nobody looks for how long the client waits."""
    right = answers.answer

    def answer(batch: Batch, asked: Asked, *more: Any) -> None:
        right(batch, asked._replace(until_us=None), *more)

    return [_swap(answers, "answer", answer)]


def a_resent_enq_makes_another_job() -> Sequence[Patch]:
    """The id that the client sent is not what a job is known by."""
    right = verbs.enq

    def enq(batch: Batch, asked: Asked, message: Any) -> Any:
        if batch.by_id(message.id) is not None:
            message = message._replace(id=message.id[::-1], key=None)
        return right(batch, asked, message)

    return [_verb(Kind.ENQ, enq, known=_do_nothing)]


def keys_are_not_unique() -> Sequence[Patch]:
    """Neither the engine nor the store looks whether a key is held."""
    apply = Memory._apply

    def careless(self: Memory, change: Any) -> bool:
        if change.job.key is not None:
            self._live.pop(change.job.key, None)
        if change.was is not None and change.was.key is not None and change.was.is_live:
            self._live[change.was.key] = change.was.seq
        return apply(self, change)

    return [_swap(Batch, "live", lambda self, key: None), _swap(Memory, "_apply", careless)]


def a_lost_lease_costs_no_attempt() -> Sequence[Patch]:
    """Only reported failures count, so a job that kills its worker is tried for ever."""
    right = failures.settle_failure

    def settle(batch: Batch, job: Job, kind: OutcomeKind, error: str, *how: Any, **more: Any) -> None:
        if kind is OutcomeKind.DIED and not job.stop_asked:
            tried = evolve(job, "fail")
            tried.attempt, tried.on_wall, tried.due_at_us = job.attempt - 1, False, batch.now.timer_us
            batch.put(job, tried)
            return
        right(batch, job, kind, error, *how, **more)

    return [_swap(failures, "settle_failure", settle)]


def fences_begin_anew_after_a_restart() -> Sequence[Patch]:
    """The boot epoch is not in the fence."""
    right = Desk.__init__

    def init(self: Desk, policy: Any, epoch: int, last_seq: int, rng: Any, **more: Any) -> None:
        right(self, policy, 1, last_seq, rng, **more)

    return [_swap(Desk, "__init__", init)]


def a_prefix_forgets_that_there_is_more() -> Sequence[Patch]:
    """Timers that did not fit into the near window are never read."""
    right = Prefix.fill

    def fill(self: Prefix, timers: list[Timer], more: bool) -> None:
        right(self, timers, False)

    return [_swap(Prefix, "fill", fill)]


def a_restart_forgets_the_leases() -> Sequence[Patch]:
    """Running jobs of an earlier life of the server are nobody's."""
    return [_swap(Memory, "running", lambda self: [])]


def relative_delays_follow_the_wall_clock() -> Sequence[Patch]:
    """The timer clock is the wall clock."""

    def now(self: TimerClock, reading: Reading) -> Now:
        return Now(reading.wall_us, reading.wall_us, reading.mono_us)

    return [_swap(TimerClock, "now", now)]


def a_restart_forgets_the_timer_clock() -> Sequence[Patch]:
    """After a restart delays go on from what the wall clock says."""
    right = TimerClock.start

    def start(clock: Any, mark: Any) -> TimerClock:
        return right(clock, None)

    return [_swap(TimerClock, "start", start)]


def a_step_of_the_wall_clock_is_not_noticed() -> Sequence[Patch]:
    """The near window keeps absolute jobs where they were before the clock was set."""
    return [_swap(Routing, "forget_windows", _do_nothing)]


def requeue_keeps_the_attempts() -> Sequence[Patch]:
    """A requeued job has only the attempts that its first life left."""

    right = Batch.put

    def put(self: Batch, was: Job, job: Job) -> None:
        if was.state in ENDED:
            job.attempt = was.attempt
        right(self, was, job)

    return [_swap(Batch, "put", put)]


def a_failure_gives_the_attempt_back() -> Sequence[Patch]:
    """A failed attempt is treated as if it had not started."""
    right = failures.fail

    def fail(batch: Batch, asked: Asked, message: Any) -> Any:
        if message.permanent:
            return right(batch, asked, message)
        failures.give_back(batch, failures._held(batch, asked, message))
        return TAKEN

    return [_verb(Kind.FAIL, fail)]


def resume_gives_everything_back() -> Sequence[Patch]:
    """After a reconnect the server takes back also what the worker says it runs."""
    right = workers.resume

    def resume(batch: Batch, asked: Asked) -> Any:
        right(batch, asked._replace(messages=[]))
        return [Stale("given back") for _ in asked.messages]

    return [_verb(Kind.RESUME, resume)]


def deaths_of_processes_are_not_counted() -> Sequence[Patch]:
    """A job that takes its process with it is tried as often as any other."""
    return [_swap(failures, "CHILD_DEATHS_MAX", 1_000)]


def expired_jobs_start() -> Sequence[Patch]:
    """`expires` is stored and never looked at."""
    return [_swap(Job, "is_expired", lambda self, now: False)]


def retries_do_not_wait() -> Sequence[Patch]:
    """The backoff is nothing."""
    return [_swap(Desk, "backoff_us", lambda self, job: 0)]


def a_stopped_job_is_tried_again() -> Sequence[Patch]:
    """That somebody asked it to stop is forgotten when it fails."""
    right = failures.settle_failure

    def settle(batch: Batch, job: Job, *how: Any, **more: Any) -> None:
        right(batch, job.changed(stop_asked=False), *how, **more)

    return [_swap(failures, "settle_failure", settle)]


def leases_end_too_early() -> Sequence[Patch]:
    """The server takes a lease away while its worker still counts on it."""
    right = Read._sweep

    def sweep(self: Read, batch: Batch) -> None:
        for lease in list(batch.desk.leases.values()) if self.arrived.is_sweeping else ():
            if lease.expires_mono_us <= batch.now.mono_us + batch.desk.policy.lease_us // 2:
                failures.expire(batch, lease)
        right(self, batch)

    return [_swap(Read, "_sweep", sweep)]


def whoever_waits_is_forgotten() -> Sequence[Patch]:
    """The end of a job is told to nobody."""
    return [_verb(Kind.WAIT, _do_nothing)]


def a_worker_forgets_what_it_gave_up() -> Sequence[Patch]:
    """A worker that fenced itself does not say, when it is back, that the attempt had started."""
    right = LeaseCore.let_go

    def let_go(self: LeaseCore, now_us: int) -> list[LinkEvent]:
        events = right(self, now_us)
        for event in events:
            assert isinstance(event, Lost)
            del self.held[event.id]
        return events

    return [_swap(LeaseCore, "let_go", let_go)]


def a_worker_lets_go_too_late() -> Sequence[Patch]:
    """The worker counts on a lease for as long again as it lasts."""
    right = LeaseCore.let_go

    def let_go(self: LeaseCore, now_us: int) -> list[LinkEvent]:
        return right(self, now_us - self.lease_us)

    return [_swap(LeaseCore, "let_go", let_go)]


def a_lease_counts_from_the_answer_to_a_beat() -> Sequence[Patch]:
    """The worker counts from when it heard the answer, not from when it sent what is answered."""
    right = LeaseCore.answered

    def answered(self: LeaseCore, number: int, items: Any, now_us: int) -> list[LinkEvent]:
        self._sent_us[number] = now_us
        return right(self, number, items, now_us)

    return [_swap(LeaseCore, "answered", answered)]


def a_worker_resumes_without_what_it_runs() -> Sequence[Patch]:
    """After a reconnect only leases are named whose job has ended."""
    right = LeaseCore._join_with

    def join_with(self: LeaseCore, items: Any, now_us: int) -> None:
        right(self, items, now_us)
        self._frames[-1][1][:] = [hold for hold in self._frames[-1][1] if self.held[hold.id].report is not None]

    return [_swap(LeaseCore, "_join_with", join_with)]


def a_report_is_forgotten_with_its_connection() -> Sequence[Patch]:
    """An unanswered report is not sent again."""
    right = LeaseCore._join_with

    def join_with(self: LeaseCore, items: Any, now_us: int) -> None:
        right(self, items, now_us)
        self._reports.clear()

    return [_swap(LeaseCore, "_join_with", join_with)]


def versions_are_not_compared() -> Sequence[Patch]:
    """Any worker with the module gets the job."""
    return [_swap(WorkerSession, "satisfies", lambda self, module, specifier: True)]


def a_version_nobody_asked_for_before_is_overlooked() -> Sequence[Patch]:
    """The routes with a version are those that were there when the worker announced."""
    right = Routing.offer

    def offer(self: Routing, job: Job, now: Now) -> None:
        if (job.module, job.target) in self.windows:
            right(self, job, now)

    return [_swap(Routing, "offer", offer)]


def an_upgraded_worker_does_not_look_what_waits() -> Sequence[Patch]:
    """The routes with a version are those on which a job came to wait while the worker was there."""
    return [_swap(variants, "learn", lambda routing, asked, found: routing.unlearned.clear())]


def _mutant(patches: Callable[[], Sequence[Patch]], *invariants: str) -> tuple[str, Mutant]:
    return patches.__name__, Mutant(frozenset(invariants), patches)


MUTANTS: dict[str, Mutant] = dict(
    [
        _mutant(ext_leaves_the_old_timer, "I3"),
        _mutant(answers_leave_before_the_commit, "I1", "I4", "I13", "I2"),
        _mutant(cancel_says_yes_of_a_running_job, "I4"),
        _mutant(fences_are_not_checked, "I7"),
        _mutant(requests_are_not_remembered, "I10"),
        _mutant(what_changed_nothing_is_not_remembered, "I10"),
        _mutant(a_refusal_is_forgotten_with_its_batch, "I10"),
        _mutant(a_job_remembers_the_last_four_commands, "I10"),
        _mutant(late_commands_are_decided, "I10"),
        _mutant(a_resent_enq_makes_another_job, "I2", "I1"),
        _mutant(keys_are_not_unique, "I5"),
        _mutant(a_lost_lease_costs_no_attempt, "I6"),
        _mutant(fences_begin_anew_after_a_restart, "I11"),
        _mutant(deaths_of_processes_are_not_counted, "I6"),
        _mutant(a_prefix_forgets_that_there_is_more, "I14"),
        _mutant(a_restart_forgets_the_leases, "I1"),
        _mutant(relative_delays_follow_the_wall_clock, "I3"),
        _mutant(a_restart_forgets_the_timer_clock, "I3"),
        _mutant(a_step_of_the_wall_clock_is_not_noticed, "I14"),
        _mutant(requeue_keeps_the_attempts, "I1"),
        _mutant(a_failure_gives_the_attempt_back, "I6"),
        _mutant(resume_gives_everything_back, "I6"),
        _mutant(expired_jobs_start, "I3"),
        _mutant(retries_do_not_wait, "I3"),
        _mutant(a_stopped_job_is_tried_again, "I4"),
        _mutant(leases_end_too_early, "I8"),
        _mutant(whoever_waits_is_forgotten, "I14"),
        _mutant(a_worker_forgets_what_it_gave_up, "I6"),
        _mutant(a_worker_lets_go_too_late, "I8"),
        _mutant(a_lease_counts_from_the_answer_to_a_beat, "I8"),
        _mutant(a_worker_resumes_without_what_it_runs, "I6", "I8"),
        _mutant(a_report_is_forgotten_with_its_connection, "I14"),
        _mutant(versions_are_not_compared, "T3"),
        _mutant(a_version_nobody_asked_for_before_is_overlooked, "I14"),
        _mutant(an_upgraded_worker_does_not_look_what_waits, "I14"),
    ]
)
