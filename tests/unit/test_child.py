"""The process of one job at a time: how a job is stopped there, and what is left of it for the next one."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from attempt_rig import JobProcess, begin
from waits import await_true

from givalia_core.protocol.messages import FailReport, Progress, Succeed
from givalia_core.worker.attempt.child import Forwarding
from givalia_core.worker.notes import ChildReported, JobServers, Logged, Outdated, Serve, Spoiled

SHOP = """
import logging, os, signal, threading, time
from pathlib import Path
from givalia_core import WorkModule, job_servers


class Tells(WorkModule):
    def process(self):
        return {"pid": os.getpid(), "cancelled": self.cancelled, "servers": job_servers.known()}


class Waits(WorkModule):
    def process(self):
        self.progress(0.5)
        while not self.cancelled:
            time.sleep(0.002)
        return "cancelled"


class Goes(WorkModule):
    '''Goes on until it is stopped, and leaves the reason in a file.'''

    def process(self):
        Path(self.params).write_text("runs")
        try:
            self.progress(0.5)
            while True:
                time.sleep(0.002)
        except BaseException as stopped:
            Path(self.params).write_text(stopped.why)
            raise


class Says(WorkModule):
    '''Says more than can be on its way while nobody hears it.'''

    def process(self):
        for _ in range(100):
            self.log.info(10_000 * "x")
        return "went on"


class Signals(WorkModule):
    '''Sends itself what a person sends to all processes of a worker.'''

    def process(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return "went on"


class Forks(WorkModule):
    '''Returns the number of the signal that its fork has died of.'''

    def process(self):
        reading, writing = os.pipe()
        if not (fork := os.fork()):
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1)
        os.kill(fork, signal.SIGTERM)
        return -os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])


class Logs(WorkModule):
    def process(self):
        self.log.info("not worth a line")
        self.log.warning("only %d left", 3)
        if self.params:
            logging.disable(logging.CRITICAL)


class LeavesThread(WorkModule):
    def process(self):
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class LeavesProcess(WorkModule):
    def process(self):
        if not os.fork():
            os._exit(0)


class LeavesFolder(WorkModule):
    def process(self):
        os.chdir("/")
        os.umask(0o123)
