"""A running worker takes up a package that is installed, upgraded or removed beside it, and jobs that waited start."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system_install import Installed, Wheels, parts_of, run, write_package
from system_rig import Rig
from waits import await_true

CODE = """
from givalia_core import WorkModule
class Late(WorkModule):
    isolation = "{isolation}"
    def process(self):
        return "{said}"
"""
SOON_S = 3.0


class Shop:
    """An environment of its own with a server, and packages that can be put into it."""

    def __init__(self, wheels: Wheels, folder: Path) -> None:
        self.folder = folder
        self.installed = Installed(folder / "environment", wheels.plain)
        for part in parts_of(["setuptools"]):  # What packages are built with, for here it cannot be fetched.
            (self.installed.site / part.name).symlink_to(part)
        self.rig = Rig(self.installed, folder)
        self.rig.start_server()
        self.client = self.rig.client()
        self._number = 0

    def package(self, said: str, version: str = "1.0", isolation: str = "greenlet") -> Path:
        """A package with the module `Late`, as somebody would have it lie in a folder."""
        self._number += 1
        folder = self.folder / f"sources-{self._number}"
        folder.mkdir()
        package = write_package(folder, "late-jobs", CODE.format(said=said, isolation=isolation), {"Late": "Late"})
        settings = package / "pyproject.toml"
        settings.write_text(settings.read_text().replace('version = "1.2.3"', f'version = "{version}"'))
        return package

    def pip(self, *words: object) -> float:
        """Run pip for the environment; when it was done."""
        run(sys.executable, "-m", "pip", "--python", self.installed.python, *words)
        return time.monotonic()

    def install(self, *what: object) -> float:
        return self.pip("install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *what)

    def versions(self) -> list[str]:
        return [row["version"] for row in self.client.modules() if row["module"] == "Late"]


@pytest.fixture
def shop(wheels: Wheels, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(wheels, tmp_path)
    with made.rig:
        yield made


def test_a_job_that_waited_for_its_package_runs_soon_after_pip_install(shop: Shop) -> None:
    worker = shop.rig.start_worker("--watch")
    job = shop.client.enq("Late")
    assert "no worker has module Late" in job.stat().why

    installed = shop.install(shop.package("installed"))

    assert job.wait(20) == "installed"
    assert time.monotonic() - installed < SOON_S
    assert shop.versions() == ["1.0"]
    assert worker.log.count("packages have changed") == 1


def test_an_upgrade_and_a_removal_are_taken_up_too(shop: Shop) -> None:
    shop.install(shop.package("old"))
    shop.rig.start_worker("--watch")
    assert shop.client.enq("Late").wait(10) == "old"

    upgraded = shop.install("--upgrade", shop.package("new", "2.0"))
    await_true(lambda: shop.versions() == ["2.0"], "the new version is announced")
    assert time.monotonic() - upgraded < SOON_S
    assert shop.client.enq("Late").wait(10) == "new"

    removed = shop.pip("uninstall", "--quiet", "--yes", "late-jobs")
    await_true(lambda: shop.versions() == [], "it is announced no more")
    assert time.monotonic() - removed < SOON_S
    assert "no worker has module Late" in shop.client.enq("Late").stat().why


def test_a_job_that_runs_goes_on_while_packages_change(shop: Shop) -> None:
    shop.rig.start_worker("--watch")
    file = shop.folder / "rests"
    job = shop.client.enq("Rest", params={"file": str(file), "seconds": 6}, max_attempts=1)
    await_true(file.exists, "the job runs")

    shop.install(shop.package("installed"))

    assert shop.client.enq("Late").wait(20) == "installed"
    assert job.stat().state == "running"
    assert job.wait(20) == 1


def test_an_environment_that_is_away_for_a_moment_is_taken_up_again(shop: Shop) -> None:
    shop.install(shop.package("old"))
    worker = shop.rig.start_worker("--watch")
    assert shop.client.enq("Late").wait(10) == "old"
    environment = shop.folder / "environment"

    environment.rename(shop.folder / "away")
    worker.await_log("no process for the greenlets can be made", count=2)
    (shop.folder / "away").rename(environment)

    assert shop.client.enq("Late").wait(20) == "old"
    shop.install("--upgrade", shop.package("new", "2.0"))
    await_true(lambda: shop.versions() == ["2.0"], "the new version is announced")
    assert shop.client.enq("Late").wait(10) == "new"
    assert "Traceback" not in worker.log


def test_an_editable_install_and_another_folder_of_the_path_are_seen(shop: Shop) -> None:
    more = shop.folder / "more"
    more.mkdir()
    (shop.installed.site / "more.pth").write_text(f"{more}\n")
    shop.rig.start_worker("--watch")

    shop.install("--editable", shop.package("editable"))
    assert shop.client.enq("Late").wait(20) == "editable"
    shop.pip("uninstall", "--quiet", "--yes", "late-jobs")
    await_true(lambda: shop.versions() == [], "it is announced no more")

    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", more,
        shop.package("elsewhere"),
    )  # fmt: skip
    assert shop.client.enq("Late").wait(20) == "elsewhere"


def test_code_of_another_version_than_was_announced_does_not_run(shop: Shop) -> None:
    """Nobody watches, and a process that a job is to have would import what lies there now."""
    shop.install(shop.package("old", isolation="process"))
    worker = shop.rig.start_worker()
    await_true(lambda: shop.versions() == ["1.0"], "the first version is announced")
    shop.install("--upgrade", shop.package("new", "2.0", isolation="process"))

    wants_old, wants_any = shop.client.enq("Late", version="==1.0"), shop.client.enq("Late")

    assert wants_any.wait(20) == "new"
    assert shop.versions() == ["2.0"]
    status: Any = wants_old.stat()
    assert (status.state, status.attempts) == ("ready", 0)
    assert "no worker has Late ==1.0" in status.why
    worker.await_log("the package of Late has changed")


def test_without_watching_it_is_sighup_that_takes_packages_up(shop: Shop) -> None:
    worker = shop.rig.start_worker()
    job = shop.client.enq("Late")
    shop.install(shop.package("asked for"))
    status: Any = job.stat()
    assert status.state == "ready"

    worker.send(signal.SIGHUP)

    assert job.wait(20) == "asked for"
