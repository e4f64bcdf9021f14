"""A plugin written from the documentation of the hooks alone gets what is promised; a bad plugin disturbs no job."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from system_install import Installed, Wheels, write_package
from system_rig import Rig
from waits import await_true

WITNESS = """
import json, os
from givalia_core import hookimpl

def write(**said):
    fd = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, (json.dumps({"pid": os.getpid(), **said}, default=str) + "\\n").encode())
    os.close(fd)

def shown(job):
    names = ("id", "key", "module", "target_worker", "priority", "attempt", "due", "fence", "params")
    return {name: getattr(job, name) for name in names if hasattr(job, name)}

class Witness:
    @hookimpl
    def before_run(self, job, module):
        write(hook="before_run", job=shown(job), module=module.__name__)
        try:
            job.params = "another"
        except AttributeError:
            pass
        else:
            write(hook="changed")

    @hookimpl
    def after_run(self, job, module, outcome):
        told = {"kind": outcome.kind, "result": outcome.result, "error": outcome.error, "seconds": outcome.seconds}
        write(hook="after_run", job=shown(job), module=module.__name__, outcome=told)

    @hookimpl
    def on_cancel(self, job, running):
        write(hook="on_cancel", job=shown(job), running=running)

    @hookimpl
    def on_enq(self, job):
        write(hook="on_enq", job=shown(job))

    @hookimpl
    def on_ext(self, job):
        write(hook="on_ext", job=shown(job))

    @hookimpl
    def on_requeue(self, job):
        write(hook="on_requeue", job=shown(job))

    @hookimpl
    def on_done(self, job):
        write(hook="on_done", job=shown(job))

    @hookimpl
    def on_retry(self, job, outcome):
        write(hook="on_retry", job=shown(job), outcome={"kind": outcome.kind, "error": outcome.error})

    @hookimpl
    def on_dead(self, job, reason, error):
        write(hook="on_dead", job=shown(job), reason=reason, error=error)

    @hookimpl
    def server_started(self, server):
        write(hook="server_started", port=server.client_port)

    @hookimpl
    def server_stopping(self):
        write(hook="server_stopping")

    @hookimpl
    def worker_started(self, worker):
        write(hook="worker_started", name=worker.name)

    @hookimpl
    def worker_stopping(self, worker):
        write(hook="worker_stopping", name=worker.name)
"""
GRUMP = '''
"""A plugin that is a module, and raises whatever it is called for."""
from givalia_core import hookimpl

def _raise(kind=(SystemExit, ValueError, KeyboardInterrupt, GeneratorExit), calls=[0]):
    calls[0] += 1
    raise kind[calls[0] % len(kind)]("grump")

@hookimpl
def before_run(): _raise()
@hookimpl
def after_run(outcome): _raise()
@hookimpl
def on_cancel(job): _raise()
@hookimpl
def on_enq(): _raise()
@hookimpl
def on_ext(): _raise()
@hookimpl
def on_retry(): _raise()
@hookimpl
def on_dead(): _raise()
@hookimpl
def server_started(): _raise()
@hookimpl
def server_stopping(): _raise()
@hookimpl
def worker_started(): _raise()
@hookimpl
def worker_stopping(): _raise()
'''
UNLOADABLE = "raise SystemExit('no plugin today')\n"


class House:
    """A server and a worker with those plugins, and what the good one saw."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.file = rig.folder / "witness"
        rig.environ["WITNESS"] = str(self.file)
        self.server = rig.start_server("--backoff", "0")
        self.worker = rig.start_worker("-n", "house")
        self.client = rig.client()
        self.stayed = rig.folder / "stayed"
        self.hosts = self.rig.hosts_of(self.worker)

    def seen(self, *hooks: str) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        every = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [each for each in every if not hooks or each["hook"] in hooks]

    def of(self, job_id: str, *hooks: str, count: int = 1) -> list[dict[str, Any]]:
        """Return the events of a job, once there are so many."""

        def look() -> list[dict[str, Any]]:
            found = [each for each in self.seen(*hooks) if each.get("job", {}).get("id") == job_id]
            return found if len(found) >= count else []

        return await_true(look, f"{count} calls of {hooks}")