"""
BROKEN = "raise SystemExit(7)"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[JobProcess]:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "broken.py").write_text(BROKEN)
    process = JobProcess("child", tmp_path)
    yield process
    process.close()


def result_of(child: JobProcess) -> Any:
    """The result of the next job that ends."""
    ended = child.until(ChildReported)
    assert ended.is_success, ended
    return msgpack.unpackb(Succeed(*ended.report).payload)


def failure_of(child: JobProcess) -> FailReport:
    ended = child.until(ChildReported)
    assert not ended.is_success, ended
    return FailReport(*ended.report)


# One job and the next.


def test_jobs_run_one_after_the_other_in_the_same_process_until_the_supervisor_ends_it(child: JobProcess) -> None:
    child.tell(begin("Tells", 1), JobServers("there:1,here:2"), begin("Tells", 2))

    first, second = result_of(child), result_of(child)
    assert first["pid"] == second["pid"]
    assert second["servers"] == "there:1,here:2"
    child.finish()
    assert child.rest() == 0


def test_the_page_names_the_job_whose_code_runs_and_cancels_only_the_job_that_it_names(child: JobProcess) -> None:
    child.page.cancelled = 7
    child.tell(begin("Tells", 6))
    assert result_of(child)["cancelled"] is False
    assert child.page.current == 0

    child.page.cancelled = 0
    child.tell(begin("Waits", 7))
    child.until(Progress)
    assert child.page.current == 7
    child.page.cancelled = 7

    assert result_of(child) == "cancelled"
    assert child.page.current == 0


def test_an_import_that_would_end_the_process_fails_its_job_alone(child: JobProcess) -> None:
    child.tell(begin("Broken", 1, source="broken:Broken"), begin("Missing", 2), begin("Tells", 3))

    assert "SystemExit: 7" in failure_of(child).error
    assert "has no attribute 'Missing'" in failure_of(child).error
    assert result_of(child)["pid"]


@pytest.mark.parametrize(
    ("module", "words"),
    [("LeavesThread", "threads"), ("LeavesProcess", "processes"), ("LeavesFolder", "working folder, umask")],
)
def test_a_job_that_leaves_something_is_the_last_one_of_its_process(child: JobProcess, module: str, words: str) -> None:
    child.tell(begin(module, 1), begin("Tells", 2))

    assert child.rest() == 0
    report, spoiled = child.heard
    assert report.is_success
    assert spoiled == Spoiled(words)


def test_a_job_does_not_start_on_other_code_than_was_announced(child: JobProcess) -> None:
    outdated = {"distribution": "givalia", "version": "0.0.1"}
    is_new = begin("Waits", 1)._replace(**outdated, since=0.0)
    child.page.cancelled = 1
    child.tell(is_new._replace(since=time.time() + 3_600))  # No package was installed since then.
    child.tell(begin("Tells", 2), begin("Tells", 3)._replace(**outdated, since=0.0))  # The code is there already.
    assert all((result_of(child), result_of(child), result_of(child)))
    child.heard.clear()

    child.tell(begin("Forks", 4)._replace(**outdated, since=0.0))

    assert child.rest() == 0
    assert child.heard == [Outdated()]


# Stopping.


@pytest.mark.parametrize(
    ("why", "kind", "words"),
    [
        ("timeout", "timeout", "timeout: it ran longer than 1.5 s"),
        ("cancelled", "stopped", "cancelled: it was asked to stop, and went on"),
        ("shutdown", "stopped", "shutdown: its worker stops"),
        ("lease", "died", "its lease is over"),
    ],
)
def test_a_signal_with_a_reason_stops_the_job_in_its_code(
    child: JobProcess, tmp_path: Path, why: str, kind: str, words: str
) -> None:
    child.tell(begin("Goes", 1, str(tmp_path / "why"), timeout_us=1_500_000))
    child.until(Progress)

    child.page.why = why
    child.signal(signal.SIGTERM)

    report = failure_of(child)
    assert (report.kind, report.error.splitlines()[0]) == (kind, words)
    assert (tmp_path / "why").read_text() == why


def test_a_job_that_is_stopped_while_it_says_something_has_said_that_whole(child: JobProcess) -> None:
    child.tell(Serve({"log_level": "info"}, {}), begin("Says", 1))
    looks: list[int] = []

    def is_held_up() -> bool:
        looks.append(child.unheard_bytes())
        return looks[-1] > 0 and looks[-10:] == [looks[-1]] * 10

    await_true(is_held_up, "the job waits for somebody to hear it")
    child.page.why = "shutdown"
    child.signal(signal.SIGTERM)

    assert failure_of(child).kind == "stopped"
    assert {type(note) for note in child.heard} == {Logged, ChildReported}


def test_a_job_that_was_stopped_before_it_began_does_not_run(child: JobProcess, tmp_path: Path) -> None:
    child.page.why = "cancelled"

    child.tell(begin("Goes", 1, str(tmp_path / "why")))

    assert failure_of(child).kind == "stopped"
    assert not (tmp_path / "why").exists()


def test_a_signal_that_the_supervisor_has_not_sent_stops_a_job_only_if_the_supervisor_is_gone(
    child: JobProcess, tmp_path: Path
) -> None:
    child.tell(begin("Signals", 1), begin("Goes", 2, str(tmp_path / "why")))
    assert result_of(child) == "went on"
    child.until(Progress)

    child.hang_up()
    child.signal(signal.SIGTERM)

    await_true(lambda: (tmp_path / "why").read_text() == "shutdown", "the job is stopped")


def test_a_signal_ends_what_a_job_has_forked(child: JobProcess) -> None:
    child.tell(begin("Forks", 1))

    assert result_of(child) == signal.SIGTERM


# Lines.


def test_lines_of_a_job_go_to_the_supervisor_whatever_the_job_before_has_done_to_logging(child: JobProcess) -> None:
    child.tell(Serve({"log_level": "warning"}, {}), begin("Logs", 1, "disables logging"), begin("Logs", 2, key="cart-7"))
    child.until(ChildReported)
    child.heard.clear()

    child.until(ChildReported)

    (line,) = child.kept(Logged)
    assert {name: line.fields[name] for name in ("name", "levelno", "msg", "key", "attempt", "job_module")} == {
        "name": "givalia.job", "levelno": logging.WARNING, "msg": "only 3 left", "key": "cart-7", "attempt": 1,
        "job_module": "Logs",
    }  # fmt: skip


def test_a_line_is_sent_with_what_fits_and_no_more() -> None:
    said: list[Any] = []
    record = logging.LogRecord("givalia.job", logging.INFO, "cart.py", 7, "x" * 20_000, (), None)
    vars(record).update(key=["no text"], attempt=1 << 63, job_id=None, password="secret")

    Forwarding(said.append).emit(record)

    fields = said[0].fields
    assert fields["msg"] == "x" * 16_384
    assert (fields["key"], fields["attempt"]) == ("['no text']", str(1 << 63))
    assert not {"job_id", "password"} & fields.keys()
