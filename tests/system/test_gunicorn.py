"""`gunicorn --preload`: the master has used the client before it forks its workers, and each request gets its own result."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from system_install import parts_of
from system_rig import Rig
from waits import await_true

APP = """
import os
from givalia_core import Client

client = Client("127.0.0.1", int(os.environ["QUEUE_PORT"]))
master = os.getpid()
assert client.enq("Echo", params="master").wait(20) == "master"

def app(environ, start_response):
    said = f"{os.getpid()} {environ['QUERY_STRING']}"
    result = client.enq("Echo", params=said).wait(20)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid() == master} {said} {result}".encode()]
"""
REQUESTS = 200
AT_ONCE = 8


@pytest.fixture(scope="module")
def ready(shared_rig: Rig) -> Rig:
    """A server, a worker, and a folder with the application and gunicorn."""
    shared_rig.start_server()
    shared_rig.start_worker()
    (shared_rig.folder / "preloaded.py").write_text(APP)
    for part in parts_of(["gunicorn"]):
        (shared_rig.folder / part.name).symlink_to(part)
    return shared_rig


def ask(port: int, number: int) -> str:
    """Make a request on a connection of its own; its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    connection.request("GET", f"/?{number}")
    response = connection.getresponse()
    answer = f"{response.status} {number} {response.read().decode()}"
    connection.close()
    return answer


def workers_of(port: int) -> set[str]:
    """The processes that answer a few requests at the same time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {answer.split()[3] for answer in pool.map(partial(ask, port), range(AT_ONCE))}


@pytest.mark.parametrize("flags", [("sync",), ("gthread", "--threads", "4"), ("gevent",)], ids=lambda flags: flags[0])
def test_each_request_has_its_own_result_in_every_kind_of_worker(ready: Rig, flags: tuple[str, ...]) -> None:
    # given
    assert ready.server is not None
    gunicorn = ready.start(
        str(ready.installed.python), "-m", "gunicorn", "--preload", "--workers", 2, "--bind", "127.0.0.1:0",
        "--worker-class", *flags, "preloaded:app", QUEUE_PORT=str(ready.server.port), PYTHONPATH=str(ready.folder),
    )  # fmt: skip
    port = int(gunicorn.await_log(r"Listening at: http://127.0.0.1:(\d+)")[1])
    await_true(lambda: len(workers_of(port)) == 2, "both workers answer")

    # when
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [answer.split() for answer in pool.map(partial(ask, port), range(REQUESTS))]

    # then
    assert len(answers) == REQUESTS
    for status, number, is_master, pid, said, *result in answers:
        assert (status, is_master, number, result) == ("200", "False", said, [pid, number])
    assert gunicorn.stop() == 0
    assert "Traceback" not in gunicorn.log
    assert ready.client().enq("Echo", params="still here").wait(20) == "still here"