@pytest.fixture(scope="module")
def house(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("hooks")
    packages = [
        write_package(folder, "a-witness", WITNESS, {}, {"witness": ":Witness"}),
        write_package(folder, "a-grump", GRUMP, {}, {"grump": ""}),
        write_package(folder, "unloadable", UNLOADABLE, {}, {"unloadable": ":Nothing"}),
    ]
    installed = Installed(folder / "environment", [*wheels.plain, *wheels.of_all(packages)])
    with Rig(installed, folder) as rig:
        yield House(rig)


def test_before_and_after_run_are_called_once_each_with_what_is_promised(house: House) -> None:
    job = house.client.enq("Echo", params={"n": 1}, key="seen", priority=3, target_worker="house")
    assert job.wait(10) == {"n": 1}

    before, after = house.of(job.id, "before_run", "after_run", count=2)

    assert (before["hook"], after["hook"]) == ("before_run", "after_run")
    assert before["pid"] == after["pid"] in house.hosts
    assert before["module"] == after["module"] == "Echo"
    assert before["job"] == after["job"]
    fence, due = before["job"].pop("fence"), datetime.fromisoformat(before["job"].pop("due"))
    assert before["job"] == {
        "id": job.id, "key": "seen", "module": "Echo", "target_worker": "house", "priority": 3, "attempt": 1,
        "params": {"n": 1},
    }  # fmt: skip
    assert fence > 0
    assert abs((due - job.due).total_seconds()) < 0.01
    seconds = after["outcome"].pop("seconds")
    assert 0 <= seconds < 5
    assert after["outcome"] == {"kind": "succeeded", "result": {"n": 1}, "error": None}
    assert not house.seen("changed")


def test_a_failed_attempt_is_seen_and_so_are_its_retry_and_its_death(house: House) -> None:
    job = house.client.enq("End", params="base_exception", max_attempts=2)
    with pytest.raises(Exception, match="Odd"):
        job.wait(10)

    of_server = house.of(job.id, "on_enq", "on_retry", "on_dead", count=3)
    of_worker = house.of(job.id, "before_run", "after_run", count=4)

    assert [each["hook"] for each in of_server] == ["on_enq", "on_retry", "on_dead"]
    assert {each["pid"] for each in of_server} == {house.server.pid}
    assert of_server[1]["outcome"]["kind"] == "failed"
    assert "Odd: odd" in of_server[1]["outcome"]["error"]
    assert of_server[2]["reason"] == "exhausted"
    assert "Odd: odd" in of_server[2]["error"]
    assert [each["job"]["attempt"] for each in of_worker] == [1, 1, 2, 2]
    assert [each["outcome"]["kind"] for each in of_worker if each["hook"] == "after_run"] == ["failed", "failed"]


def test_another_life_and_a_success_are_told_on_the_server(house: House) -> None:
    job = house.client.enq("Echo", time=60)
    job.cancel()
    house.client.requeue(id=job.id).wait(10)

    told = house.of(job.id, "on_enq", "on_cancel", "on_requeue", "on_done", count=4)

    assert [each["hook"] for each in told] == ["on_enq", "on_cancel", "on_requeue", "on_done"]
    assert {each["pid"] for each in told} == {house.server.pid}


def test_cancel_of_a_job_that_has_not_started_is_told_on_the_server(house: House) -> None:
    job = house.client.enq("Echo", time=60, key="not started")
    job.ext(5)
    job.cancel()
    job.cancel()

    enq, ext, cancelled = house.of(job.id, count=3)

    assert (enq["hook"], ext["hook"], cancelled["hook"]) == ("on_enq", "on_ext", "on_cancel")
    assert cancelled["running"] is False
    assert cancelled["pid"] == house.server.pid
    assert cancelled["job"]["key"] == "not started"
    assert datetime.fromisoformat(ext["job"]["due"]) > datetime.fromisoformat(enq["job"]["due"])


def test_the_end_of_an_attempt_that_lost_its_process_is_told_by_the_next_one(house: House) -> None:
    job = house.client.enq("Stay", params={"file": str(house.stayed), "seconds": 2})
    await_true(lambda: house.stayed.exists() and job.id in house.stayed.read_text(), "the job runs")
    os.kill(house.hosts[-1], signal.SIGKILL)
    assert job.wait(20) == 1

    told = house.of(job.id, "before_run", "after_run", count=4)

    assert sorted(each["hook"] for each in told) == ["after_run", "after_run", "before_run", "before_run"]
    assert {each["outcome"]["kind"] for each in told if each["hook"] == "after_run"} == {"released", "succeeded"}
    house.hosts += house.rig.hosts_of(house.worker)


def test_cancel_of_a_running_job_is_told_on_its_worker(house: House) -> None:
    job = house.client.enq("Stay", params={"file": str(house.stayed), "seconds": 30})
    await_true(lambda: house.stayed.exists() and job.id in house.stayed.read_text(), "the job runs")
    assert job.cancel(running=True) == "stop_requested"
    assert job.cancel(running=True) in ("stop_requested", "cancelled")
    with pytest.raises(Exception, match="cancelled"):
        job.wait(10)

    (cancelled,) = house.of(job.id, "on_cancel")

    assert cancelled["running"] is True
    assert cancelled["pid"] in house.hosts
    assert cancelled["job"]["fence"] > 0
    (after,) = house.of(job.id, "after_run")
    assert after["outcome"]["kind"] == "stopped"


def test_a_plugin_that_always_raises_is_counted_then_silenced_and_harms_nobody(house: House) -> None:
    jobs = house.client.enq_many([{"module": "Echo", "params": n} for n in range(30)])

    assert [job.wait(10) for job in jobs] == list(range(30))
    told = await_true(lambda: (plugins := house.client.info()["plugins"])["silenced"] and plugins, "the silence")
    assert told["silenced"] == ["a_grump"]
    assert told["raised"] == {"a_grump": 20}
    house.worker.await_log("plugin a_grump raised 20 times in a row and is called no more")
    # The other one, called beside it, missed nothing.
    ids = {job.id for job in jobs}
    calls = await_true(
        lambda: (
            len(found := [each for each in house.seen("on_enq", "before_run", "after_run") if each["job"]["id"] in ids]) == 90
            and found
        ),
        "three calls for each job",
    )
    assert set(Counter((each["job"]["id"], each["hook"]) for each in calls).values()) == {1}


def test_a_plugin_that_cannot_be_loaded_is_named_and_holds_up_nobody(house: House) -> None:
    rows = {row["name"]: row for row in house.rig.cli_json("plugins")}

    assert set(rows) == {"witness", "grump", "unloadable"}
    assert "no plugin today" in rows["unloadable"]["error"]
    assert rows["witness"]["error"] is None
    assert (rows["witness"]["distribution"], rows["witness"]["version"]) == ("a-witness", "1.2.3")
    assert rows["witness"]["source"].endswith("a_witness.py")
    assert "unloadable" in house.server.log


def test_start_and_stop_are_told_once_each(house: House) -> None:
    """Last, for it ends them."""
    assert house.worker.stop() == 0
    assert house.server.stop() == 0

    around = [each for each in house.seen() if each["hook"].split("_")[0] in ("server", "worker")]

    assert Counter(each["hook"] for each in around) == {
        "server_started": 1,
        "server_stopping": 1,
        "worker_started": len(house.hosts),
        "worker_stopping": 1,
    }  # fmt: skip  (A process that was killed had a start and no stop.)
    by_hook = {each["hook"]: each for each in around}
    assert by_hook["server_started"]["port"] == house.server.port
    assert by_hook["worker_started"]["name"] == by_hook["worker_stopping"]["name"] == "house"
    assert by_hook["server_stopping"]["pid"] == house.server.pid
