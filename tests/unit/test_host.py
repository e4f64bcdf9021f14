"""The process of many jobs: what it says of itself, and that no job costs the others anything."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
from attempt_rig import JobProcess, job

from givalia_core.protocol.messages import Announce, Dispatch, FailReport, Progress, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.worker.notes import AskHeld, Drain, Holding, HostReady, Importing, Serve, Spoiled, Start, Started

SHOP = """
import os, signal, sys, threading
from pathlib import Path

import gevent

from givalia_core import WorkModule

met = threading.Event()


class Tells(WorkModule):
    def process(self):
        return [os.getpid(), os.getcwd()]


class Waits(WorkModule):
    def process(self):
        return met.wait(30)


class Meets(WorkModule):
    def process(self):
        met.set()


class Counts(WorkModule):
    def process(self):
        for tenth in range(11):
            self.progress(tenth / 10)


class Exits(WorkModule):
    def process(self):
        gevent.spawn(sys.exit, 3).join()


class Moves(WorkModule):
    def process(self):
        os.chdir("/")


class Replaces(WorkModule):
    '''Puts another file in the place of a standard stream.'''

    def process(self):
        os.dup2(os.open("/dev/zero", os.O_RDONLY), 0)


class Goes(WorkModule):
    '''Goes on until it is stopped, and leaves the reason in a file.'''

    def process(self):
        try:
            self.progress(0.5)
            gevent.sleep(60)
        except BaseException as stopped:
            Path(self.params).write_text(f"{stopped.why}: {stopped}")
            raise


class Forks(WorkModule):
    '''Returns the number of the signal that its fork has died of; the fork has written to the connection before.'''

    def process(self):
        reading, writing = os.pipe()
        if not (fork := os.fork()):
            try:
                os.write(self.params, b"nonsense")
            finally:
                os.write(writing, b"x")
                signal.pause()
        os.read(reading, 1)
        os.kill(fork, signal.SIGTERM)
        return -os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
