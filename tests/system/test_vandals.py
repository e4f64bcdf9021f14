"""Jobs that break what their whole process uses: their neighbours lose no attempt, and every end is reported in time."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import pytest
from system_rig import Rig, lines_of
from waits import await_true

from givalia_core import Client, GivaliaError, JobFailed
from givalia_core.client import JobHandle

NEIGHBOURS: Final = 5
LIMIT_S: Final = 1.0
NEXT_S: Final = 4.0  # Until a job that comes next is done: generous, for the machine may be busy with other things.
TIMEOUT: Final = f"timeout: it ran longer than {LIMIT_S:g} s"
NONSENSE: Final = "child_died: it wrote nonsense to the connection to its worker"
CLOSED: Final = "child_died: it closed the connection to its worker"

MODULES: Final = (
    "builtins",
    "gevent",
    "gevent.socket",
    "gevent sockets",
    "msgpack",
    "logging",
    "time",
    "clock",
    "os",
    "recursion",
)
DESCRIPTORS: Final = {
    "close all": ("done", CLOSED),
    "write to all": (NONSENSE,),
    "write little to all": (NONSENSE, TIMEOUT),
    "read from all": ("done", TIMEOUT),
    "truncate all": ("done", TIMEOUT),
    "nowhere": (CLOSED,),
}
ASIDE: Final = {
    "log methods": ("done", TIMEOUT),
    "log records": ("done", TIMEOUT),
    "log stream": ("done", TIMEOUT),
    "switches": ("done", TIMEOUT),
    "exit aside": ("done", TIMEOUT),
    "interrupt aside": ("done", TIMEOUT),
}
"""What breaks the log, or raises where no job's code is."""
ALL: Final = {**dict.fromkeys(MODULES, ("done", TIMEOUT)), **DESCRIPTORS}
"""What becomes of the job that does this, be it that it returns or that it goes on until its timeout."""


