"""A crew with fake processes: they keep the messages they get, and say and do what a test wants."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from givalia_core.protocol.messages import Announce, Dispatch
from givalia_core.settings import WorkerSettings
from givalia_core.worker.assignment import Assignment
from givalia_core.worker.notes import HostReady, Started
from givalia_core.worker.processes import crew as crew_room
from givalia_core.worker.processes.crew import Crew

SOURCES = {"Sample": "shop:Sample", "Apart": "shop:Apart"}


class FakeMember:
    """A process, as its crew knows it."""

    made: list[FakeMember]

    def __init__(self, role: str, heard: Callable[[list[Any]], None], ended: Callable[[int], None]) -> None:
        self.role, self.say, self.end = role, heard, ended
        self.pid = 1_000 + len(FakeMember.made)
        self.since, self.started_s = time.time(), time.monotonic()
        self.page = SimpleNamespace(
            fields=[time.monotonic_ns(), 0, 0, 0], current=0, cancelled=0, why="", silence_s=lambda: 0.0
        )
        self.memory_bytes = self.last_current = self.backlog = 0
        self.recent: frozenset[int] = frozenset()
        self.is_orphan, self.is_open = False, True
        self.told: list[Any] = []
        self.signals: list[int] = []
        self.dump = ""
        FakeMember.made.append(self)

    def tell(self, *said: Any) -> None:
        self.told += said

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def stack(self) -> str:
        return self.dump

    def words_for(self, status: int) -> str:
        return f"status {status}"

    def close(self) -> None:
        self.is_open = False


class FakeNursery:
    """Makes processes that are there already."""

    def __init__(self, lost: Callable[[], None], environ: Any = None) -> None:
        self.lost = lost

    def fork(self, member: FakeMember) -> None:
        """It is born."""

    def close(self) -> None:
        """It has nothing to end."""


class News:
    """Keeps what the crew says of itself, by the name of the method."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda crew, *more: self.heard.append((name, *more))


class Log:
    """Keeps lines."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.info = self.warning = self.error = self._say

    def _say(self, words: str, *values: Any, **_: Any) -> None:
        self.said.append(words % values)


class FakeForeman:
    """A foreman, as far as a crew needs one."""

    def __init__(self, **settings: Any) -> None:
        self.settings = WorkerSettings(**settings)
        self.counts: Counter[str] = Counter()
        self.log = Log()
        self.jobs: dict[int, Any] = {}
        self.news = News()
        self.apart = SimpleNamespace(servers="there:1", log=self.log)

    def hear(self, crew: Crew, notes: list[Any]) -> None:
        for note in notes:
            crew.take(note)


class CrewRig:
    """A crew, and what has become of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        FakeMember.made = []
        monkeypatch.setattr(crew_room, "Member", FakeMember)
        monkeypatch.setattr(crew_room, "NurseryHandle", FakeNursery)
        self.later: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []
        monkeypatch.setattr(crew_room.gevent, "spawn_later", lambda *what: self.later.append((what[0], what[1], what[2:])))
        self.foreman = FakeForeman(**settings)
        self.crew = Crew(self.foreman)  # type: ignore[arg-type]

    @property
    def member(self) -> FakeMember:
        """The newest process."""
        return FakeMember.made[-1]

    def ready(self, *hooks: str) -> CrewRig:
        """Let the host have its modules."""
        announced = [tuple(Announce("Sample", "shop", "1")), tuple(Announce("Apart", "shop", "1", "process"))]
        self.member.say([HostReady(announced, SOURCES, list(hooks), ["plugin"])])
        return self

    def serve(self, *hooks: str) -> CrewRig:
        """Let its plugins know, too."""
        self.ready(*hooks).member.say([Started()])
        return self

    def lend(self, fence: int) -> Any:
        """Hold a job that the host has."""
        job = self.foreman.jobs[fence] = Assignment(Dispatch(bytes(16), fence, "Sample", 1, 0), self.crew, False)
        self.crew.job_count += 1
        return job

    def heard(self, name: str) -> list[tuple[Any, ...]]:
        """What the crew has said of one kind."""
        return [more for each, *more in self.foreman.news.heard if each == name]  # type: ignore[misc]
