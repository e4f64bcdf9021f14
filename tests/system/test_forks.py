"""A client across a fork: parent and child each get their own answers, and neither hangs."""

from __future__ import annotations

import subprocess

import pytest
from system_rig import Rig

IN_PROCESSES = """
import asyncio, multiprocessing, os, sys
from givalia_core import AsyncClient

client = AsyncClient("127.0.0.1", int(sys.argv[1]))

async def work(count):
    for number in range(count):
        said = f"{os.getpid()} {number}"
        assert await (await client.enq("Echo", params=said)).wait(20) == said

async def child():
    await asyncio.gather(*(work(5) for _ in range(4)))
    await client.close()

def in_child():
    asyncio.run(child())

async def parent():
    busy = [asyncio.create_task(work(30)) for _ in range(4)]
    children = []
    for _ in range(6):
        await asyncio.sleep(0.01)  # The pace of the forks.
        children.append(multiprocessing.get_context("fork").Process(target=in_child))
        children[-1].start()
    await asyncio.gather(*busy)
    for each in children:
        await asyncio.to_thread(each.join)
    await work(5)
    await client.close()
    return [each.exitcode for each in children]

codes = asyncio.run(parent())
assert codes == [0] * 6, codes
"""

WHILE_CONNECTING = """
import os, socket, sys, threading
from gevent import monkey
monkey.patch_all()
import gevent
from gevent.event import Event
from givalia_core import Client, ConnectionLost

port = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
gate, is_standing, parent, heard = Event(), Event(), os.getpid(), []

def carry(near, far, is_first):
    while data := near.recv(65536):
        if is_first:
            is_standing.set()
            gate.wait()  # The hello of the first connection stands here.
        far.sendall(data)

def accept():
    for number in range(2):
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        gevent.spawn(carry, near, far, not number)
        gevent.spawn(carry, far, near, False)

def reaches_listener(fd):
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return copy.getpeername()[1] == listener.getsockname()[1]
    except (OSError, IndexError):
        return False  # No socket, or one that is not connected, or has no port.

def ask():
    try:
        heard.append(client.info()["pid"])
    except ConnectionLost as error:
        heard.append(error)

accepting = gevent.spawn(accept)
client = Client("127.0.0.1", listener.getsockname()[1])
asking = gevent.spawn(ask)
is_standing.wait()
assert any(map(reaches_listener, range(3, 100)))
pid = os.fork()
if not pid:
    if any(map(reaches_listener, range(3, 100))):
        os._exit(2)
    with gevent.Timeout(20):
        asking.join()
    os._exit(0 if isinstance(heard[0], ConnectionLost) else 1)
while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
    gevent.sleep(0.01)
gate.set()
with gevent.Timeout(20):
    asking.join()
assert isinstance(heard[0], int), heard
sys.exit(os.waitstatus_to_exitcode(ended[1]))
"""

FORKS = 100

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
    time.sleep(0.01)  # The pace of the forks.
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


