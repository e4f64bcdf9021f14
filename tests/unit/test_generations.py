"""Generations of crews: the news of their processes, and their memory limit."""

from __future__ import annotations

import os
from typing import Any

import pytest
from crew_rig import CrewRig, FakeMember

from givalia_core.protocol.codec import check
from givalia_core.protocol.messages import Dispatch, Kind
from givalia_core.worker.assignment import Assignment, Phase
from givalia_core.worker.processes import pool as pool_room
from givalia_core.worker.processes.crew import Crew
from givalia_core.worker.processes.generations import MIB, Generations


class Rig(CrewRig):
    """One crew with a host, and a process for each job apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        super().__init__(monkeypatch, **settings)
        monkeypatch.setattr(pool_room, "Member", FakeMember)
        self.generations = Generations(lambda: self.crew, self.foreman.log)  # type: ignore[arg-type]
        self.generations.begin()
        self.serve()
        self.host = self.member

    def run_apart(self, fence: int) -> Any:
        job: Any = Assignment(Dispatch(b"j" * 16, fence, "Apart", 1, 0), self.crew, True, False, Phase.NEW)
        job.act("start")
        self.crew.job_count += 1
        self.crew.run(job)
        return job


def test_the_host_and_each_process_of_a_job_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.lend(7)
    rig.run_apart(8)

    host, apart = rig.generations.processes()

    assert (host.pid, host.role, host.state, host.jobs, host.restarts) == (rig.host.pid, "greenlets", "ready", 1, 0)
    assert (apart.pid, apart.role, apart.state, apart.jobs) == (rig.member.pid, "job", "running", 1)
    assert (apart.module, apart.job) == ("Apart", b"j" * 16)


def test_a_process_that_is_not_born_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.host.pid = 0

    assert rig.generations.processes() == []


def test_a_host_that_only_finishes_what_it_has_is_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.lend(7)
    rig.crew.retire()

    (host,) = rig.generations.processes()

    assert host.state == "draining"


def test_a_plugin_that_is_busy_for_long_is_shown_with_the_job_it_is_busy_with(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    job = rig.lend(7)
    job.hook = "after_run of plugin Slow"
    rig.crew.note_hook(job)

    (host,) = rig.generations.processes()
    assert (host.state, host.stack, host.module) == ("hook", "after_run of plugin Slow", "Sample")

    job.hook = ""
    rig.crew.note_hook(job)
    (host,) = rig.generations.processes()
    assert host.state == "ready"


def test_the_memory_of_a_process_is_that_which_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.host.pid = os.getpid()

    (host,) = rig.generations.processes()
    assert host.memory_bytes > MIB

    rig.host.pid = 1 << 30  # There is no such process.
    (host,) = rig.generations.processes()
    assert host.memory_bytes == 0


def test_processes_that_have_more_memory_than_they_may_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    job = rig.run_apart(8)
    monkeypatch.setattr(rig.generations, "weigh", lambda: None)
    rig.host.memory_bytes, rig.member.memory_bytes = 20 * MIB, 20 * MIB
    rig.host.started_s -= 60

    rig.generations.limit_memory(30)
    assert (rig.member.signals, rig.heard("on_host_full")) == ([], [])
    rig.generations.limit_memory(10)

    assert rig.member.signals == [9]
    assert (job.why, job.phase) == ("oom", Phase.KILLED)
    assert rig.heard("on_host_full") == [[]]


def test_a_host_that_is_new_need_not_be_any_smaller_than_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    monkeypatch.setattr(rig.generations, "weigh", lambda: None)
    rig.host.memory_bytes = 20 * MIB

    rig.generations.limit_memory(10)

    assert rig.heard("on_host_full") == []


def test_no_crew_comes_after_the_end_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.generations.drain()

    rig.generations.reload("packages have changed")

    assert len(rig.generations.crews) == 1


def test_a_givalia_that_has_changed_itself_is_not_reloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    monkeypatch.setattr("givalia_core.worker.processes.generations.version_of", lambda _: "99")

    rig.generations.reload("packages have changed")

    assert len(rig.generations.crews) == 1
    assert "restart this worker to go on" in rig.foreman.log.said[-1]


def test_the_record_of_a_host_that_is_the_program_itself_is_one_that_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.crew = Crew(rig.foreman, rig.host)  # type: ignore[arg-type]
    rig.generations.crews[:] = [rig.crew]
    rig.ready()

    (host,) = rig.generations.processes()

    assert check(Kind.PROCESSES, list(host)) == host
    assert host.restarts == 0
