"""The code of `docs/how-to/recipes.md` does what the page says; its snippets are files, which run here."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from docs_pages import DOCS, blocks, section
from docs_player import PROGRAMS
from docs_stage import PATIENCE_S, Stage

from givalia_core import Client

PAGE = DOCS / "how-to" / "recipes.md"

STARLETTE = '''
"""As much of Starlette as the recipe uses."""
import types


class Starlette:
    def __init__(self, routes, lifespan):
        self.routes, self.lifespan, self.state = routes, lifespan, types.SimpleNamespace()


class Route:
    def __init__(self, path, endpoint, methods):
        self.endpoint = endpoint


class JSONResponse:
    def __init__(self, content, status_code, headers=None):
        self.content, self.status_code = content, status_code
'''

ASK = """
import asyncio, sys, time, types
sys.path[:0] = ["fakes", "shop"]
import web

async def main():
    async with web.app.lifespan(web.app):
        request = types.SimpleNamespace(path_params={"cart": 7}, app=web.app)
        began = time.monotonic()
        answers = [await web.app.routes[0].endpoint(request) for _ in range(2)]
        print(*[answer.status_code for answer in answers], len({answer.content.get("id") for answer in answers}))
        assert time.monotonic() - began < 30

asyncio.run(main())
"""

ON_COMMIT = """
import sys
sys.path.insert(0, "shop")
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}})
import django
django.setup()
from django.db import transaction
import jobs
from givalia_core import NotFound

with transaction.atomic():
    jobs.enq_on_commit("Sample", time=600, key="committed")
    try:
        jobs.client.stat("committed")
        raise SystemExit("it was enqueued before the commit")
    except NotFound:
        pass
assert jobs.client.cancel("committed") == "cancelled"
try:
    with transaction.atomic():
        jobs.enq_on_commit("Sample", time=600, key="rolled-back")
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
try:
    jobs.client.stat("rolled-back")
    raise SystemExit("it was enqueued without a commit")
except NotFound:
    pass
jobs.client.close()
"""

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
"""

WORK = """
import sys
sys.path[:0] = [".", "shop"]
import work
from django.core.management import call_command
call_command("migrate", verbosity=0)
from givalia_core.testing import run
print(run(work.ExpireCarts).outcome.result)
"""


def written(stage: Stage, folder: Path) -> None:
    """Write the files of the page, with the ports of the stage."""
    for block in blocks(PAGE):
        if block.info.startswith("file="):
            path = folder / block.info.removeprefix("file=")
            path.parent.mkdir(exist_ok=True)
            path.write_text(stage.local(block.code))


def ran(stage: Stage, folder: Path, code: str, **environ: str) -> str:
    done = stage.run("-c", code, environ={**stage.environ, **environ}, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_worker_of_a_name_runs_two_at_once(stage: Stage, tmp_path: Path) -> None:
    command = next(line for line in section(PAGE, "At most two at once").splitlines() if line.startswith("$ givalia-worker"))
    worker = stage.start(PROGRAMS["givalia-worker"], shlex.split(command)[2:], stage.environ, tmp_path)
    try:
        with Client("127.0.0.1", stage.port) as client:
            jobs = [
                client.enq("Count", params={"to": 5, "pause": 0.05}, target_worker="mail-gate", key=f"gate-{number}")
                for number in range(6)
            ]
            most, deadline = 0, time.monotonic() + PATIENCE_S
            while any(job.stat().state != "done" for job in jobs):
                assert time.monotonic() < deadline
                (gate,) = (each for each in client.workers() if each["name"] == "mail-gate")
                most = max(most, gate["running"])
        assert most == 2
    finally:
        worker.stop()


def test_web_application_answers_with_the_job_or_in_time_with_503(stage: Stage, tmp_path: Path) -> None:
    written(stage, tmp_path)
    for name in ("applications", "responses", "routing"):
        path = tmp_path / "fakes" / "starlette" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STARLETTE)

    assert ran(stage, tmp_path, ASK) == "202 202 1\n"

    web = tmp_path / "shop" / "web.py"
    web.write_text(web.read_text().replace(str(stage.port), "1"))
    assert ran(stage, tmp_path, ASK) == "503 503 1\n"
    with Client("127.0.0.1", stage.port) as client:
        assert client.cancel("cart-7") == "cancelled"


def test_django_enqueues_on_commit_and_not_without(stage: Stage, tmp_path: Path) -> None:
    pytest.importorskip("django")
    written(stage, tmp_path)

    ran(stage, tmp_path, ON_COMMIT)


def test_django_works_in_a_job(stage: Stage, tmp_path: Path) -> None:
    pytest.importorskip("django")
    written(stage, tmp_path)
    (tmp_path / "shop_settings.py").write_text(SETTINGS)

    assert ran(stage, tmp_path, WORK, DJANGO_SETTINGS_MODULE="shop_settings", PYTHONPATH=str(tmp_path)) == "0\n"


def test_tunnel_forwards_the_ports_that_are_the_defaults() -> None:
    written_there = section(PAGE, "Reach a server through a tunnel")

    assert "-L 12322:127.0.0.1:12322" in written_there
    assert "-L 12323:127.0.0.1:12323" in written_there
