"""A plugin that hangs, or that ends its process, is named, and costs the jobs it was called for only time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from system_install import Installed, Wheels, write_package
from system_rig import Rig, Running, lines_of
from waits import await_true

from givalia_core import Client

LIMIT_S = 3
PLUGIN = """
import os, time
from pathlib import Path
from givalia_core import hookimpl

class Harmful:
    @hookimpl
    def before_run(self, job):
        if job.params == "hang before":
            time.sleep(600)
        if isinstance(job.params, dict) and job.params.get("exits") and not Path(job.params["exits"]).exists():
            Path(job.params["exits"]).touch()
            os._exit(3)

    @hookimpl
    def after_run(self, job):
        if job.params == "hang after":
            time.sleep(600)
"""


@pytest.fixture(scope="module")
def rig(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("harmful")
    package = write_package(folder, "harmful", PLUGIN, {}, {"harmful": ":Harmful"})
    installed = Installed(folder / "environment", [*wheels.plain, *wheels.of_all([package])])
    with Rig(installed, folder) as rig:
        rig.start_server()
        yield rig


@pytest.fixture(scope="module")
def worker(rig: Rig) -> Running:
    return rig.start_worker("--hook-limit", LIMIT_S)


@pytest.fixture(scope="module")
def client(rig: Rig, worker: Running) -> Client:
    return rig.client()


@pytest.mark.parametrize(("params", "hook"), [("hang before", "before_run"), ("hang after", "after_run")])
@pytest.mark.parametrize("module", ["Echo", "EchoApart"])
def test_a_plugin_that_hangs_is_named_and_the_job_goes_on(client: Client, params: str, hook: str, module: str) -> None:
    job = client.enq(module, params=params, max_attempts=1, timeout=20)

    words = f"{hook} of plugin Harmful"
    await_true(lambda: f"in {words}" in job.stat().why, "explain names the plugin", 5)
    (shown,) = client.workers()
    assert [(each["state"], each["stack"]) for each in shown["processes"] if each["role"] == "greenlets"] == [("hook", words)]
    assert client.enq("Echo", params="next").wait(2) == "next"

    result = job.wait(10)
    assert params in (result, result[-1])  # Apart it says besides where it ran.
    assert job.stat().attempts == 1


def test_a_process_that_a_plugin_ends_is_the_plugins_fault(rig: Rig, worker: Running, client: Client) -> None:
    file, gone = rig.folder / "rests", rig.folder / "gone"
    neighbour = client.enq("Rest", params={"file": str(file), "seconds": 1.0}, max_attempts=1)
    await_true(lambda: lines_of(file), "the neighbour runs")

    job = client.enq("Echo", params={"exits": str(gone)}, max_attempts=1)

    assert job.wait(20) == {"exits": str(gone)}
    assert neighbour.wait(20) == 1
    assert job.stat().attempts == 1
    (line,) = [line for line in worker.log.splitlines() if "with the greenlets is gone" in line]
    assert line.endswith("exit code 3 in plugin Harmful")
