"""A worker process as CONTRACT 1.3 wants it: credits, beats, self-fencing, reports kept until answered, resume.

It follows `givalia_core.worker.link` in what it says and when. Its jobs do nothing but take time. It can die (and come back
as another process), stand still for longer than its lease, and lose its connection at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sim_history import Execution, Report
from sim_world import MS_US, Connection, Network, World

from givalia_core.clock import SECOND_US
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import (
    OK,
    Announce,
    Credit,
    Dispatch,
    Fail,
    Hold,
    Join,
    Kind,
    Release,
    Stop,
    Succeed,
)

FENCE_CHECK_S = 0.25
KIND_OF = {Succeed: Kind.SUCCEED, Fail: Kind.FAIL, Release: Kind.RELEASE}


class Habits(NamedTuple):
    """How the jobs of a run go, as probabilities."""

    fails: float = 0.2
    fails_for_good: float = 0.05
    releases: float = 0.05
    runs_long: float = 0.1
    obeys_stop: float = 0.7
    is_replaced: float = 0.05  # Its process ends for another job's fault.
    kills_process: float = 0.05


class _Held:
    """A lease as the worker knows it, from the dispatch to the answer to its report."""

    __slots__ = ("deadline_us", "execution", "job", "report", "stop_asked")

    def __init__(self, job: Dispatch, deadline_us: int) -> None:
        self.job = job
        self.deadline_us = deadline_us
        self.execution: Execution | None = None
        self.report: Report | None = None
        self.stop_asked = False


class SimWorker:
    """One place where a worker process runs; after a crash another process takes it."""

    forgets_what_it_gave_up = False

    def __init__(
        self,
        world: World,
        network: Network,
        join: Join,
        announced: list[Announce],
        capacity: int,
        lease_us: int,
        habits: Habits,
        versions: Sequence[str],
    ) -> None:
        self.name = join.name
        self.habits = habits
        self._world = world
        self._network = network
        self._join = join
        self._announced = announced
        self._versions = versions
        self._capacity = capacity
        self._lease_us = lease_us
        self._margin_us = max(lease_us // 10, SECOND_US)
        self._life = 0
        self._is_up = False
        self._paused_until_us = 0
        self._clear()

    def _clear(self) -> None:
        self._conn: Connection | None = None
        self._held: dict[bytes, _Held] = {}
        self._given_up: dict[tuple[bytes, int], Report] = {}
        self._inbox: deque[tuple[Connection, Kind, int, list[Item]]] = deque()
        self._asked: dict[int, tuple[Kind, list[Any]]] = {}
        self._sent_us: dict[int, int] = {}
        self._last_request = 0

    # Its life.

    def start(self) -> None:
        """A new process begins."""
        self._clear()
        self._is_up = True
        self._life += 1
        self._paused_until_us = 0
        self._join = self._join._replace(instance=self._world.rng.randbytes(16))
        version = self._world.rng.choice(self._versions)
        self._announced = [announced._replace(version=version) for announced in self._announced]
        self._world.history.versions[self._join.instance] = version
        self._note("fault", "start")
        self._later(self._world.between_us(0.0, 0.5), self._connect)

    def crash(self, down_us: int) -> None:
        """The process dies with all it held; another starts later."""
        if not self._is_up:
            return
        self._is_up = False
        self._note("fault", "crash", value=down_us)
        for held in self._held.values():
            self._end(held)
        if self._conn is not None:
            self._conn.peer_closed()
        self._clear()
        self._life += 1
        self._world.after(down_us, self.start)

    def pause(self, length_us: int) -> None:
        """The process stands still; time goes on."""
        if not self._is_up:
            return
        self._paused_until_us = self._world.now_us + length_us
        self._note("fault", "pause", value=length_us)
        for held in self._held.values():
            if held.execution is not None:
                held.execution.is_honest = False

    def _later(self, delay_us: int, act: Callable[..., None], *args: Any) -> None:
        self._world.after(delay_us, self._act, self._life, act, args)

    def _act(self, life: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Do what is due now, unless the process that wanted it is dead; a paused one does it when it goes on."""
        if life != self._life:
            return
        left_us = self._paused_until_us - self._world.now_us
        if left_us > 0:
            # What was missed comes in any order: greenlets and threads wake as they like.
            self._later(left_us + self._world.rng.randint(0, 30 * MS_US), act, *args)
        else:
            act(*args)

    def _note(self, type: str, act: str, job: bytes | None = None, fence: int = 0, attempt: int = 0, value: Any = None) -> None:
        self._world.history.note(self.name, type, act, job, None, fence, attempt, value)

    # Its connection.

    def _connect(self) -> None:
        conn = self._network.connect(self)
        if conn is None:
            self._later(self._world.between_us(0.1, 1.0), self._connect)
            return
        self._conn = conn
        self._asked.clear()
        self._sent_us.clear()
        self._last_request = 0
        self._ask(Kind.JOIN, [self._join])
        self._ask(Kind.ANNOUNCE, self._announced)
        self._ask(Kind.RESUME, self._holds())
        for report in [*(held.report for held in self._held.values() if held.report), *self._given_up.values()]:
            self._ask(report.kind, [report.message])
        self._ask(Kind.CREDIT, [Credit(self._capacity)])
        self._later(self._lease_us // 3, self._beat, conn)

    def _holds(self) -> list[Hold]:
        """What it holds, and what it gave up but did run: that must not be taken for never started."""
        holds = [Hold(held.job.id, held.job.fence) for held in self._held.values()]
        return holds + [Hold(*name) for name in self._given_up if name[0] not in self._held]

    def lost(self, conn: Connection) -> None:
        """The connection is known to be broken: try again a little later."""
        self._later(0, self._lost, conn)

    def _lost(self, conn: Connection) -> None:
        if conn is self._conn:
            self._conn = None
            self._later(self._world.between_us(0.1, 1.5), self._connect)

    def _hang_up(self) -> None:
        if self._conn is not None:
            self._conn.peer_closed()
            self._lost(self._conn)

    def _ask(self, kind: Kind, messages: list[Any]) -> None:
        if self._conn is None:
            return
        self._last_request += 1
        self._asked[self._last_request] = (kind, messages)
        self._sent_us[self._last_request] = self._world.now_us
        self._conn.ask(kind, self._last_request, messages)

    def _beat(self, conn: Connection) -> None:
        if conn is self._conn:
            self._ask(Kind.BEAT, [Hold(held.job.id, held.job.fence) for held in self._held.values()])
            self._later(self._lease_us // 3, self._beat, conn)

    # What arrives.

    def receive(self, conn: Connection, kind: Kind, request: int, items: list[Item]) -> None:
        """A frame arrives; a paused process finds it later, in order."""
        self._inbox.append((conn, kind, request, items))
        self._later(0, self._read_inbox)

    def _read_inbox(self) -> None:
        while self._inbox:
            conn, kind, request, items = self._inbox.popleft()
            if conn is not self._conn:
                continue
            if kind is Kind.DISPATCH:
                self._dispatched(items)
            elif kind is Kind.STOP:
                self._stopped(items)
            else:
                self._answered(request, items)

    def _dispatched(self, items: list[Item]) -> None:
        (heard, _), *jobs = items
        deadline_us = self._sent_us[heard[0]] + self._lease_us - self._margin_us
        for fields, payload in jobs:
            held = _Held(Dispatch(*fields)._replace(payload=payload), deadline_us)
            older = self._held.get(held.job.id)
            if older is not None:
                self._end(older)
            self._held[held.job.id] = held
            self._note("info", "dispatch", held.job.id, held.job.fence, held.job.attempt)
            self._watch(held)
            queued_s = (0.5, 3.0) if self._world.chance(0.05) else (0.0, 0.05)
            self._later(self._world.between_us(*queued_s), self._begin, held)

    def _stopped(self, items: list[Item]) -> None:
        for fields, _ in items:
            stop = Stop(*fields)
            held = self._held.get(stop.id)
            if held is None or held.job.fence != stop.fence or held.stop_asked:
                continue
            held.stop_asked = True
            if held.execution is not None and self._world.chance(self.habits.obeys_stop):
                self._later(self._world.between_us(0.0, 0.5), self._fail, held, "stopped")

    def _answered(self, request: int, items: list[Item]) -> None:
        kind, messages = self._asked.pop(request)
        if kind in (Kind.BEAT, Kind.RESUME) and len(items) == len(messages):
            deadline_us = self._sent_us[request] + self._lease_us - self._margin_us
            for hold, (fields, _) in zip(messages, items, strict=True):
                self._renew(hold, fields[0], deadline_us)
        elif kind in KIND_OF.values():
            for message, (fields, _) in zip(messages, items, strict=True):
                self._settled(message, fields[0])
        elif any(fields[0] != OK for fields, _ in items):
            self._world.history.blame("protocol", f"the {kind.name} of a joined worker was refused: {items[0][0]}")
            self._hang_up()

    def _renew(self, hold: Hold, code: str, deadline_us: int) -> None:
        held = self._held.get(hold.id)
        if held is None or held.job.fence != hold.fence:
            return
        if code == OK:
            held.deadline_us = max(held.deadline_us, deadline_us)
        elif held.report is None:
            # Somebody else has it. A report that is under way stays: its answer says what became of it.
            self._end(held)
            del self._held[hold.id]

    def _settled(self, message: Any, code: str) -> None:
        held = self._held.get(message.id)
        report = self._given_up.pop((message.id, message.fence), None)
        if held is not None and held.job.fence == message.fence and held.report is not None:
            report = held.report
            del self._held[message.id]
        if report is not None:
            report.code = code
            self._note("ok" if code == OK else "fail", report.kind.name, message.id, message.fence, value=code)

    # Its jobs.

    def _is_held(self, held: _Held) -> bool:
        return self._held.get(held.job.id) is held

    def _watch(self, held: _Held) -> None:
        """Look after the lease until it is over: give it up before the server does."""
        if not self._is_held(held) or held.report is not None:
            return
        left_us = held.deadline_us - self._world.now_us
        if left_us > 0:
            self._later(left_us + self._world.between_us(0.0, FENCE_CHECK_S), self._watch, held)
        else:
            self._give_up(held)

    def _give_up(self, held: _Held) -> None:
        del self._held[held.job.id]
        self._note("info", "give_up", held.job.id, held.job.fence)
        if held.execution is None:
            return
        self._end(held)
        if not self.forgets_what_it_gave_up:
            message = Fail(held.job.id, held.job.fence, "died", "its lease could not be renewed in time")
            report = self._reported(message)
            self._given_up[held.job.id, held.job.fence] = report
            self._ask(report.kind, [message])

    def _begin(self, held: _Held) -> None:
        if not self._is_held(held):
            return
        if held.deadline_us <= self._world.now_us:
            self._give_up(held)
        elif self._world.chance(self.habits.releases):
            self._report(held, Release(held.job.id, held.job.fence))
        else:
            self._execute(held)

    def _execute(self, held: _Held) -> None:
        job, world = held.job, self._world
        held.execution = Execution(job.id, job.fence, job.attempt, self._join.instance.hex()[:8], job.payload, world.now_us)
        world.history.executions.append(held.execution)
        self._note("invoke", "start", job.id, job.fence, job.attempt)
        length_us = world.between_us(0.0, 0.5) if world.chance(0.5) else world.between_us(0.5, 4.0)
        if world.chance(self.habits.runs_long):
            length_us = world.between_us(0.5, 2.0) * self._lease_us // SECOND_US
        if world.chance(self.habits.is_replaced):
            self._later(length_us, self._lose_process, held)
        elif world.chance(self.habits.kills_process):
            self._later(length_us, self._kill_process, held)
        elif world.chance(self.habits.fails):
            self._later(length_us, self._fail, held, "failed")
        else:
            self._later(length_us, self._succeed, held)

    def _succeed(self, held: _Held) -> None:
        if self._is_held(held) and held.report is None:
            self._report(held, Succeed(held.job.id, held.job.fence, payload=b"%d" % held.job.fence))

    def _fail(self, held: _Held, kind: str) -> None:
        if not self._is_held(held) or held.report is not None:
            return
        world = self._world
        after_us = world.between_us(0.0, 3.0) if world.chance(0.2) else None
        is_for_good = kind == "failed" and world.chance(self.habits.fails_for_good)
        self._report(held, Fail(held.job.id, held.job.fence, kind, "it failed on purpose", after_us, is_for_good))

    def _lose_process(self, held: _Held) -> None:
        if self._is_held(held) and held.report is None:
            self._report(held, Release(held.job.id, held.job.fence, replaced=True))

    def _kill_process(self, held: _Held) -> None:
        if self._is_held(held) and held.report is None:
            self._report(held, Fail(held.job.id, held.job.fence, "died", "it took its process with it", child_died=True))

    def _report(self, held: _Held, message: Any) -> None:
        self._end(held)
        held.report = self._reported(message)
        self._ask(held.report.kind, [message])

    def _reported(self, message: Any) -> Report:
        report = Report(KIND_OF[type(message)], message, self._world.now_us)
        self._world.history.reports.append(report)
        self._note("invoke", report.kind.name, message.id, message.fence)
        return report

    def _end(self, held: _Held) -> None:
        if held.execution is not None and held.execution.ended_us is None:
            held.execution.ended_us = self._world.now_us
