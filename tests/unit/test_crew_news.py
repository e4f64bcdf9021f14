"""The news of crews: the crew that takes over, and the jobs of a host that has ended."""

from __future__ import annotations

from foreman_rig import APART, Rig

from givalia_core.protocol.messages import FailReport, Release, Succeed
from givalia_core.worker.assignment import Verdict
from givalia_core.worker.link import Connected, Lost


def test_the_job_to_blame_fails_and_its_neighbours_go_back() -> None:
    rig = Rig("after_run")
    culprit, neighbour, stopped = rig.lend(fence=1), rig.lend(fence=2), rig.lend(fence=3)
    rig.foreman.deliver(Lost(stopped.id, stopped.fence, "its lease is over"))

    rig.crew.die(Verdict(culprit.fence, "died", "child_died: SIGSEGV"))

    assert rig.link.reports() == [
        FailReport(culprit.id, 1, "died", "child_died: SIGSEGV", child_died=True),
        Release(neighbour.id, 2, replaced=True),
        FailReport(stopped.id, 3, "died", "its lease is over"),
    ]
    assert [(each.job[1], each.kind) for each in rig.crew.owed] == [(1, "died"), (2, "released"), (3, "died")]
    assert rig.crew.job_count == 0


def test_a_process_with_code_that_does_not_end_takes_no_more_and_its_neighbours_finish() -> None:
    rig = Rig()
    neighbour, stuck = rig.lend(fence=1), rig.lend(fence=2)
    before = rig.crew
    rig.hear(FailReport(stuck.id, stuck.fence, "timeout", "timeout"))

    rig.foreman.news.on_host_clogged(before, stuck.id)  # type: ignore[arg-type]

    rig.crews[-1].serve()
    assert before.is_retired
    assert not before.is_over
    rig.hear(Succeed(neighbour.id, neighbour.fence))
    assert before.is_over
    assert before.verdicts == []


def test_of_too_many_processes_with_code_that_does_not_end_the_oldest_is_given_up() -> None:
    rig = Rig()
    for fence in range(1, 6):
        rig.lend(fence=fence)
        crew = rig.crews[-1]
        crew.has_stuck = True
        rig.foreman.news.on_host_clogged(crew, bytes(16))  # type: ignore[arg-type]
        if fence < 5:
            rig.crews[-1].serve()

    assert [crew.is_given_up for crew in rig.crews] == [True, False, False, False, False]


def test_a_reload_lets_the_new_crew_take_over_and_the_old_one_finish() -> None:
    rig = Rig()
    job = rig.lend()
    taken_over = rig.foreman.reload("packages have changed")
    assert len(rig.crews) == 2
    rig.foreman.reload("again")  # While one is on its way another waits.
    assert len(rig.crews) == 2

    new = rig.crews[1].serve()
    assert not taken_over.is_set()  # Another was asked for meanwhile, and is on its way.
    assert len(rig.crews) == 3
    rig.crews[2].serve()
    assert taken_over.is_set()

    assert (rig.crew.is_retired, rig.crew.is_over, new.is_over) == (True, False, True)
    later = rig.lend(fence=2)
    assert rig.crews[2].told[-1] == later
    rig.hear(Succeed(job.id, job.fence))
    assert rig.crew.is_over
    assert rig.link.reports() == [Succeed(job.id, job.fence)]


def test_a_crew_that_does_not_get_ready_is_given_up_when_packages_change_again() -> None:
    rig = Rig()
    rig.foreman.reload("packages have changed")
    rig.crews[1].host.failures = 3

    rig.foreman.reload("packages have changed")

    assert rig.crews[1].is_over
    assert len(rig.crews) == 3


def test_a_retired_crew_whose_host_comes_back_takes_no_jobs() -> None:
    rig = Rig()
    rig.lend(APART)
    rig.foreman.reload("")
    rig.crews[1].serve()
    rig.crew.die(Verdict(0, "died", "gone"))

    rig.crew.serve()

    assert rig.lend(fence=2) in rig.crews[1].told


def test_a_job_whose_code_has_changed_goes_back_and_the_worker_reloads() -> None:
    rig = Rig()
    job = rig.lend(APART)

    rig.foreman.news.outdated(rig.crew.running[0])

    *_, announced, released = [each for each in rig.link.sent if isinstance(each, (list, Release))]
    assert released == Release(job.id, job.fence)
    assert [each.name for each in announced if each.broken] == [APART]
    assert len(rig.crews) == 2


def test_a_worker_that_was_told_to_stop_before_it_is_connected_ends_without_an_error() -> None:
    rig = Rig()
    rig.foreman.news._has_connected = False
    rig.foreman.generations.crews.clear()

    rig.foreman.deliver(Connected(("there", 1), 30_000_000))  # type: ignore[arg-type]

    assert rig.foreman.news.connected.is_set()
