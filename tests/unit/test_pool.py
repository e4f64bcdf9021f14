"""Processes for one job each: the check of what a job has left delays neither the job's end nor another job."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest

from givalia_core.protocol.messages import Dispatch, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.worker.assignment import Assignment
from givalia_core.worker.notes import Begin, ChildReported, Spoiled
from givalia_core.worker.processes import pool as pool_room
from givalia_core.worker.processes.pool import Pool
from givalia_core.worker.reasons import Reason

ORIGIN = "shop", "1.0", 0.0


class FakePage:
    cancelled = 0
    why = ""
    begun = 0

    def recent(self) -> frozenset[int]:
        return frozenset({self.begun})


class FakeMember:
    """Keeps what it is told, and says what the test lets it say."""

    def __init__(self, role: str, heard: Callable[[list[Any]], None], ended: Callable[[int], None]) -> None:
        self.say, self.end = heard, ended
        self.page = FakePage()
        self.pid = 100
        self.memory_bytes = 0
        self.told: list[Any] = []
        self.is_open = True

    def tell(self, *said: Any) -> None:
        self.told += said

    def close(self) -> None:
        self.is_open = False

    def signal(self, number: int) -> None:
        self.end(number)

    def words_for(self, status: int) -> str:
        return f"signal {status}"

    def stack(self) -> str:
        return ""

    @property
    def fences(self) -> list[int]:
        return [note.job[1] for note in self.told if isinstance(note, Begin)]


class FakeForeman:
    log = logging.getLogger("test")
    servers = ""

    def may_say(self, kind: str) -> bool:
        return True

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.died: list[int] = []

    def reported(self, note: Any) -> None:
        raise AssertionError(note)

    def job_ended(self, held: Any, note: Any) -> None:
        self.ended.append(held.dispatch.fence)

    def job_outdated(self, held: Any) -> None:
        raise AssertionError(held)

    def job_not_started(self, held: Any, words: str) -> None:
        raise AssertionError(words)

    def child_died(self, held: Any, words: str) -> None:
        self.died.append(held.dispatch.fence)


class Rig:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_room, "Member", FakeMember)
        self.foreman = FakeForeman()
        self.members: list[Any] = []
        self.pool = Pool(self.foreman, WorkerSettings(), self.members.append)

    def run(self, fence: int) -> Assignment[Any]:
        held: Assignment[Any] = Assignment(Dispatch(bytes(15) + bytes([fence]), fence, "Resize", 1, 0), None, True)
        self.pool.run(held, "shop.jobs:Resize", ORIGIN)
        return held

    def end(self, held: Assignment[Any]) -> Any:
        """Let the process of a job say that it has ended."""
        member: Any = self.pool.member_of(held)
        member.say([ChildReported(True, Succeed(held.dispatch.id, held.dispatch.fence), 0.1)])
        return member


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_a_job_is_reported_before_its_process_knows_what_it_has_left(rig: Rig) -> None:
    rig.end(rig.run(1))

    assert rig.foreman.ended == [1]


def test_the_next_job_goes_to_a_process_that_may_still_look_at_what_the_last_one_has_left(rig: Rig) -> None:
    member = rig.end(rig.run(1))

    rig.run(2)

    assert len(rig.members) == 1
    assert member.fences == [1, 2]


def test_a_job_that_was_given_to_a_spoiled_process_runs_in_another(rig: Rig) -> None:
    member = rig.end(rig.run(1))
    held = rig.run(2)

    member.say([Spoiled("threads")])

    assert not member.is_open
    assert rig.pool.member_of(held) is rig.members[1]
    assert rig.members[1].fences == [2]


def test_a_job_does_not_die_of_what_the_one_before_has_left(rig: Rig) -> None:
    member = rig.end(rig.run(1))
    held = rig.run(2)

    member.end(signal.SIGSEGV)

    assert not rig.foreman.died
    assert rig.pool.member_of(held) is rig.members[1]


def test_a_job_that_is_to_end_does_not_start_in_another_process(rig: Rig) -> None:
    member = rig.end(rig.run(1))
    held = rig.run(2)
    held.why = Reason.TIMEOUT

    member.end(signal.SIGKILL)

    assert rig.foreman.died == [2]
    assert len(rig.members) == 1


def test_a_process_that_dies_after_the_next_job_has_begun_has_died_of_that(rig: Rig) -> None:
    member = rig.end(rig.run(1))
    rig.run(2)
    member.page.begun = 2

    member.end(signal.SIGSEGV)

    assert rig.foreman.died == [2]


def test_a_new_process_that_dies_before_its_job_has_begun_is_not_made_over_and_over(rig: Rig) -> None:
    rig.run(1)

    rig.members[0].end(signal.SIGKILL)

    assert rig.foreman.died == [1]
    assert len(rig.members) == 1
