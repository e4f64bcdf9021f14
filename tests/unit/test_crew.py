"""A crew: its capacity, the audit of its attempts, and the end of its host."""

from __future__ import annotations

import signal

import pytest
from crew_rig import CrewRig, FakeMember

from givalia_core.worker.assignment import Verdict
from givalia_core.worker.notes import AskHeld, Drain, Holding, Importing, JobServers, Serve, Spoiled, Start, Stuck
from givalia_core.worker.processes.audit import DEAF_S
from givalia_core.worker.processes.crew import STEADY_S


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> CrewRig:
    return CrewRig(monkeypatch)


def test_a_host_is_told_first_what_it_is_for(rig: CrewRig) -> None:
    serve, servers = rig.member.told

    assert isinstance(serve, Serve)
    assert serve.deadly == {}
    assert servers == JobServers("there:1")


def test_a_crew_takes_what_its_host_or_a_process_of_its_own_can_run(rig: CrewRig) -> None:
    assert rig.crew.takes == frozenset()

    rig.ready()
    assert rig.crew.takes == {"Apart"}  # It needs no host.
    assert rig.heard("on_ready") == [[]]
    rig.crew.start()
    assert rig.member.told[-1] == Start()

    rig.serve()
    assert rig.crew.takes == {"Sample", "Apart"}
    assert rig.heard("on_started") == [[]]
    rig.crew.withdraw("Sample", "it is another by now")
    assert rig.crew.takes == {"Apart"}


def test_a_job_apart_needs_the_host_if_plugins_are_to_hear_of_its_start(rig: CrewRig) -> None:
    rig.ready("before_run")
    assert rig.crew.takes == frozenset()

    rig.serve("before_run")
    assert rig.crew.takes == {"Sample", "Apart"}


def test_a_host_that_ends_is_replaced_and_the_last_job_in_it_is_to_blame(rig: CrewRig) -> None:
    rig.serve().lend(7)
    first = rig.member
    first.last_current, first.recent, first.dump = 7, frozenset({7}), "a stack"

    first.end(11)

    ((verdict,),) = rig.heard("on_host_died")
    assert (verdict.culprit, verdict.kind, verdict.words) == (7, "died", "child_died: status 11\na stack")
    assert rig.crew.takes == {"Apart"}
    ((delay_s, start, _),) = rig.later
    assert delay_s == 0.0
    start()
    assert rig.member is not first
    assert rig.crew.host.starts == 2


def test_what_is_said_while_there_is_no_host_is_said_to_nobody(rig: CrewRig) -> None:
    rig.serve().member.end(1)
    rig.crew.tell(Start())
    rig.crew.owe(Drain())

    rig.later[0][1]()
    rig.ready()

    assert Start() not in rig.member.told
    assert rig.member.told[-1] == Drain()


def test_hosts_that_do_not_live_long_are_made_less_and_less_often(rig: CrewRig) -> None:
    delays = []
    for _ in range(4):
        rig.member.end(1)
        delay_s, start, _more = rig.later.pop()
        delays.append(delay_s)
        start()

    assert delays == [0.0, 0.1, 0.2, 0.4]


def test_a_host_that_has_lived_for_long_is_replaced_at_once(rig: CrewRig) -> None:
    for _ in range(3):
        rig.member.end(1)
        rig.later.pop()[1]()
    rig.member.started_s -= STEADY_S + 1

    rig.member.end(1)

    assert rig.later.pop()[0] == 0.0


def test_a_module_whose_import_ends_the_process_is_not_imported_again(rig: CrewRig) -> None:
    rig.member.say([Importing("Sample")])

    rig.member.end(11)
    rig.later[0][1]()

    serve = rig.member.told[0]
    assert list(serve.deadly) == ["Sample"]
    assert any("module Sample is not served: importing it ended the process" in line for line in rig.foreman.log.said)


def test_a_kill_during_an_import_may_be_chance_once(rig: CrewRig) -> None:
    for deadly in ([], ["Sample"]):
        rig.member.say([Importing("Sample")])
        rig.member.end(signal.SIGKILL)
        rig.later.pop()[1]()
        assert list(rig.member.told[0].deadly) == deadly


def test_a_host_is_asked_which_jobs_it_has_and_replaced_if_it_has_lost_one(rig: CrewRig) -> None:
    rig.serve().lend(7)
    rig.lend(8)
    rig.crew.ask_host(100.0)
    assert rig.member.told[-1] == AskHeld()

    rig.member.say([Holding([8])])

    assert rig.member.signals == [signal.SIGKILL]
    assert "the process with the greenlets has lost 1 of its jobs" in rig.foreman.log.said


def test_a_job_that_was_reported_before_the_answer_is_not_lost(rig: CrewRig) -> None:
    rig.serve().lend(7)
    rig.crew.ask_host(100.0)
    del rig.foreman.jobs[7]

    rig.member.say([Holding([])])

    assert rig.member.signals == []


def test_a_host_that_has_no_job_is_not_asked(rig: CrewRig) -> None:
    rig.serve().crew.ask_host(100.0)

    assert AskHeld() not in rig.member.told


def test_a_host_that_says_nothing_any_more_is_replaced(rig: CrewRig) -> None:
    rig.serve().lend(7)
    rig.crew.ask_host(100.0)

    rig.crew.ask_host(100.0 + DEAF_S)
    assert rig.member.signals == []
    rig.crew.ask_host(100.1 + DEAF_S)

    assert rig.member.signals == [signal.SIGKILL]


def test_what_a_host_says_of_itself_goes_to_who_listens(rig: CrewRig) -> None:
    rig.serve().member.say([Spoiled("umask"), Stuck(bytes(16), 7)])

    assert rig.heard("on_host_spoiled") == [["umask"]]
    assert rig.heard("on_host_clogged") == [[bytes(16)]]
    assert rig.crew.has_stuck


def test_a_retired_crew_ends_with_its_last_job(rig: CrewRig) -> None:
    rig.serve().lend(7)
    rig.crew.retire()
    assert Drain() in rig.member.told
    assert Drain(is_over=True) not in rig.member.told

    rig.crew.job_count = 0
    rig.crew.look_whether_done()

    assert rig.member.told[-1] == Drain(is_over=True)


def test_a_host_that_is_killed_for_a_reason_is_judged_by_that(rig: CrewRig) -> None:
    rig.serve()
    verdict = Verdict(7, "timeout", "blocked")
    rig.crew.replace_host(verdict)
    rig.crew.replace_host(Verdict(8, "died", "later"))

    rig.member.end(signal.SIGKILL)

    assert rig.heard("on_host_died") == [[verdict]]


def test_a_crew_that_is_over_makes_no_other_host(rig: CrewRig) -> None:
    rig.serve().crew.end()
    rig.later.clear()

    rig.member.end(0)

    assert len(FakeMember.made) == 1
    assert rig.later == []
