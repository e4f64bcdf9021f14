"""Jobs that break what their whole process uses: their neighbours lose no attempt, and each end is reported in time."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import pytest
from system_rig import Rig, await_true, lines_of

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
    """How a job has ended: its state, and the first line of its error if it is dead."""
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
