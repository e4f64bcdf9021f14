"""Every end of job code: the right reason is recorded, nothing of the job is left, and the worker runs the next job at once."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import pytest
from system_rig import Rig, lines_of
from system_ward import EXECUTORS, GREENLET, LIMIT_S, NEXT_S, PROCESS, Ward
from waits import await_true

from givalia_core import JobCancelled, ResultLost

PAGE: Final = Path(__file__).parents[2] / "docs" / "job-deaths.md"
IS_WRITTEN: Final = bool(os.environ.get("WRITE_JOB_DEATHS"))  # Then docs/job-deaths.md is made anew, and not only compared.
_ROW: Final = re.compile(r"^\| (.+) \| `(.+)` \| (\S+) s \| `(.+)` \| (\S+) s \|$", re.MULTILINE)
_HEAD: Final = "| --- | --- | --- | --- | --- |\n"
_END: Final = "\nEach of these jobs"
_REPLACED: Final = "; it did not end when it was told to, so its process was replaced"
_LEFT: Final = "; it did not end when it was told to, so it was reported without waiting for its code"
_LATE: Final = f"timeout: it ran longer than {LIMIT_S:g} s"
_OOM: Final = "oom: there was no memory for what it did"


class Row(NamedTuple):
    """One death: what the page calls it, and what has to be recorded of it, or how that begins, on each executor."""

    how: str
    words: str
    as_greenlet: str
    apart: str


def _row(how: str, words: str, as_greenlet: str, apart: str | None = None) -> Row:
    return Row(how, words, as_greenlet, apart or as_greenlet)


MATRIX: Final = (
    _row("system_exit_0", "raises `SystemExit(0)`", "SystemExit: 0"),
    _row("system_exit_1", "raises `SystemExit(1)`", "SystemExit: 1"),
    _row("keyboard_interrupt", "raises `KeyboardInterrupt`", "KeyboardInterrupt"),
    _row("generator_exit", "raises `GeneratorExit`", "GeneratorExit"),
    _row("gevent_timeout", "raises `gevent.Timeout`", "gevent.timeout.Timeout: 3 seconds"),
    _row("base_exception", "raises a `BaseException` of its own", "system_deaths.Odd: odd"),
    _row("unspeakable", "raises an exception whose `__str__` raises", "system_deaths.Unspeakable: <exception str() failed>"),
    _row("recursion", "calls itself without end", "RecursionError: maximum recursion depth exceeded"),
    _row("memory", "raises `MemoryError`", _OOM),
    _row("limited_memory", "limits its memory and takes more", _OOM),
    _row("exit_0", "`os._exit(0)`", "child_died: exit code 0"),
    _row("exit_1", "`os._exit(1)`", "child_died: exit code 1"),
    _row("segv", "reads from address 0", "child_died: SIGSEGV"),
    _row("abort", "`os.abort()`", "child_died: SIGABRT"),
    _row("kill", "is killed with -9", "child_died: SIGKILL"),
    _row("busy_python", "loops in Python for ever", _LATE + _REPLACED, _LATE),
    _row("busy_c", "loops in C for ever, with the interpreter's lock", _LATE + _REPLACED, _LATE),
    _row("deadlock", "waits for its own lock", _LATE),
    _row("deaf", "swallows what ends it", _LATE + _LEFT, _LATE),
    _row("fork_returns", "forks, and both return", "done"),
    _row("fork_raises", "forks, and the fork raises", "done"),
    _row("grandchild", "leaves a process in a session of its own running", "done"),
    _row("orphan", "leaves such a process running, whose parent has ended", "done"),
    _row("thread", "leaves a thread running", "done"),
    _row(
        "closed_fds",
        "closes all its files and returns",
        "child_died: it closed the connection to its worker",
    ),
    _row(
        "closed_fds_and_stays",
        "closes all its files and goes on",
        "child_died: it closed the connection to its worker",
    ),
    _row("surroundings", "changes the working folder and the umask", "done"),
    _row("signals", "ignores and blocks signals, starts a timer", "done"),
    _row("very_much_output", "prints 256 MiB", "done"),
    _row("huge_result", "returns more than a result may be", "done, TOO_LARGE"),
    _row("object_result", "returns a value that cannot be packed", "done, UNSERIALIZABLE"),
    _row("sly_result", "returns a value that raises when it is packed", "done, UNSERIALIZABLE"),
    _row("nan_result", "returns NaN", "done"),
)
LEAVES_PROCESSES: Final = ("grandchild", "orphan")


@pytest.fixture(scope="module")
def ward(shared_rig: Rig) -> Ward:
    return Ward(shared_rig)


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[tuple[str, str], float]]:
    """Seconds until the next job was done, by death and executor; written to the page if somebody asks for that."""
    measured: dict[tuple[str, str], float] = {}
    yield measured
    if IS_WRITTEN:
        _write_page(measured)


def _write_page(measured: dict[tuple[str, str], float]) -> None:
    rows = (
        f"| {row.words} | `{row.as_greenlet}` | {measured[row.how, GREENLET]:.3f} s "
        f"| `{row.apart}` | {measured[row.how, PROCESS]:.3f} s |\n"
        for row in MATRIX
    )
    page = PAGE.read_text()
    before, after = page[: page.index(_HEAD) + len(_HEAD)], page[page.index(_END) :]
    PAGE.write_text(before + "".join(rows) + after)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.how)
def test_a_death_is_recorded_and_leaves_nothing(
    ward: Ward, row: Row, executor: str, measured: dict[tuple[str, str], float]
) -> None:
    death = ward.die(executor, row.how)

    status = death.status
    expected = row.as_greenlet if executor == GREENLET else row.apart
    assert death.recorded.startswith(expected), status.error
    assert (status.state, status.attempts) == (expected.partition(",")[0] if expected.startswith("done") else "dead", 1)
    assert status.reason == ("exhausted" if status.state == "dead" else None)
    if executor == GREENLET and row.how in LEAVES_PROCESSES:
        ward.die(executor, "exit_0")  # What a greenlet has started ends with the process that all greenlets share.
    ward.probe(PROCESS)  # A greenlet of whose fault nobody is sure has been tried again there, and has ended that process.
    ward.await_clean()
    if row.how in LEAVES_PROCESSES:
        await_true(lambda: not _is_there(status.result), "what the job left behind is gone")
    measured[row.how, executor] = death.next_s


def _is_there(pid: int) -> bool:
    """A process that nobody has waited for yet has ended all the same."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(IS_WRITTEN, reason="the page is being written")
