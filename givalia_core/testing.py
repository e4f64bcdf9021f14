"""A kit for tests of WorkModules: one attempt, or a whole queue, without a server, a disk or waiting.

`run` takes a module through one attempt as a worker would. `Queue` is the real engine on a clock that stands still until you
advance it: a week passes in a moment, retries and backoff included. It has the verbs of `Client`.

    queue = Queue({"Expire": Expire})
    queue.enq("Expire", time=7 * 86_400, key="cart-7")
    queue.advance(days=7)
    assert queue.stat("cart-7").state == "done"
"""

from __future__ import annotations

import contextlib
import random
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import count
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgpack

from givalia_core.client.client import Client
from givalia_core.client.commands import pack_params
from givalia_core.client.delivery import read_answers
from givalia_core.client.pending import FOREVER_S, OnProgress, Pending
from givalia_core.clock import SECOND_US, ManualClock, Now, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.records import Effect, Hook, Reply, Tell
from givalia_core.errors import GivaliaError, WaitTimeout
from givalia_core.hooks import HOOKS, Hooks
from givalia_core.modules import WorkModule, describe
from givalia_core.policy import Policy
from givalia_core.protocol import codec, messages
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import answer_item, item
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Announce, Credit, Dispatch, Join, Kind, Progress, Stop
from givalia_core.store import Memory
from givalia_core.times import Length, length_to_us
from givalia_core.views import Outcome, text_id
from givalia_core.worker.attempt.pipeline import Attempt, execute

__all__ = ["ManualClock", "Memory", "Queue", "Ran", "run"]

T = TypeVar("T")

OTHERS_S: Final = 10.0  # The time that a thread waits for the job of another thread.
_USER: Final = 1
_WORKER: Final = 2
_KINDS: Final = {messages.Succeed: Kind.SUCCEED, messages.FailReport: Kind.FAIL, messages.Release: Kind.RELEASE}
_FREE: Final = Asked(_WORKER, 3, Kind.CREDIT, [Credit(1)])  # The worker takes one job at a time.


class Ran(NamedTuple):
    """One attempt that was made: its job, its outcome, and the progress that it reported."""

    id: str
    key: str | None
    module: str
    attempt: int
    params: Any
    outcome: Outcome
    progress: list[tuple[float, str]]


def run(
    work: type[WorkModule],
    params: Any = None,
    *,
    key: str | None = None,
    attempt: int = 1,
    cancelled: bool = False,
    plugins: Sequence[object] = (),
) -> Ran:
    """Run one attempt of a module here and now; an exception of the job is in the outcome, never raised."""
    dispatch = Dispatch(uuid.uuid4().bytes, 1, work.__name__, attempt, 0, key, payload=pack_params(params))
    said: list[Any] = []
    attempt_ = _attempt(work, dispatch, Hooks(plugins), said.append)
    attempt_.is_stop_asked = cancelled
    execute(attempt_)
    return _ran(attempt_, said)


def _attempt(work: type[WorkModule], dispatch: Dispatch, hooks: Hooks, say: Callable[[Any], None]) -> Attempt:
    return Attempt(dispatch, describe(dispatch.module, "test", "0", work).work, hooks, say)


def _ran(attempt: Attempt, said: Iterable[Any]) -> Ran:
    dispatch = attempt.dispatch
    progress = [(hint.fraction, hint.text) for hint in said if isinstance(hint, Progress)]
    return Ran(text_id(dispatch.id), dispatch.key, dispatch.module, dispatch.attempt, attempt.params, attempt.outcome, progress)


