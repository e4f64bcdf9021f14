"""The log of a server and a worker in the background: all lines have one form, whatever jobs and log rotation do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system_install import Installed
from system_rig import Rig, free_port
from waits import await_true

from givalia_core import Client, JobFailed

JSON = {"GIVALIA_LOGGING_FORMAT": "json"}


class Log:
    """A log file, every line of which is a JSON object."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def wait(self, event: str, **wanted: object) -> dict[str, Any]:
        """The first line that begins so and has these fields."""

        def look() -> dict[str, Any] | None:
            return next(
                (line for line in self.lines() if line["event"].startswith(event) and wanted.items() <= line.items()), None
            )

        return await_true(look, f"{event} in {self.path}")

    def rotate(self) -> Log:
        """Rotate as logrotate does with `create`; return the renamed file."""
        moved = self.path.rename(self.path.with_suffix(".1"))
        self.path.touch(0o640)
        return Log(moved)


class Background:
    """A server and a worker, both with -d."""

    def __init__(self, rig: Rig) -> None:
        port, worker_port = free_port(), free_port()
        self.server_log = Log(rig.folder / "state" / "givalia" / "givalia-server.log")
        self.worker_log = Log(rig.folder / "worker.log")
        started = rig.run("givalia-server", "-d", "-p", port, "-w", worker_port, **JSON)
        self.server = rig.own_daemon(int(started.stdout))
        started = rig.run("givalia-worker", "-d", "-w", worker_port, "--log-file", self.worker_log.path, **JSON)
        self.worker = rig.own_daemon(int(started.stdout))
        self.client = Client("127.0.0.1", port)

    def say(self, words: str) -> None:
        """Have a line logged by a greenlet and by a process of its own; it arrives."""
        for module in ("Say", "SayApart"):
            job = self.client.enq(module, params=f"{words} of {module}")
            assert job.wait(10) == "said"
            self.worker_log.wait(f"said by {words} of {module}", job=job.id, level="warning")
            self.worker_log.wait("succeeded", job=job.id, act="after_run")
            self.server_log.wait("enqueued", job=job.id)


@pytest.fixture
def background(release: Installed, tmp_path: Path) -> Iterator[Background]:
    with Rig(release, tmp_path) as rig:
        background = Background(rig)
        yield background
        background.client.close()


def test_every_line_has_one_form_whatever_jobs_do_to_logging_and_whoever_rotates_it(background: Background) -> None:
    server, worker, client = background.server_log, background.worker_log, background.client
    server.wait("a new, empty store was made")
    server.wait("worker any (pid")
    worker.wait("connected to", logger="givalia.worker")

    for how in ("dictConfig", "disable", "basicConfig", "structlog"):
        for module in ("Mute", "MuteApart"):
            client.enq(module, params=how).wait(10)
        background.say(f"what comes after {how}")

    with pytest.raises(JobFailed):
        client.enq("Stay", max_attempts=1, key="k").wait(10)
    dead = worker.wait("the job is dead: attempt 1 of 1 failed: TypeError", level="error", key="k", module="Stay")
    assert dead["exception"][0] == "Traceback (most recent call last):"
    server.wait("the job is dead (exhausted) after attempt 1 of 1: TypeError", level="error", key="k")

    rotated = [server.rotate(), worker.rotate()]
    background.say("what comes after create")
    for pid in (background.server, background.worker):
        os.kill(pid, signal.SIGHUP)
    server.wait("settings read again")
    worker.wait("the new processes have taken over")
    background.say("what comes after a reload")
    for log in (server, worker):
        os.truncate(log.path, 0)
    background.say("what comes after copytruncate")

    assert all(log.lines() for log in rotated)
    for pid in (background.server, background.worker):  # What jobs print goes to the new file as well.
        assert Path(f"/proc/{pid}/fd/1").resolve() in (server.path, worker.path)


def test_a_failing_job_is_seen_without_any_plugin(rig: Rig) -> None:
    server, worker = rig.start_server("--backoff", 0.1), rig.start_worker()
    job = rig.client().enq("StayApart", key="cart-7", max_attempts=2)

    with pytest.raises(JobFailed):
        job.wait(10)

    about = rf"\[module=StayApart key=cart-7 id={job.id} attempt="
    error = "TypeError: 'NoneType' object is not subscriptable"
    worker.await_log(rf"WARNING givalia.worker: attempt 1 of 2 failed, next try in 0\.1 s: {error} {about}1\]")
    worker.await_log(rf"ERROR givalia.worker: the job is dead: attempt 2 of 2 failed: {error} {about}2\]\n    \| Traceback")
    server.await_log(r"INFO givalia.server: worker any \(pid \d+, 127.0.0.1\) has joined")
    server.await_log(rf"ERROR givalia.server: the job is dead \(exhausted\) after attempt 2 of 2: TypeError.*{about}2\]")
    worker.stop()
    server.await_log(r"INFO givalia.server: worker any \(pid \d+\) has left")
