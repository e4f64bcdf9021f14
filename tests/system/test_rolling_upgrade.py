"""A fleet is upgraded while it works: old and new workers side by side, each with jobs that its version may run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from system_install import Installed, Wheels, build, write_package
from system_rig import Rig
from waits import await_true

from givalia_core.errors import BadRequest

LETTER = """
from importlib.metadata import version
from givalia_core import WorkModule

class Letter(WorkModule):
    def process(self):
        return [version("letters"), self.job.version]
"""


def environment(wheels: Wheels, folder: Path, version: str) -> Installed:
    """Return an environment in which a worker has this version of the package."""
    folder.mkdir()
    package = write_package(folder, "letters", LETTER, {"Letter": "Letter"}, version=version)
    return Installed(folder / "environment", [*wheels.core, build(package, folder / "wheel")])


@pytest.fixture(scope="module")
def fleets(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Installed]:
    """Environments with two versions of one distribution."""
    folder = tmp_path_factory.mktemp("fleets")
    return {version: environment(wheels, folder / version, version) for version in ("1.4", "2.0.1")}


@pytest.fixture
def house(fleets: dict[str, Installed], tmp_path: Path) -> Iterator[Rig]:
    """A server, and nobody who works."""
    with Rig(fleets["1.4"], tmp_path) as rig:
        rig.start_server()
        yield rig


def test_a_fleet_is_upgraded_worker_by_worker(house: Rig, fleets: dict[str, Installed]) -> None:
    # given a fleet of the old version
    old = house.start_worker("-n", "old")
    client = house.client()
    assert client.enq("Letter").wait(10) == ["1.4", None]

    # when a program wants the new one
    wanted = client.enq("Letter", version=">=2", key="wanted")
    bounded = client.enq("Letter", version=">=1.4, <2").wait(10)

    # then its job waits, says why, and holds up nobody
    assert bounded == ["1.4", "<2,>=1.4"]
    status = client.stat("wanted")
    assert (status.state, status.version) == ("ready", ">=2")
    assert status.why == "due, but no worker has Letter >=2; connected: old with 1.4"
    explained = house.cli("explain", "wanted")
    assert explained.stdout == f"ready: {status.why}\n"
    assert client.enq("Letter").wait(10) == ["1.4", None]

    # when the first new worker comes, then both work side by side
    assert house.server is not None
    new = house.start(fleets["2.0.1"].program("givalia-worker"), "-w", house.server.worker_port, "-n", "new")
    assert wanted.wait(20) == ["2.0.1", ">=2"]
    jobs = client.enq_many([{"module": "Letter", "version": ask} for ask in (">=2", "<2", "==1.*", None) for _ in range(5)])
    ran = [job.wait(20) for job in jobs]
    assert ran[:15] == [["2.0.1", ">=2"]] * 5 + [["1.4", "<2"]] * 5 + [["1.4", "==1.*"]] * 5
    assert {version for version, _ in ran[15:]} <= {"1.4", "2.0.1"}
    assert {row["worker"]: row["version"] for row in client.modules()} == {"old": "1.4", "new": "2.0.1"}
    assert "Letter 2.0.1" in house.cli("workers").stdout

    # when the last old worker goes, then what asks for the old version waits for one
    assert old.stop() == 0
    late = client.enq("Letter", version="<2")
    await_true(lambda: "connected: new with 2.0.1" in late.stat().why, "the explanation")
    assert client.enq("Letter").wait(10) == ["2.0.1", None]
    house.start_worker("-n", "old-again")
    assert late.wait(20) == ["1.4", "<2"]
    assert new.is_alive


def test_the_wanted_version_survives_the_server(house: Rig, fleets: dict[str, Installed]) -> None:
    made = house.cli_json("enq", "Letter", "--version", ">=2", "--key", "k")
    assert house.server is not None
    house.server.kill()
    server = house.start_server()

    house.start_worker("-n", "old")
    new = house.start(fleets["2.0.1"].program("givalia-worker"), "-w", server.worker_port, "-n", "new")
    new.await_log("connected to")

    done = await_true(lambda: (status := house.cli_json("stat", "k"))["state"] == "done" and status, "the job")
    assert (done["id"], done["worker"], done["version"]) == (made["id"], "new", ">=2")


def test_what_is_no_specifier_is_refused_by_name(house: Rig) -> None:
    with pytest.raises(BadRequest, match=r"version is .*, not '2\.0'"):
        house.client().enq("Letter", version="2.0")

    refused = house.cli("enq", "Letter", "--version", "2.0")
    assert refused.returncode == 64
    assert "version" in refused.stderr
