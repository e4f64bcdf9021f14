"""For the tests of people who write WorkModules: one attempt, or a whole queue, without a server, a disk or waiting.

`run` takes a module through one attempt as a worker would. `Queue` is the real engine on a clock that stands still until you
advance it: a week passes in a moment, retries and backoff included.

    queue = Queue({"Expire": Expire})
    queue.enq("Expire", time=7 * 86_400, key="cart-7")
    queue.advance(days=7)
    assert queue.stat("cart-7").state == "done"
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

from givalia_core.client import talk, verbs
from givalia_core.client.many import Many
from givalia_core.clock import ManualClock, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.records import Asked, Effect, Reply, Tell
from givalia_core.errors import NotFound, WrongState
from givalia_core.hooks import Hooks
from givalia_core.modules import WorkModule, describe
from givalia_core.policy import Policy
from givalia_core.protocol import messages
from givalia_core.protocol.messages import Announce, Credit, Dispatch, Join, Kind, Progress
from givalia_core.store import Memory
from givalia_core.times import Instant, Length, length_to_us
from givalia_core.views import Outcome, Status, text_id
from givalia_core.worker.pipeline import Attempt, execute

__all__ = ["ManualClock", "Memory", "Queue", "Ran", "run"]

T = TypeVar("T")

_USER: Final = 1
_WORKER: Final = 2
_KINDS: Final = {messages.Succeed: Kind.SUCCEED, messages.Fail: Kind.FAIL, messages.Release: Kind.RELEASE}


class Ran(NamedTuple):
    """One attempt that was made: of which job, how it ended, and what it said of its progress."""

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
    """Run one attempt of a module here and now; what it raises is in the outcome, never raised."""
    dispatch = Dispatch(uuid.uuid4().bytes, 1, work.__name__, attempt, 0, key, payload=talk.pack_params(params))
    made, _ = _attempt(work, dispatch, Hooks(plugins), cancelled=cancelled)
    return made


def _attempt(work: type[WorkModule], dispatch: Dispatch, hooks: Hooks, *, cancelled: bool = False) -> tuple[Ran, list[Any]]:
    said: list[Any] = []
    attempt = Attempt(dispatch, describe(dispatch.module, "test", "0", work).work, hooks, said.append)
    attempt.is_cancelled = cancelled
    execute(attempt)
    progress = [(hint.fraction, hint.text) for hint in said if isinstance(hint, Progress)]
    ran = Ran(text_id(dispatch.id), dispatch.key, dispatch.module, dispatch.attempt, attempt.params, attempt.outcome, progress)
    return ran, [message for message in said if not isinstance(message, Progress)]


class Queue:
    """A queue in this process: the engine that servers run, a store in memory, and a clock of your own.

    Args:
        modules: The WorkModules that the one worker of this queue serves, by name.
        plugins: Plugin objects whose worker hooks (`before_run`, `after_run`) are called.

    Jobs run inside `advance` (and `enq`, when due at once), one after the other. `ran` lists every attempt so far.
    """

    def __init__(self, modules: Mapping[str, type[WorkModule]], *, plugins: Sequence[object] = ()) -> None:
        self.clock = ManualClock()
        self.ran: list[Ran] = []
        self._modules = dict(modules)
        self._hooks = Hooks(plugins)
        self._store = Memory()
        opened = self._store.open()
        self._timer = TimerClock.start(self.clock, opened.mark)
        self._engine = turn.start(self._store, opened, self._timer, self.clock, Policy(), random.Random(0))
        found = [describe(name, "test", "0", work) for name, work in self._modules.items()]
        announced = [
            Announce(each.name, "test", "0", "greenlet", each.max_attempts, each.timeout_us, each.backoff_us,
                     each.backoff_max_us, each.broken)
            for each in found
        ]  # fmt: skip
        self._turn(Asked(_WORKER, 1, Kind.JOIN, [Join("any", uuid.uuid4().bytes)]))
        self._turn(Asked(_WORKER, 2, Kind.ANNOUNCE, announced))
        self._turn(Asked(_WORKER, 3, Kind.CREDIT, [Credit(1)]))

    def enq(self, module: str, **options: Any) -> Status:
        """Enqueue a job as `Client.enq` does; returns its status."""
        enqueued = self._ask(talk.enq(module, **options))
        return self.stat(id=text_id(enqueued.id))

    def stat(self, key: str | None = None, *, id: str | None = None) -> Status:
        """As `Client.stat`."""
        return self._ask(talk.stat(key, id))

    def cancel(self, key: str | None = None, *, id: str | None = None) -> str:
        """As `Client.cancel`."""
        return self._ask(talk.cancel(key, id, running=False))

    def ext(
        self, key: str | None = None, time: Length | None = None, *, at: Instant | None = None, id: str | None = None
    ) -> datetime:
        """As `Client.ext`."""
        return self._ask(talk.ext(key, id, time, at))

    def cancel_many(
        self, jobs: Iterable[str | Status] | None = None, *, ids: Iterable[str] | None = None
    ) -> list[str | NotFound | WrongState]:
        """As `Client.cancel_many`."""
        return self._ask_many(verbs.cancel_many(jobs, ids=ids))

    def ext_many(
        self,
        jobs: Iterable[str | Status] | Mapping[Any, Length] | None = None,
        time: Length | None = None,
        *,
        at: Instant | None = None,
        ids: Iterable[str] | Mapping[str, Length] | None = None,
    ) -> list[datetime | NotFound | WrongState]:
        """As `Client.ext_many`."""
        return self._ask_many(verbs.ext_many(jobs, time, at=at, ids=ids))

    def advance(self, seconds: Length = 0.0, **length: float) -> list[Ran]:
        """Let time pass (`advance(90)`, `advance(timedelta(days=7))`, `advance(days=7)`).

        Returns:
            The attempts that this brought about.

        Raises:
            BadRequest: Not a number or `timedelta`, negative, or over ten years.
        """
        before = len(self.ran)
        left_us = length_to_us(seconds, "seconds") + length_to_us(timedelta(**length), "the length")
        self._turn()
        while left_us > 0:
            now = self._timer.now(self.clock.read())
            due_us = self._engine.desk.routing.next_due_us()
            step_us = left_us if due_us is None else min(max(due_us - now.timer_us, 1), left_us)
            self.clock.advance(us=step_us)
            left_us -= step_us
            self._turn()
        return self.ran[before:]

    def _ask(self, call: talk.Call[T]) -> T:
        return talk.only(call, self._answers(call))

    def _ask_many(self, many: Many[T]) -> list[T | NotFound | WrongState]:
        return many.finish([answer for call in many.calls for answer in self._answers(call)])

    def _answers(self, call: talk.Call[Any]) -> list[Any]:
        asked = [messages.check(call.kind, list(fields), payload) for fields, payload in call.items]
        effects = self._turn(Asked(_USER, 1, call.kind, asked))
        (reply,) = (effect for effect in effects if isinstance(effect, Reply) and effect.conn == _USER)
        return talk.read_answers(call, [(list(fields), payload) for fields, payload in reply.items])

    def _turn(self, *asked: Asked) -> list[Effect]:
        """One turn, then the jobs it brought, until none is left that is due."""
        first = effects = turn.turn(self._engine, self._store, self._timer, asked, self.clock)
        while reports := [report for effect in effects if isinstance(effect, Tell) for report in self._run(effect)]:
            effects = turn.turn(self._engine, self._store, self._timer, reports, self.clock)
        return first

    def _run(self, told: Tell) -> list[Asked]:
        reports: list[Asked] = []
        if told.kind is not Kind.DISPATCH:
            return reports
        for fields, payload in told.items[1:]:
            dispatch = Dispatch(*fields)._replace(payload=payload)
            ran, said = _attempt(self._modules[dispatch.module], dispatch, self._hooks)
            self.ran.append(ran)
            reports += [Asked(_WORKER, 4, _KINDS[type(message)], [message]) for message in said]
        return reports
