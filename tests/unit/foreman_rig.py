"""A foreman with a link and crews that only keep the messages they get."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

from givalia_core.protocol.messages import Announce, Credit, Dispatch, FailReport, Release, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.worker.assignment import Assignment, Verdict
from givalia_core.worker.foreman import Foreman
from givalia_core.worker.link import Connected, Dispatched
from givalia_core.worker.notes import Drain, Start
from givalia_core.worker.processes.audit import Audit

GREENLET, APART = "Sample", "Apart"


class FakeLink:
    """Keeps what is sent to the server."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, *said: Any) -> None:
        self.sent += said

    def reports(self) -> list[Any]:
        return [message for message in self.sent if isinstance(message, (Succeed, FailReport, Release))]

    @property
    def credit(self) -> Credit:
        return next(message for message in reversed(self.sent) if isinstance(message, Credit))


class FakeCrew:
    """A generation of processes, as far as the foreman looks at it."""

    def __init__(self, foreman: Foreman, hooks: frozenset[str], plugins: int) -> None:
        self.foreman = foreman
        self.modules = {GREENLET: Announce(GREENLET, "d", "1"), APART: Announce(APART, "d", "1", "process")}
        self.hooks = hooks
        self.job_count = 0
        self.audit = Audit()
        self.is_serving = self.is_retired = self.is_over = self.has_stuck = self.is_given_up = False
        self.children: list[Any] = []
        self.running: list[Assignment[Any]] = []
        self.told: list[Any] = []
        self.owed: list[Any] = []
        self.verdicts: list[Verdict] = []
        self.blocking = 0  # The fence of the job that does not yield.
        self.pool = SimpleNamespace(member_of=self._member_of, children=[])
        self.asked_s: list[float] = []
        self.host = SimpleNamespace(
            state="ready", member=SimpleNamespace(pid=0), fields=(0,) * 4, blocked_s=0.0, stack="", failures=0,
            is_blocked_by=self._is_blocked_by, plugins=[f"plugin {number}" for number in range(plugins)],
        )  # fmt: skip

    def tell(self, *said: Any) -> None:
        self.told += said

    def owe(self, note: Any) -> None:
        self.owed.append(note)

    def start(self) -> None:
        self.told.append(Start())

    def serve(self) -> FakeCrew:
        self.foreman.news.on_ready(self)  # type: ignore[arg-type]
        self.is_serving = True
        self.foreman.news.on_started(self)  # type: ignore[arg-type]
        return self

    apart = frozenset({APART})

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(self.modules) if self.is_serving else frozenset()

    @property
    def hosted(self) -> frozenset[str]:
        return self.takes - self.apart

    def take(self, note: Any) -> bool:
        return False

    def run(self, held: Assignment[Any]) -> None:
        page = SimpleNamespace(cancelled=0, why="")
        signals: list[int] = []
        member = SimpleNamespace(pid=1, page=page, signal=signals.append, signals=signals)
        self.running.append(held)
        self.children.append(SimpleNamespace(held=held, member=member))

    def _member_of(self, held: Assignment[Any]) -> Any:
        return next((child.member for child in self.children if child.held is held), None)

    def _is_blocked_by(self, held: Assignment[Any]) -> bool:
        return held.dispatch.fence == self.blocking

    def withdraw(self, module: str, why: str) -> None:
        self.modules[module] = self.modules[module]._replace(broken=why)

    def give_up(self) -> None:
        self.is_given_up = True

    def replace_host(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def die(self, verdict: Verdict) -> None:
        self.is_serving = False
        self.foreman.news.on_host_died(self, verdict)  # type: ignore[arg-type]

    def look(self, *, is_fair: bool) -> None:
        pass

    def ask_host(self, now_s: float) -> None:
        self.asked_s.append(now_s)

    def drain(self) -> None:
        self.told.append(Drain())

    def retire(self) -> None:
        self.is_retired = True
        self.drain()
        self.look_whether_done()

    def look_whether_done(self) -> None:
        self.is_over = self.is_over or (self.is_retired and not self.job_count)

    def end(self) -> None:
        self.is_over = True


class Rig:
    def __init__(self, *hooks: str, plugins: int = 1, **settings: Any) -> None:
        self.plugins = plugins
        self.link = FakeLink()
        self.crews: list[FakeCrew] = []
        self.foreman = Foreman(
            dataclasses.replace(WorkerSettings(stop_grace=1.0), **settings),
            self.link,  # type: ignore[arg-type]
            lambda foreman: self._crew(foreman, hooks),  # type: ignore[arg-type, return-value]
        )
        self.foreman.generations.begin()
        self.foreman.deliver(Connected(("there", 1), 30_000_000))  # type: ignore[arg-type]
        self.crew = self.crews[0].serve()

    def _crew(self, foreman: Foreman, hooks: tuple[str, ...]) -> FakeCrew:
        self.crews.append(FakeCrew(foreman, frozenset(hooks), self.plugins))
        return self.crews[-1]

    def lend(self, module: str = GREENLET, fence: int = 1, *, id: bytes = b"j" * 16, **fields: Any) -> Dispatch:
        job = Dispatch(id, fence, module, 1, 0, **fields)
        self.foreman.deliver(Dispatched([job]))
        return job

    def hear(self, *notes: Any) -> None:
        """Let the process with the greenlets say something."""
        self.foreman.hear(self.crew, list(notes))  # type: ignore[arg-type]

    def later(self, seconds: float) -> None:
        """A look at everything, so much later; what is planned from then on is planned from now."""
        self.foreman._ticked_s = time.monotonic() + seconds
        self.foreman._tick(time.monotonic() + seconds)