class Queue(Client):
    """A queue in this process: the engine that servers run, a store in memory, and a clock of your own.

    It is a `Client` with all its verbs, so code that takes a client can be given a queue. `wait` lets time pass until the job
    has ended; after its `timeout`, or if nothing is due that could end the job, it raises `WaitTimeout`.

    Args:
        modules: The WorkModules that the one worker of this queue serves, by name.
        plugins: Plugin objects whose hooks for jobs are called: those of the worker and those of the server.

    Jobs run inside `advance` (and `enq`, when due at once), one after the other. `ran` lists every attempt so far. Threads may
    share a queue: one at a time is served, and the jobs that are due meanwhile run in that thread.

    Raises:
        BadRequest: A name in `modules` is not legal.
    """

    def __init__(self, modules: Mapping[str, type[WorkModule]], *, plugins: Sequence[object] = ()) -> None:
        self._inside = _Inside(modules, Hooks(plugins))
        self.clock = self._inside.clock
        self.ran = self._inside.ran
        self._transport = self._inside

    @classmethod
    def from_settings(cls, *_: Any, **__: Any) -> Self:
        """Refuse: a queue is in this process, and settings name servers.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a Queue asks no server, so it has no settings; make it with Queue(modules)")

    def advance(self, seconds: Length = 0.0, **length: float) -> list[Ran]:
        """Let time pass (`advance(90)`, `advance(timedelta(days=7))`, `advance(days=7)`).

        Returns:
            The attempts that were made meanwhile.

        Raises:
            BadRequest: Not a number or `timedelta`, negative, or over ten years.
        """
        before = len(self.ran)
        self._inside.advance(length_to_us(seconds, "seconds") + length_to_us(timedelta(**length), "the length"))
        return self.ran[before:]


class _Inside:
    """A server and its one worker in this process, which serve the queue's calls."""

    def __init__(self, modules: Mapping[str, type[WorkModule]], hooks: Hooks) -> None:
        self.clock = ManualClock()
        self.ran: list[Ran] = []
        self._modules = dict(modules)
        self._hooks = hooks
        self._numbers = count(1)
        self._asked: dict[int, OnProgress | None] = {}  # The unanswered requests, by number.
        self._answered: dict[int, list[Item]] = {}
        self._attempts: dict[int, Attempt] = {}  # The running attempts, by fence: while a job asks something, others may run.
        self._lock = threading.RLock()  # Threads share a client, and a job that runs here may use this queue, too.
        self._runners: dict[int, int] = {}  # By fence, the thread that runs the attempt.
        self._ended = threading.Condition(self._lock)  # Notified when an attempt has ended.
        self._store = Memory()
        opened = self._store.open()
        self._timer = TimerClock.start(self.clock, opened.mark)
        self._engine = turn.start(self._store, opened, self._timer, self.clock, Policy(), random.Random(0))
        self._engine.desk.listening = frozenset(name for name in HOOKS if hooks.listens(name))
        found = [describe(name, "test", "0", work) for name, work in self._modules.items()]
        announced = [
            Announce(each.name, "test", "0", "greenlet", each.max_attempts, each.timeout_us, each.backoff_us,
                     each.backoff_max_us, each.broken)
            for each in found
        ]  # fmt: skip
        for each in announced:
            fields, payload = item(each)
            codec.check(Kind.ANNOUNCE, list(fields), payload)
        self._turn(Asked(_WORKER, 1, Kind.JOIN, [Join("any", uuid.uuid4().bytes)]))
        self._turn(Asked(_WORKER, 2, Kind.ANNOUNCE, announced))
        self._turn(_FREE)

    # The transport of the client.

    def ask(self, request: Pending[T], on_progress: OnProgress | None = None) -> T:
        """Return the answer to one command; while it waits for a job's end, time passes."""
        with self._lock:
            number = self._send(request, on_progress)
            if request.waits and number not in self._answered:
                self._await(number, request.timeout_s)
            (answer,) = self._read(request, number)
        if isinstance(answer, GivaliaError):
            raise answer
        answered: T = answer
        return answered

    def several(self, requests: Iterable[Pending[Any]]) -> list[Any]:
        """Return the answers to many requests, in order."""
        with self._lock:
            return [answer for request in requests for answer in self._read(request, self._send(request))]

    def close(self) -> None:
        """Do nothing: the jobs stay in this object as long as it lives."""

    def _send(self, request: Pending[Any], on_progress: OnProgress | None = None) -> int:
        number = next(self._numbers)
        self._asked[number] = on_progress
        asked = [codec.check(request.kind, list(fields), payload) for fields, payload in request.items]
        self._turn(Asked(_USER, number, request.kind, asked))
        return number

    def _read(self, request: Pending[Any], number: int) -> list[Any]:
        # In the form that a client gets from the wire.
        answers = [(msgpack.unpackb(msgpack.packb(fields)), payload) for fields, payload in self._answered.pop(number)]
        return read_answers(request, answers)

    def _await(self, number: int, timeout_s: float | None) -> None:
        """Let time pass until the request of this number is answered.

        Raises:
            WaitTimeout: The time is over, or nothing that is due can answer the request.
        """
        left_us = round(timeout_s * SECOND_US) if timeout_s is not None and timeout_s < FOREVER_S else None
        while number not in self._answered:
            due_us = self._next_due_us()
            if due_us is None and self._waits_for_another_thread():
                continue
            if (due_us if left_us is None else left_us or None) is None:
                del self._asked[number]
                why = "nothing is due that could end the job" if left_us is None else f"{timeout_s:g} s have passed"
                raise WaitTimeout(f"the job has not ended: {why}")
            step_us = min(each for each in (due_us, left_us) if each is not None)
            self._step(step_us)
            left_us = None if left_us is None else left_us - step_us

    def _waits_for_another_thread(self) -> bool:
        """Wait for the end of an attempt that another thread runs, if there is one; return whether one has ended.

        An attempt that waits for this thread is given up after `OTHERS_S`: the queue's one worker runs one job at a time.
        """
        others = [thread for thread in self._runners.values() if thread != threading.get_ident()]
        return bool(others) and self._ended.wait(OTHERS_S)

    # Time, and what happens in it.

    def advance(self, left_us: int) -> None:
        """Let time pass, from one due job to the next."""
        with self._lock:
            self._turn()
            while left_us > 0:
                due_us = self._next_due_us()
                step_us = left_us if due_us is None else min(due_us, left_us)
                self._step(step_us)
                left_us -= step_us

    def _next_due_us(self) -> int | None:
        """Return the microseconds until the next job falls due; None if there is none."""
        due_us = self._engine.desk.routing.next_due_us()
        return None if due_us is None else max(due_us - self._timer.now(self.clock.read()).timer_us, 1)

    def _step(self, us: int) -> None:
        self.clock.advance(us=us)
        self._turn(_FREE)  # Counts as a beat of the worker.

    def _turn(self, *asked: Asked) -> None:
        """Take turns until neither a job is due nor a question is open."""
        inputs: Sequence[Asked] = asked
        while True:
            effects = turn.turn(self._engine, self._store, self._timer, inputs, self.clock)
            effects += turn.walk(self._engine, self._store, self._timer, self.clock)
            now = self._timer.now(self.clock.read())
            inputs = [report for effect in effects for report in self._carry_out(effect, now)]
            if not inputs and self._engine.wake_in_us(now):
                return

    def _carry_out(self, effect: Effect, now: Now) -> list[Asked]:
        """Carry out an effect of a turn; return the worker's reports that result."""
        if isinstance(effect, Hook):
            self._hooks.call(effect.name, **effect.arguments(now))
        elif isinstance(effect, Reply):
            if effect.conn == _USER and effect.request in self._asked:
                del self._asked[effect.request]
                self._answered[effect.request] = [answer_item(answer) for answer in effect.answers]
        elif isinstance(effect, Tell) and effect.kind is Kind.PROGRESSED:
            self._tell_progress(effect)
        elif isinstance(effect, Tell) and effect.kind is Kind.STOP:
            for fields, _ in effect.items:
                self._stop(Stop(*fields))
        elif isinstance(effect, Tell) and effect.kind is Kind.DISPATCH:
            return [report for job in effect.items[1:] for report in self._run(job)]
        return []

    def _tell_progress(self, told: Tell) -> None:
        for fields, _ in told.items:
            request, fraction, text = fields
            if (on_progress := self._asked.get(request)) is not None:
                on_progress(fraction, text)

    def _run(self, job: Item) -> list[Asked]:
        fields, payload = job
        dispatch = Dispatch(*fields)._replace(payload=payload)
        said: list[Any] = []

        def say(message: Any) -> None:
            said.append(message)
            if isinstance(message, Progress):  # Progress is sent while the job runs; the rest when the job has ended.
                with self._lock:
                    self._turn(Asked(_WORKER, 4, Kind.PROGRESS, [message]))

        attempt = self._attempts[dispatch.fence] = _attempt(self._modules[dispatch.module], dispatch, self._hooks, say)
        self._runners[dispatch.fence] = threading.get_ident()
        try:
            with self._unlocked():  # The job may have threads of its own that use the queue.
                execute(attempt)
        finally:
            del self._attempts[dispatch.fence], self._runners[dispatch.fence]
            self._ended.notify_all()
        self.ran.append(_ran(attempt, said))
        return [Asked(_WORKER, 4, _KINDS[type(message)], [message]) for message in said if type(message) in _KINDS]

    @contextlib.contextmanager
    def _unlocked(self) -> Iterator[None]:
        depth = 0
        while self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - RLock has no public question for it.
            self._lock.release()
            depth += 1
        try:
            yield
        finally:
            for _ in range(depth):
                self._lock.acquire()

    def _stop(self, stop: Stop) -> None:
        """Let the running job see that it was cancelled."""
        attempt = self._attempts.get(stop.fence)
        if attempt is not None and not attempt.is_stop_asked:
            attempt.is_stop_asked = True
            self._hooks.call("on_cancel", job=attempt.job, running=True)
