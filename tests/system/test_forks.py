"""A client that lives through a fork: parent and child each have their own answers, and nobody hangs."""

from __future__ import annotations

import subprocess

import pytest
from system_rig import Rig

PRELOADED = """
import os, sys, threading, time
kind, port, forks, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if kind == "gevent":
    from gevent import monkey
    monkey.patch_all()
from givalia_core import Client, ConnectionLost

parent = os.getpid()
client = Client("127.0.0.1", port)
client.info()
is_over = False

def work(who, count):
    done = 0
    while done < count or (not count and not is_over):
        said = f"{os.getpid()} {who} {done}"
        assert client.enq("Echo", params=said).wait(20) == said
        done += 1

def work_in_parent(who):
    try:
        work(who, 0)
    except ConnectionLost:
        if os.getpid() == parent:
            raise
        time.sleep(600)  # Under gevent the fork has this greenlet, too, and its call is not there.

def in_background():
    begun = [threading.Thread(target=work_in_parent, args=(who,)) for who in range(threads)]
    for each in begun:
        each.start()
    return begun

background = in_background()
children = []
for number in range(forks):
    time.sleep(0.01)
    pid = os.fork()
    if not pid:
        try:
            work("child", 5)
        except BaseException as error:
            sys.stderr.write(f"child {number}: {type(error).__name__}: {error}\\n")
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
is_over = True
for each in background:
    each.join()
work("parent", 20)
sys.exit(max(codes))
"""

IN_A_LOOP = """
import asyncio, os, sys
from givalia_core import AsyncClient

client = AsyncClient("127.0.0.1", int(sys.argv[1]))

async def work(count):
    for number in range(count):
        said = f"{os.getpid()} {number}"
        job = await client.enq("Echo", params=said)
        assert await job.wait(20) == said

async def parent():
    await work(3)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            return None
        pids.append(pid)
    await work(20)
    return pids

loop = asyncio.new_event_loop()
pids = loop.run_until_complete(parent())
if pids is None:
    asyncio.run(work(5))
    os._exit(0)
loop.run_until_complete(work(20))
loop.run_until_complete(client.close())
loop.close()
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


@pytest.fixture(scope="module")
def ready(shared_rig: Rig) -> Rig:
    """A server and a worker."""
    shared_rig.start_server()
    shared_rig.start_worker()
    return shared_rig


def run(rig: Rig, code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a program with the server's port in place of PORT."""
    assert rig.server is not None
    given = [str(rig.server.port if word == "PORT" else word) for word in words]
    return subprocess.run(
        [rig.installed.python, "-W", "ignore", "-c", code, *given], capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("kind", ["threads", "gevent"])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_forks_in_the_middle_of_commands_have_their_own_answers(ready: Rig, kind: str, threads: int) -> None:
    ran = run(ready, PRELOADED, kind, "PORT", 25, threads)

    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_fork_of_an_async_client_has_its_own_connection(ready: Rig) -> None:
    ran = run(ready, IN_A_LOOP, "PORT")

    assert (ran.returncode, ran.stderr) == (0, "")
