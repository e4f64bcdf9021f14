"""However job code ends, its attempt ends with the right outcome, and the worker runs the next job at once."""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import Any

import pytest
from system_rig import Rig, Running, await_true, lines_of

from givalia_core import Client, JobCancelled, JobFailed, ResultLost, Status

NEXT_S = 2.0


class Ward:
    """One worker that all of it happens to."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        rig.start_server("--backoff", "0")
        self.worker: Running = rig.start_worker("-c", "2")
        self.client: Client = rig.client()

    def end(self, how: str, **options: Any) -> Status:
        """The job's end; the worker must then serve the next job at once, and still be the same."""
        job = self.client.enq("End", params=how, **{"max_attempts": 1, **options})
        with contextlib.suppress(JobFailed, ResultLost):
            job.wait(15)
        started = time.monotonic()
        assert self.client.enq("Echo", params="next").wait(10) == "next"
        assert time.monotonic() - started < NEXT_S
        (worker,) = self.client.workers()
        assert worker["pid"] == self.worker.pid
        return job.stat()


@pytest.fixture(scope="module")
def ward(shared_rig: Rig) -> Ward:
    return Ward(shared_rig)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("system_exit_0", "SystemExit: 0"),
        ("system_exit_1", "SystemExit: 1"),
        ("keyboard_interrupt", "KeyboardInterrupt"),
        ("generator_exit", "GeneratorExit"),
        ("greenlet_exit", "GreenletExit"),
        ("gevent_timeout", "Timeout: 3 seconds"),
        ("base_exception", "Odd: odd"),
        ("recursion", "RecursionError"),
        ("memory", "MemoryError"),
        ("real_memory", "MemoryError"),
        ("unspeakable", "Unspeakable"),
        ("long_error", "end of it"),
        ("surrogate_error", "half a pair"),
    ],
)
def test_whatever_is_raised_fails_the_attempt_and_nothing_else(ward: Ward, how: str, words: str) -> None:
    status = ward.end(how)

    assert (status.state, status.reason, status.attempts) == ("dead", "exhausted", 1)
    assert words in (status.error or "")
    assert len(status.error or "") <= 16 << 10
    assert status.result is None


def test_what_is_raised_is_tried_again_as_often_as_asked(ward: Ward) -> None:
    assert ward.end("system_exit_0", max_attempts=3).attempts == 3


@pytest.mark.parametrize("how", ["huge_result", "object_result", "deep_result", "big_int_result", "surrogate_result"])
def test_a_result_that_cannot_be_kept_costs_the_result_and_not_the_job(ward: Ward, how: str) -> None:
    status = ward.end(how)

    assert (status.state, status.attempts, status.result, status.error) == ("done", 1, None, None)
    assert status.result_error == ("TOO_LARGE" if how == "huge_result" else "UNSERIALIZABLE")
    with pytest.raises(ResultLost):
        ward.client.wait(status.id, 5)


def test_nan_is_a_result(ward: Ward) -> None:
    status = ward.end("nan_result")

    assert status.state == "done"
    assert math.isnan(status.result)


def test_a_megabyte_of_output_comes_out_whole(ward: Ward) -> None:
    before = len(ward.worker.out)

    assert ward.end("much_output").result == "printed"

    assert len(ward.worker.out) - before == 1 << 20


def test_output_that_no_encoding_has_fails_the_attempt_at_worst(ward: Ward) -> None:
    assert ward.end("wide_output").state in ("done", "dead")


def test_a_greenlet_that_a_job_leaves_behind_and_that_raises_harms_nobody(ward: Ward) -> None:
    assert ward.end("leftover_greenlet").result == "left one behind"


def test_retry_after_waits_as_long_as_it_says(ward: Ward) -> None:
    started = time.monotonic()

    status = ward.end("retry_after", max_attempts=3)

    assert (status.state, status.result, status.attempts) == ("done", 2, 2)
    assert time.monotonic() - started >= 0.3


def test_fail_is_for_good(ward: Ward) -> None:
    status = ward.end("fail", max_attempts=5)

    assert (status.state, status.reason, status.error, status.attempts) == ("dead", "failed", "for good", 1)


def test_a_greenlet_that_takes_too_long_is_ended(ward: Ward) -> None:
    started = time.monotonic()

    status = ward.end("timeout", timeout=1)

    assert 1 <= time.monotonic() - started < 5
    assert (status.state, status.reason) == ("dead", "exhausted")
    assert (status.error or "").startswith("timeout: ")


def test_progress_is_told_however_much_there_is_of_it(ward: Ward) -> None:
    assert ward.end("progress").result == "told"


def test_progress_shows_while_the_job_runs(ward: Ward) -> None:
    file = ward.rig.folder / "told"
    job = ward.client.enq("Stay", params={"file": str(file), "seconds": 30, "progress": [0.25, "a quarter"]})

    assert await_true(lambda: job.stat().progress, "the progress") == (0.25, "a quarter")
    job.cancel(running=True)


def test_a_running_job_that_is_cancelled_sees_it_and_is_not_tried_again(ward: Ward) -> None:
    file = ward.rig.folder / "stayed"
    job = ward.client.enq("Stay", params={"file": str(file), "seconds": 30}, max_attempts=5)
    await_true(lambda: lines_of(file), "the job runs")

    assert job.cancel(running=True) == "stop_requested"

    with pytest.raises(JobCancelled):
        job.wait(10)
    status = job.stat()
    assert (status.state, status.attempts) == ("cancelled", 1)
    assert "stopped as asked" in (status.error or "")
    assert ward.client.enq("Echo", params=os.getpid()).wait(NEXT_S) == os.getpid()


def test_the_worker_logged_no_error_of_its_own(ward: Ward) -> None:
    """Last: what jobs raise is theirs. A traceback in the worker's log would be one that nobody caught."""
    assert "CRITICAL" not in ward.worker.log
    unexpected = [line for line in ward.worker.log.splitlines() if "Traceback" in line]
    assert len(unexpected) == 1, ward.worker.log  # That of the greenlet which a job has left behind.
