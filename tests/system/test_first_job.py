"""A first job needs only a package, installed with pip from its own pyproject; broken packages beside it harm no job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from system_install import Installed, Wheels, write_package
from system_rig import Rig

FIRST = """
from givalia_core import WorkModule

class Hello(WorkModule):
    max_attempts = 2
    def process(self):
        print("hello", self.params)
        return {"said": self.params, "attempt": self.job.attempt, "key": self.job.key}

class Mail(WorkModule):
    def process(self):
        return "first"
"""
SECOND = """
from givalia_core import WorkModule

class Mail(WorkModule):
    def process(self):
        return "second"

class Bye(WorkModule):
    def process(self):
        return "bye"
"""
BROKEN = "raise SystemExit('this import ends the program')\n"
ISOLATED = """
import os
from givalia_core import WorkModule

class Apart(WorkModule):
    isolation = "process"
    def process(self):
        print("hello apart", self.params)
        return os.getpid()
"""


@pytest.fixture(scope="module")
def newcomer(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """An environment with the core and four packages, two of them good."""
    folder = tmp_path_factory.mktemp("newcomer")
    packages = [
        write_package(folder, "first-jobs", FIRST, {"Hello": "Hello", "Mail": "Mail"}),
        write_package(folder, "second-jobs", SECOND, {"Mail": "Mail", "Bye": "Bye"}),
        write_package(folder, "broken-jobs", BROKEN, {"Broken": "Broken"}),
        write_package(folder, "isolated-jobs", ISOLATED, {"Apart": "Apart"}),
    ]
    installed = Installed(folder / "environment", [*wheels.core, *wheels.of_all(packages)])
    with Rig(installed, folder) as rig:
        rig.start_server()
        rig.start_worker("-n", "newcomer")
        yield rig


def test_an_installed_module_runs_and_its_result_comes_back(newcomer: Rig) -> None:
    job = newcomer.client().enq("Hello", params={"to": "world"}, key="first")

    assert job.wait(10) == {"said": {"to": "world"}, "attempt": 1, "key": "first"}
    assert job.stat().max_attempts == 2
    assert any("hello {'to': 'world'}" in process.out for process in newcomer._processes)


def test_a_module_with_a_process_of_its_own_runs_in_one(newcomer: Rig) -> None:
    client = newcomer.client()

    pid = client.enq("Apart", params="alone").wait(10)

    worker = newcomer._processes[1]
    assert pid not in (worker.pid, *newcomer.hosts_of(worker))
    assert any("hello apart alone" in process.out for process in newcomer._processes)
    assert client.enq("Apart").wait(10) == pid


def test_good_modules_of_a_package_with_a_clash_are_served(newcomer: Rig) -> None:
    assert newcomer.client().enq("Bye").wait(10) == "bye"


@pytest.mark.parametrize("where", [(), ("--local",)], ids=["by the server", "local"])
def test_modules_shows_what_is_not_served_and_why(newcomer: Rig, where: tuple[str, ...]) -> None:
    rows = {row["module"]: row for row in newcomer.cli_json("modules", *where)}

    assert set(rows) == {"Hello", "Bye", "Mail", "Broken", "Apart"}
    assert rows["Hello"]["broken"] is None
    assert (rows["Hello"]["distribution"], rows["Hello"]["version"]) == ("first-jobs", "1.2.3")
    assert rows["Hello"]["worker"] == (None if where else "newcomer")
    assert "MODULE_CLASH" in rows["Mail"]["broken"]
    assert "first-jobs 1.2.3" in rows["Mail"]["broken"]
    assert "second-jobs 1.2.3" in rows["Mail"]["broken"]
    assert "SystemExit: this import ends the program" in rows["Broken"]["broken"]
    assert rows["Broken"]["distribution"] == "broken-jobs"
    assert (rows["Apart"]["isolation"], rows["Apart"]["broken"]) == ("process", None)


@pytest.mark.parametrize("where", [(), ("--local",)], ids=["by the server", "local"])
def test_modules_says_it_in_words_too(newcomer: Rig, where: tuple[str, ...]) -> None:
    done = newcomer.cli("modules", *where)

    assert done.returncode == 0
    line = {words[0]: " ".join(words[1:]) for words in map(str.split, done.stdout.splitlines())}
    assert line["Hello"].endswith("yes")
    assert "no: MODULE_CLASH" in line["Mail"]
    assert "no: SystemExit: this import ends the program" in line["Broken"]
    assert "process" in line["Apart"]


@pytest.mark.parametrize("module", ["Mail", "Broken"])
def test_a_job_for_what_is_not_served_waits_and_says_so(newcomer: Rig, module: str) -> None:
    client = newcomer.client()
    job = client.enq(module)

    status: Any = job.stat()

    assert status.state == "ready"
    assert f"no worker has module {module} that works: on newcomer" in status.why
    job.cancel()


def test_building_left_nothing_in_the_checkout(wheels: Wheels) -> None:
    assert wheels.all
    assert wheels.left_behind == set()