class Place:
    """A worker, and whoever is at work there."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.start_server("--backoff", "0")
        self.worker = rig.start_worker("-c", "50", "--processes", "1", "--stop-grace", "0.3")
        self.client: Client = rig.client()
        self._count = 0

    def gather(self) -> tuple[list[JobHandle], JobHandle, JobHandle]:
        """Start neighbours: some that wait until `open`, one that will run out of time, and one that is to be cancelled."""
        self._count += 1
        self._gate, self._starts = (self.rig.folder / f"{name}-{self._count}" for name in ("gate", "starts"))
        params = {"gate": str(self._gate), "file": str(self._starts)}
        patient = [self.client.enq("Patient", params=params, max_attempts=1) for _ in range(NEIGHBOURS)]
        late = self.client.enq("Sleeper", max_attempts=1, timeout=LIMIT_S)
        called_off = self.client.enq("Sleeper", max_attempts=1)
        await_true(lambda: len(lines_of(self._starts)) == NEIGHBOURS, "the neighbours have started")
        return patient, late, called_off

    @property
    def starts(self) -> int:
        """Return the number of starts of neighbours since they were gathered."""
        return len(lines_of(self._starts))

    def open(self) -> None:
        """Let the neighbours end."""
        self._gate.touch()

    def renew(self) -> None:
        """Have a new process for greenlets."""
        with contextlib.suppress(JobFailed):
            self.client.enq("Leave", max_attempts=1).wait(20)


@pytest.fixture(scope="module")
def place(shared_rig: Rig) -> Place:
    return Place(shared_rig)


def _end(job: JobHandle) -> str:
    """Return the end of a job: its state, and the first line of its error if it is dead."""
    with contextlib.suppress(GivaliaError):
        job.wait(20)
    status = job.stat()
    return (status.error or "").partition("\n")[0] if status.state == "dead" else str(status.state)


@pytest.mark.parametrize("what", ALL)
def test_a_greenlet_that_breaks_its_process_costs_no_neighbour_anything(place: Place, what: str) -> None:
    patient, late, called_off = place.gather()

    ends = []
    for then in ("return", "stay"):
        params: Any = {"what": what, "then": then}
        vandal = place.client.enq("Vandal", params=params, max_attempts=1, timeout=LIMIT_S)
        ends.append(_end(vandal))
        began = time.monotonic()
        assert place.client.enq("Quick", max_attempts=1).wait(20) == 1
        assert time.monotonic() - began < NEXT_S, place.worker.log[-4000:]

    assert set(ends) <= set(ALL[what])
    called_off.cancel(running=True)
    assert _end(called_off) == "cancelled"
    assert _end(late) == TIMEOUT
    place.open()
    assert [job.wait(20) for job in patient] == [1] * NEIGHBOURS
    place.renew()


@pytest.mark.parametrize("what", ALL)
def test_a_job_that_breaks_its_own_process_is_nothing_to_the_next_one(place: Place, what: str) -> None:
    vandal = place.client.enq("VandalApart", params={"what": what, "then": "return"}, max_attempts=1)
    assert _end(vandal) in ALL[what]

    began = time.monotonic()
    assert place.client.enq("QuickApart", max_attempts=1).wait(20) == 1
    assert time.monotonic() - began < NEXT_S, place.worker.log[-4000:]


@pytest.mark.parametrize("what", ASIDE)
def test_a_job_that_breaks_the_log_or_the_loop_fails_no_other(place: Place, what: str) -> None:
    patient, late, called_off = place.gather()

    for then in ("return", "stay"):
        vandal = place.client.enq("Vandal", params={"what": what, "then": then}, max_attempts=1, timeout=LIMIT_S)
        assert _end(vandal) in ASIDE[what]
        for module in ("SayApart", "SayApart", "Say"):
            assert place.client.enq(module, params="a line", max_attempts=1).wait(20) == "said"

    called_off.cancel(running=True)
    assert _end(called_off) == "cancelled"
    assert _end(late) == TIMEOUT
    place.open()
    assert [job.wait(20) for job in patient] == [1] * NEIGHBOURS
    assert place.starts == NEIGHBOURS  # None was started a second time.
    place.renew()


@pytest.mark.parametrize("what", [*ASIDE, "finders"])
def test_what_a_job_leaves_in_its_own_process_fails_no_other(place: Place, what: str) -> None:
    vandal = place.client.enq("VandalApart", params={"what": what, "then": "return"}, max_attempts=1)
    assert _end(vandal) == "done"

    assert place.client.enq("SayApart", params="a line", max_attempts=1).wait(20) == "said"
    assert place.client.enq("ImportsApart", max_attempts=1).wait(20) == "this"
    sleeps = place.client.enq("VandalApart", params={"what": "trace", "then": "stay"}, max_attempts=1, timeout=LIMIT_S)
    assert _end(sleeps) == TIMEOUT


@pytest.mark.parametrize("how", ["at once", "cycle"])
def test_what_does_not_end_when_it_is_freed_is_within_the_time_of_its_own_job(place: Place, how: str) -> None:
    clings = place.client.enq("Clings", params=how, max_attempts=1, timeout=LIMIT_S)
    assert _end(clings) == "done"

    began = time.monotonic()
    assert place.client.enq("QuickApart", max_attempts=1).wait(20) == 1
    assert time.monotonic() - began < NEXT_S, place.worker.log[-4000:]


def test_a_job_that_hides_whose_code_runs_is_not_blamed_for_another(place: Place) -> None:
    hidden = place.client.enq("Vandal", params={"what": "trace", "then": "stay"}, max_attempts=1)
    await_true(lambda: hidden.stat().state == "running", "it runs")

    assert _end(place.client.enq("LeaveLater", max_attempts=1)) == "child_died: exit code 0"

    assert hidden.stat().state in ("running", "ready", "waiting")
    hidden.cancel(running=True)
    assert _end(hidden) == "cancelled"