ATTACKS = """
import os, signal, sys, threading, time
from givalia_core import Client, ConnectionLost

port = int(sys.argv[2])
client = Client("127.0.0.1", port)
client.info()

def ask(who, count=3):
    for number in range(count):
        said = f"{os.getpid()} {who} {number}"
        assert client.enq("Echo", params=said).wait(20) == said

def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def a_fork_of_a_fork():
    def forked(depth):
        pid = os.fork()
        if not pid:
            ask(f"before {depth}")
            code = forked(depth - 1) if depth else 0
            ask(f"after {depth}")
            os._exit(code)
        ask(f"parent of {depth}")
        return end_of(pid)
    assert forked(3) == 0

def a_handler_of_a_signal_that_forks():
    codes = []
    def fork(number, frame):
        pid = os.fork()
        if pid:
            codes.append(end_of(pid))
            return
        try:
            ask("in the handler")
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    signal.signal(signal.SIGALRM, fork)
    while len(codes) < 20:
        signal.setitimer(signal.ITIMER_REAL, 0.0003 * (1 + len(codes)))  # Once: none within a fork's own hooks.
        ask("parent", 1)
    assert not any(codes), codes

def a_handler_that_forks_and_comes_back():
    parent = os.getpid()
    children = []
    def fork(number, frame):
        pid = os.fork()
        if pid:
            children.append(pid)
    signal.signal(signal.SIGALRM, fork)
    try:
        while len(children) < 20 and os.getpid() == parent:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 * (1 + len(children)))
            ask("parent", 1)
    except ConnectionLost:
        assert os.getpid() != parent  # What was under way is the parent's.
    signal.setitimer(signal.ITIMER_REAL, 0)
    if os.getpid() != parent:
        signal.alarm(30)
        ask("child")
        os._exit(0)
    assert not any(map(end_of, children))

def children_that_end_in_every_way():
    import atexit
    parent = os.getpid()
    atexit.register(client.close)  # A program's own clean-up runs in a fork that leaves by sys.exit.
    for end in (lambda: sys.exit(0), lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL), client.close, None):
        client.info()
        pid = os.fork()
        if not pid:
            if end is None:
                del globals()["client"]
                sys.exit(0)
            ask("child")
            end()
            sys.exit(0)
        assert end_of(pid) in (0, -9)
        ask("parent")

def a_fork_in_the_middle_of_a_large_frame():
    import socket
    listener = socket.create_server(("127.0.0.1", 0))
    gate, is_standing = threading.Event(), threading.Event()
    def carry(near, far, slowly):
        try:
            while data := near.recv(65536):
                far.sendall(data)
                if slowly and len(data) > 4096:
                    is_standing.set()
                    gate.wait()
        except OSError:
            pass
        far.close()
    def accept():
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far, True), (far, near, False)):
                threading.Thread(target=carry, args=pair, daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
    global client
    client = Client("127.0.0.1", listener.getsockname()[1])
    client.info()
    large = "x" * 200_000
    jobs = [{"module": "Echo", "params": large, "key": str(number)} for number in range(40)]
    got = []
    sending = threading.Thread(target=lambda: got.extend(client.enq_many(jobs)))
    sending.start()
    assert is_standing.wait(30)
    children = []
    for _ in range(5):
        pid = os.fork()
        if not pid:
            client.info()
            client.close()
            os._exit(0)
        children.append(pid)
    assert not any(map(end_of, children))
    gate.set()
    sending.join()
    assert [job.key for job in got] == [job["key"] for job in jobs]
    assert got[-1].wait(30) == large

globals()[sys.argv[1]]()
ask("at last")
"""


WHILE_SOMETHING_ARRIVES = """
import os, sys
from gevent import monkey
monkey.patch_all()
import gevent, greenlet
from givalia_core import Client

client = Client("127.0.0.1", int(sys.argv[1]))
waiting = gevent.spawn(client.enq("Waits", time=600).wait)
gevent.sleep(0.2)  # Nothing tells that a wait is on the wire.
hub = gevent.get_hub()
hub.loop.closing_fd(client._transport.socket._socket.fileno())  # As if something had just arrived for it.
pid = os.fork()
if pid == 0:
    def leave_to_parent(event, switch):  # As in a fork of a job: no greenlet of the parent goes on.
        while switch[1] is waiting:
            hub.switch()

    greenlet.settrace(leave_to_parent)
    gevent.sleep(0.05)  # The loop would end the process here.
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert code == 0, code
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
        [rig.installed.python, "-W", "ignore", "-c", code, *given],
        cwd=rig.folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("kind", ["threads", "gevent"])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_forks_in_the_middle_of_commands_have_their_own_answers(ready: Rig, kind: str, threads: int) -> None:
    ran = run(ready, PRELOADED, kind, "PORT", FORKS, threads)

    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_fork_of_an_async_client_has_its_own_connection(ready: Rig) -> None:
    ran = run(ready, IN_A_LOOP, "PORT")

    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_fork_while_a_greenlet_connects_leaves_that_connection_alone(ready: Rig) -> None:
    ran = run(ready, WHILE_CONNECTING, "PORT")

    assert (ran.returncode, ran.stderr) == (0, "")


def test_processes_that_an_asyncio_program_forks_have_their_own_connections(ready: Rig) -> None:
    ran = run(ready, IN_PROCESSES, "PORT")

    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_fork_in_the_moment_in_which_something_arrives_for_a_greenlet_goes_on(ready: Rig) -> None:
    ran = run(ready, WHILE_SOMETHING_ARRIVES, "PORT")

    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("module", ["AskFromFork", "AskFromProcess"])
def test_jobs_that_fork_have_their_own_answers(ready: Rig, module: str) -> None:
    assert ready.server is not None
    jobs = [ready.client().enq(module, params=ready.server.port, max_attempts=1) for _ in range(5)]

    assert [job.wait(60) for job in jobs] == [[0] * 3] * 5


@pytest.mark.parametrize(
    "attack",
    [
        "a_fork_of_a_fork",
        "a_handler_of_a_signal_that_forks",
        "a_handler_that_forks_and_comes_back",
        "children_that_end_in_every_way",
        "a_fork_in_the_middle_of_a_large_frame",
    ],
)
def test_parent_and_child_have_their_own_answers_after(ready: Rig, attack: str) -> None:
    ran = run(ready, ATTACKS, attack, "PORT")

    assert (ran.returncode, ran.stderr) == (0, "")