"""
MODULES = ("Tells", "Waits", "Meets", "Counts", "Exits", "Moves", "Replaces", "Goes", "Forks")
SETTINGS = dataclasses.asdict(WorkerSettings(plugins="shop", stop_grace=0.5))


class Host(JobProcess):
    """A host whose modules are in `shop.py`."""

    def serve(self, deadly: dict[str, str] | None = None, **settings: Any) -> HostReady:
        """Let it have its modules and its plugins, so that jobs may come; return what it announces."""
        self.tell(Serve({**SETTINGS, **settings}, deadly or {}))
        ready = self.until(HostReady)
        self.tell(Start())
        self.until(Started)
        return ready

    def result_of(self, dispatch: Dispatch) -> Any:
        self.tell(dispatch)
        return msgpack.unpackb(self.until(Succeed, dispatch.fence).payload)


Make = Callable[..., Host]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Start hosts; `more` are lines of entry points besides those of `shop.py`."""
    with ExitStack() as opened:

        def start(*more: str) -> Host:
            (tmp_path / "shop.py").write_text(SHOP)
            (tmp_path / "deadly.py").write_text("import os\nos._exit(9)\n")
            (tmp_path / "broken.py").write_text("raise SystemExit(7)\n")
            about = tmp_path / "shop-1.0.dist-info"
            about.mkdir()
            (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
            entries = [f"{name} = shop:{name}" for name in MODULES]
            (about / "entry_points.txt").write_text("\n".join(["[givalia.modules]", *entries, *more]))
            host = Host("host", tmp_path)
            opened.callback(host.close)
            return host

        yield start


# Its start and its end.


def test_the_modules_are_announced_when_each_has_been_imported(make: Make) -> None:
    host = make("Broken = broken:Broken")

    ready = host.serve()

    announced = {each.name: each for each in (Announce(*fields) for fields in ready.announced)}
    assert announced["Tells"] == Announce("Tells", "shop", "1.0")
    assert "SystemExit: 7" in str(announced["Broken"].broken)
    assert ready.sources["Tells"] == "shop:Tells"
    *importing, _, _ = host.heard
    assert importing == [Importing(name) for name in sorted(announced)]
    assert announced.keys() >= {*MODULES, "Broken"}


def test_an_import_that_ends_the_process_is_the_last_thing_that_is_heard_of_it(make: Make) -> None:
    host = make("Deadly = deadly:Deadly")
    host.tell(Serve(SETTINGS, {}))

    assert host.rest() == 9
    assert host.heard[-1] == Importing("Deadly")


def test_a_module_whose_import_was_deadly_is_not_imported_again(make: Make) -> None:
    host = make("Deadly = deadly:Deadly")

    ready = host.serve({"Deadly": "its import ended the process"})

    assert Importing("Deadly") not in host.heard
    (deadly,) = (Announce(*fields) for fields in ready.announced if fields[0] == "Deadly")
    assert deadly.broken == "its import ended the process"
    assert host.result_of(job("Tells", 1))


def test_a_log_file_that_cannot_be_opened_keeps_no_job_from_running(make: Make, tmp_path: Path) -> None:
    host = make()

    host.serve(log_file=str(tmp_path / "missing" / "log"))

    assert host.result_of(job("Tells", 1))


def test_a_host_ends_when_it_is_told_that_all_is_over(make: Make) -> None:
    host = make()
    host.serve()

    host.tell(Drain(), Drain(is_over=True))

    assert host.rest() == 0


def test_jobs_are_stopped_when_the_supervisor_is_gone(make: Make, tmp_path: Path) -> None:
    host = make()
    host.serve()
    host.tell(job("Goes", 1, str(tmp_path / "why")))
    host.until(Progress)

    host.hang_up()

    assert host.wait() == 1
    assert (tmp_path / "why").read_text() == "shutdown: shutdown: the supervisor of its worker is gone"


# Jobs beside each other.


def test_jobs_that_wait_for_each_other_run_beside_each_other(make: Make) -> None:
    host = make()
    host.serve()

    host.tell(job("Waits", 1), AskHeld())
    assert host.until(Holding).fences == [1]
    host.tell(job("Meets", 2))

    assert msgpack.unpackb(host.until(Succeed, 1).payload) is True


def test_of_what_a_job_says_of_its_progress_the_newest_is_sent_before_its_report(make: Make) -> None:
    host = make()
    host.serve()

    host.tell(job("Counts", 1))
    host.until(Succeed)

    assert [note.fraction for note in host.kept(Progress)] == [1.0]


def test_an_exit_in_a_greenlet_of_a_job_ends_no_process(make: Make) -> None:
    host = make()
    host.serve()
    (pid, _) = host.result_of(job("Tells", 1))

    host.result_of(job("Exits", 2))

    assert host.result_of(job("Tells", 3))[0] == pid


def test_what_a_job_changes_is_put_back_for_the_next_one_and_logged(make: Make, tmp_path: Path) -> None:
    host = make()
    host.serve(log_file=str(tmp_path / "log"))
    _, before = host.result_of(job("Tells", 1))

    host.result_of(job("Moves", 2))

    assert host.result_of(job("Tells", 3))[1] == before
    assert "a job has changed the working folder of its process; put back" in (tmp_path / "log").read_text()
    assert host.kept(Spoiled) == []


def test_what_cannot_be_put_back_is_told_once(make: Make) -> None:
    host = make()
    host.serve()

    host.result_of(job("Replaces", 1))
    host.result_of(job("Tells", 2))
    host.result_of(job("Tells", 3))

    assert host.kept(Spoiled) == [Spoiled("standard streams")]


def test_a_fork_of_a_job_has_no_connection_and_is_ended_by_a_signal(make: Make) -> None:
    host = make()
    host.serve()

    assert host.result_of(job("Forks", 1, host.channel)) == signal.SIGTERM
    assert host.result_of(job("Tells", 2))
    assert host.kept(FailReport) == []
