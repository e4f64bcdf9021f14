"""A greenlet that ends its process costs its neighbours only time, and is the only one blamed."""

from __future__ import annotations

from typing import Any

import pytest
from system_rig import Rig, lines_of
from system_ward import GREENLET, LEASE_S, LIMIT_S, PROCESS, Ward
from waits import await_true

from givalia_core import JobFailed
from givalia_core.client import JobHandle

NEIGHBOURS = 10


@pytest.fixture(scope="module")
def ward(shared_rig: Rig) -> Ward:
    return Ward(shared_rig)


class Street:
    """Ten jobs asleep in the process with the greenlets, until `wake` lets them end."""

    def __init__(self, ward: Ward, name: str, **options: Any) -> None:
        folder = ward.rig.store.parent
        self._file, self._gate = folder / name, folder / f"{name}-gate"
        params = {"file": str(self._file), "gate": str(self._gate)}
        self.jobs = [ward.client.enq("Bystander", params=params, max_attempts=1, **options) for _ in range(NEIGHBOURS)]
        self.await_starts(NEIGHBOURS)

    def await_starts(self, count: int) -> None:
        """Wait until jobs have started so often."""
        await_true(lambda: len(self.starts) >= count, f"{count} starts")

    @property
    def starts(self) -> list[list[str]]:
        """Id, process and attempt of each start so far."""
        return lines_of(self._file)

    def wake(self) -> list[int]:
        """Let all of them end; the attempt that each of them has ended with."""
        self._gate.touch()
        return [job.wait(15) for job in self.jobs]


def _die(job: JobHandle) -> str:
    with pytest.raises(JobFailed):
        job.wait(15)
    status = job.stat()
    assert (status.state, status.attempts) == ("dead", 1)
    return status.error or ""


@pytest.mark.parametrize(
    ("how", "first", "stack"),
    [
        ("exit_0", "child_died: exit code 0", ""),
        ("exit_1", "child_died: exit code 1", ""),
        ("segv", "child_died: SIGSEGV", "in end_segv"),
        ("abort", "child_died: SIGABRT", "in end_abort"),
        ("kill", "child_died: SIGKILL", ""),
        ("busy_c", f"timeout: it ran longer than {LIMIT_S:g} s", "in end_busy_c"),
        ("busy_python", f"timeout: it ran longer than {LIMIT_S:g} s", "in end_busy_python"),
    ],
)
def test_neighbours_run_again_and_the_culprit_alone_has_failed(ward: Ward, how: str, first: str, stack: str) -> None:
    street = Street(ward, how)
    limit_s = LIMIT_S if how.startswith("busy") else None

    error = _die(ward.client.enq("End", params=how, max_attempts=1, timeout=limit_s))

    assert error.startswith(first)
    assert stack in error
    street.await_starts(2 * NEIGHBOURS)
    assert street.wake() == [1] * NEIGHBOURS
    assert [job.stat().attempts for job in street.jobs] == [1] * NEIGHBOURS
    assert len(street.starts) == 2 * NEIGHBOURS
    assert len({pid for _, pid, _ in street.starts}) == 2


def test_a_death_apart_is_nothing_to_the_greenlets(ward: Ward) -> None:
    street = Street(ward, "apart")

    assert ward.die(PROCESS, "segv").recorded == "child_died: SIGSEGV"

    assert street.wake() == [1] * NEIGHBOURS
    assert len(street.starts) == NEIGHBOURS


def test_a_neighbour_that_could_not_end_in_time_is_not_the_one_to_blame(ward: Ward) -> None:
    """Its time is up while another keeps the process: it has had no chance to end, and so it says nothing against it."""
    street = Street(ward, "late", timeout=LIMIT_S)
    busy = ward.client.enq("End", params="busy_python", time=0.5, max_attempts=1, timeout=LIMIT_S)

    error = _die(busy)

    assert "so its process was replaced" in error
    assert "end_busy_python" in error
    for job in street.jobs:
        with pytest.raises(JobFailed):
            job.wait(15)
        assert "so its process was replaced" not in (job.stat().error or "")
    assert len({pid for _, pid, _ in street.starts}) <= 2


def test_stacks_are_still_written_after_a_job_has_changed_the_signals(ward: Ward) -> None:
    assert ward.die(GREENLET, "signals").recorded == "done"

    error = _die(ward.client.enq("End", params="segv", max_attempts=1))

    assert "in end_segv" in error


def test_a_process_that_cannot_be_put_right_is_replaced_when_its_jobs_have_ended(ward: Ward) -> None:
    street = Street(ward, "closed")
    before = ward.rig.hosts_of(ward.worker)

    assert ward.die(GREENLET, "closed_streams", is_alike=False).recorded == "done"

    ward.worker.await_log("the new processes have taken over")
    assert street.wake() == [1] * NEIGHBOURS
    await_true(lambda: ward.rig.hosts_of(ward.worker) not in ([], before), "another process has taken over")
    assert len(street.starts) == NEIGHBOURS
    ward.probe(PROCESS)
    ward.await_clean()


def test_a_killed_nursery_is_replaced_with_all_that_it_had_made(ward: Ward) -> None:
    street = Street(ward, "nursery")

    ward.nursery.kill()

    street.await_starts(2 * NEIGHBOURS)
    assert street.wake() == [1] * NEIGHBOURS
    assert ward.probe(PROCESS)
    ward.await_clean()


def test_output_that_nobody_reads_costs_no_lease(ward: Ward) -> None:
    """The process with the greenlets waits to print for longer than a lease lasts; who keeps the leases does not."""
    ward.pipe.flows.clear()
    job = ward.client.enq("End", params="much_output", max_attempts=1)
    ward.worker.await_log("has blocked the greenlets of its worker [^\\n]*\\(process \\d+\\); it is here:[^$]*end_much_output")
    later = ward.client.enq("ProbeApart", time=LEASE_S + 1)

    assert later.wait(20)
    status = job.stat()
    ward.pipe.flows.set()

    assert (status.state, status.attempts) == ("running", 1)
    assert job.wait(15) == "printed"
    assert job.stat().attempts == 1
    ward.await_clean()
