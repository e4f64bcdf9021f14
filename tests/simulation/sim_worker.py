"""A worker process: its leases are those of the real lease core, which decides what the worker sends and when.

Only the surroundings of the core are simulated: the connection is the simulated network, and jobs only take time. The process
can die (and come back as another), freeze for longer than its lease, and lose its connection at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sim_history import Execution, Report
from sim_world import MS_US, Connection, Network, World

from givalia_core.clock import SECOND_US
from givalia_core.errors import GivaliaError
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Announce, Credit, Dispatch, FailReport, Join, Kind, Release, Succeed
from givalia_core.worker.link.lease_core import NEVER_US, LeaseCore
from givalia_core.worker.link.records import Dispatched, LinkEvent, Lost, StopAsked

FENCE_CHECK_S = 0.25
REPORTS = (Kind.SUCCEED, Kind.FAIL, Kind.RELEASE)


class Habits(NamedTuple):
    """How the jobs of a run go, as probabilities."""

    fails: float = 0.2
    fails_for_good: float = 0.05
    releases: float = 0.05
    runs_long: float = 0.1
    obeys_stop: float = 0.7
    is_replaced: float = 0.05  # Its process ends for another job's fault.
    kills_process: float = 0.05


class _Run:
    """A job that the worker was lent, from its dispatch to its report."""

    __slots__ = ("execution", "is_over", "job", "stop_asked")

    def __init__(self, job: Dispatch) -> None:
        self.job = job
        self.execution: Execution | None = None
        self.is_over = False
        self.stop_asked = False


class SimWorker:
    """One place where a worker process runs; after a crash another process takes it."""

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
        self._life = 0
        self._is_up = False
        self._paused_until_us = 0
        self._clear()

    def _clear(self) -> None:
        self._core = LeaseCore(self._join, self._announced)
        self._conn: Connection | None = None
        self._runs: dict[int, _Run] = {}  # By fence.
        self._reports: dict[tuple[Kind, bytes, int], Report] = {}
        self._inbox: deque[tuple[Connection, Kind, int, list[Item]]] = deque()
        self._wakes_at_us = NEVER_US
        self._is_watching = False

    # Its life.

    def start(self) -> None:
        """A new process begins."""
        self._is_up = True
        self._life += 1
        self._paused_until_us = 0
        self._join = self._join._replace(instance=self._world.rng.randbytes(16))
        version = self._world.rng.choice(self._versions)
        self._announced = [announced._replace(version=version) for announced in self._announced]
        self._world.history.versions[self._join.instance] = version
        self._clear()
        self._core.say(Credit(self._capacity))
        self._note("fault", "start")
        self._later(self._world.between_us(0.0, 0.5), self._connect)

    def crash(self, down_us: int) -> None:
        """The process dies with all it held; another starts later."""
        if not self._is_up:
            return
        self._is_up = False
        self._note("fault", "crash", value=down_us)
        for run in self._runs.values():
            self._end(run)
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
        for run in self._runs.values():
            if run.execution is not None:
                run.execution.is_honest = False

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
        self._core.begin(has_others=False)
        self._wakes_at_us = NEVER_US
        self._pump()

    def lost(self, conn: Connection) -> None:
        """The connection is known to be broken: try again a little later."""
        self._later(0, self._lost, conn)

    def _lost(self, conn: Connection) -> None:
        if conn is self._conn:
            self._conn = None
            self._core.end()
            self._later(self._world.between_us(0.1, 1.5), self._connect)

    def _pump(self) -> None:
        """Send all that there is to send, and come back when there is more."""
        conn, core, now_us = self._conn, self._core, self._world.now_us
        if conn is None:
            return
        while (frame := core.next_frame(now_us)) is not None:
            number, kind, said = frame
            if kind in REPORTS:
                for message in said:
                    self._note_report(kind, message)
            conn.ask(kind, number, list(said))
        if core.wake_us < self._wakes_at_us:
            self._wakes_at_us = core.wake_us
            self._later(core.wake_us - now_us, self._wake, conn)

    def _wake(self, conn: Connection) -> None:
        if conn is self._conn:
            self._wakes_at_us = NEVER_US
            self._pump()

    def _note_report(self, kind: Kind, message: Any) -> None:
        if (kind, message.id, message.fence) not in self._reports:
            report = self._reports[kind, message.id, message.fence] = Report(kind, message, self._world.now_us)
            self._world.history.reports.append(report)
            self._note("invoke", kind.name, message.id, message.fence)

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
            try:
                if kind is Kind.ANSWER:
                    self._note_answers(request, items)
                    events = self._core.answered(request, items, self._world.now_us)
                else:
                    events = self._core.told(kind, items)
            except GivaliaError as error:
                self._world.history.blame("protocol", f"a joined worker was refused: {error}")
                conn.peer_closed()
                self._lost(conn)
                continue
            self._act_on(events)
        self._pump()

    def _note_answers(self, request: int, items: list[Item]) -> None:
        kind, said, _ = self._core.asked.get(request, (Kind.ANSWER, [], 0))
        if kind in REPORTS:
            for message, (fields, _) in zip(said, items, strict=True):
                report = self._reports[kind, message.id, message.fence]
                report.code = fields[0]
                self._note("ok" if fields[0] == "OK" else "fail", kind.name, message.id, message.fence, value=fields[0])

    def _act_on(self, events: list[LinkEvent]) -> None:
        """Do as the foreman does."""
        for event in events:
            if isinstance(event, Dispatched):
                for job in event.jobs:
                    self._take(job)
            elif isinstance(event, StopAsked):
                self._ask_to_stop(event)
            elif isinstance(event, Lost) and (run := self._runs.get(event.fence)) is not None:
                self._note("info", "give_up", event.id, event.fence)
                self._report(run, FailReport(event.id, event.fence, "died", event.why))

    def _take(self, job: Dispatch) -> None:
        run = self._runs[job.fence] = _Run(job)
        self._note("info", "dispatch", job.id, job.fence, job.attempt)
        queued_s = (0.5, 3.0) if self._world.chance(0.05) else (0.0, 0.05)
        self._later(self._world.between_us(*queued_s), self._begin, run)
        if not self._is_watching:
            self._is_watching = True
            self._watch_later()

    def _ask_to_stop(self, event: StopAsked) -> None:
        run = self._runs.get(event.fence)
        if run is not None and not run.stop_asked:
            run.stop_asked = True
            if run.execution is not None and self._world.chance(self.habits.obeys_stop):
                self._later(self._world.between_us(0.0, 0.5), self._fail, run, "stopped")

    # Its leases.

    def _watch_later(self) -> None:
        left_us = max(self._core.let_go_us - self._world.now_us, 0)
        self._later(left_us + self._world.between_us(0.0, FENCE_CHECK_S), self._watch)

    def _watch(self) -> None:
        """Look after the leases until none can end any more."""
        self._let_go()
        self._is_watching = self._core.let_go_us < NEVER_US
        if self._is_watching:
            self._watch_later()

    def _let_go(self) -> None:
        if self._world.now_us >= self._core.let_go_us:
            self._act_on(self._core.let_go(self._world.now_us))
            self._pump()

    # Its jobs.

    def _begin(self, run: _Run) -> None:
        self._let_go()
        if run.is_over:
            return
        if self._world.chance(self.habits.releases):
            self._report(run, Release(run.job.id, run.job.fence))
        else:
            self._execute(run)
        self._pump()

    def _execute(self, run: _Run) -> None:
        job, world = run.job, self._world
        run.execution = Execution(job.id, job.fence, job.attempt, self._join.instance.hex()[:8], job.payload, world.now_us)
        world.history.executions.append(run.execution)
        self._note("invoke", "start", job.id, job.fence, job.attempt)
        length_us = world.between_us(0.0, 0.5) if world.chance(0.5) else world.between_us(0.5, 4.0)
        if world.chance(self.habits.runs_long):
            length_us = world.between_us(0.5, 2.0) * self._lease_us // SECOND_US
        if world.chance(self.habits.is_replaced):
            self._later(length_us, self._report, run, Release(job.id, job.fence, replaced=True))
        elif world.chance(self.habits.kills_process):
            died = FailReport(job.id, job.fence, "died", "it took its process with it", child_died=True)
            self._later(length_us, self._report, run, died)
        elif world.chance(self.habits.fails):
            self._later(length_us, self._fail, run, "failed")
        else:
            self._later(length_us, self._report, run, Succeed(job.id, job.fence, payload=b"%d" % job.fence))

    def _fail(self, run: _Run, kind: str) -> None:
        world = self._world
        after_us = world.between_us(0.0, 3.0) if world.chance(0.2) else None
        is_for_good = kind == "failed" and world.chance(self.habits.fails_for_good)
        self._report(run, FailReport(run.job.id, run.job.fence, kind, "it failed on purpose", after_us, is_for_good))

    def _report(self, run: _Run, message: Any) -> None:
        if run.is_over:
            return
        self._end(run)
        del self._runs[run.job.fence]
        self._core.say(message)
        self._pump()

    def _end(self, run: _Run) -> None:
        run.is_over = True
        if run.execution is not None:
            run.execution.ended_us = self._world.now_us