def test_the_page_says_what_these_tests_have_proved() -> None:
    rows = _ROW.findall(PAGE.read_text())

    assert [(words, greenlet, apart) for words, greenlet, _, apart, _ in rows] == [row[1:] for row in MATRIX]
    assert all(float(seconds) < NEXT_S for row in rows for seconds in (row[2], row[4]))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("greenlet_exit", "GreenletExit"),
        ("real_memory", "MemoryError"),
        ("long_error", "end of it"),
        ("surrogate_error", "half a pair"),
    ],
)
def test_whatever_is_raised_fails_the_attempt_and_nothing_else(ward: Ward, executor: str, how: str, words: str) -> None:
    status = ward.die(executor, how).status

    assert (status.state, status.reason, status.attempts) == ("dead", "exhausted", 1)
    assert words in (status.error or "")
    assert len(status.error or "") <= 16 << 10
    assert status.result is None


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_raised_is_tried_again_as_often_as_asked(ward: Ward, executor: str) -> None:
    assert ward.die(executor, "system_exit_0", max_attempts=3).status.attempts == 3


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("how", ["exit_0", "segv"])
def test_the_third_process_that_a_job_takes_with_it_is_its_last(ward: Ward, executor: str, how: str) -> None:
    status = ward.die(executor, how, max_attempts=10).status

    assert (status.state, status.reason, status.attempts) == ("dead", "child_died", 3)
    assert (status.error or "").startswith("child_died: ")
    ward.await_clean()


def test_many_deaths_in_a_row_do_not_make_the_next_job_wait(ward: Ward) -> None:
    """A process that dies of its job is no sign of one that cannot start, which is given more and more time."""
    for _ in range(8):
        ward.die(GREENLET, "exit_1")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("how", ["huge_result", "object_result", "deep_result", "big_int_result", "surrogate_result"])
def test_a_result_that_cannot_be_kept_costs_the_result_and_not_the_job(ward: Ward, executor: str, how: str) -> None:
    status = ward.die(executor, how).status

    assert (status.state, status.attempts, status.result, status.error) == ("done", 1, None, None)
    assert status.result_error == ("TOO_LARGE" if how == "huge_result" else "UNSERIALIZABLE")
    with pytest.raises(ResultLost):
        ward.client.wait(status.id, 5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_nan_is_a_result(ward: Ward, executor: str) -> None:
    status = ward.die(executor, "nan_result").status

    assert status.state == "done"
    assert math.isnan(status.result)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_megabyte_of_output_comes_out_whole(ward: Ward, executor: str) -> None:
    before = ward.pipe.count

    assert ward.die(executor, "much_output").status.result == "printed"

    await_true(lambda: ward.pipe.count - before >= 1 << 20, "all of it was read")
    assert ward.pipe.count - before == 1 << 20


def test_output_that_no_encoding_has_fails_the_attempt_at_worst(ward: Ward) -> None:
    assert ward.die(GREENLET, "wide_output").status.state in ("done", "dead")


def test_a_greenlet_that_a_job_leaves_behind_and_that_raises_harms_nobody(ward: Ward) -> None:
    assert ward.die(GREENLET, "leftover_greenlet").status.result == "left one behind"


def test_retry_after_waits_as_long_as_it_says(ward: Ward) -> None:
    started = time.monotonic()

    status = ward.die(GREENLET, "retry_after", max_attempts=3).status

    assert (status.state, status.result, status.attempts) == ("done", 2, 2)
    assert time.monotonic() - started >= 0.3


def test_fail_is_for_good(ward: Ward) -> None:
    status = ward.die(GREENLET, "fail", max_attempts=5).status

    assert (status.state, status.reason, status.error, status.attempts) == ("dead", "failed", "for good", 1)


def test_a_greenlet_that_takes_too_long_is_ended(ward: Ward) -> None:
    started = time.monotonic()

    status = ward.die(GREENLET, "timeout", timeout=1).status

    assert 1 <= time.monotonic() - started < 5
    assert (status.state, status.reason) == ("dead", "exhausted")
    assert (status.error or "").startswith("timeout: ")


def test_progress_is_told_however_much_there_is_of_it(ward: Ward) -> None:
    assert ward.die(GREENLET, "progress").status.result == "told"


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
    unexpected = [
        line for line in ward.worker.log.splitlines() if line.startswith("Traceback")
    ]  # Behind a margin all is known.
    assert not unexpected, ward.worker.log
