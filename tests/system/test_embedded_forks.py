"""A program with a Server and a Worker forks: they go on in the parent alone, and their methods say so in the child."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
from system_install import Installed
from system_rig import Rig, lines_of
from waits import await_true

PROGRAM = """
import os, signal, sys, threading, time
kind, way, folder = sys.argv[1:]
ENDS = {"exit": 0, "killed": -9, "_exit": 0}
if kind == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent, multiprocessing
from givalia_core import Client, ConnectionLost, Server, Worker, WrongProcess
from givalia_core.settings import ServerSettings, WorkerSettings

parent = os.getpid()
server = Server(ServerSettings(port=0, worker_port=0, store=f"sqlite://{folder}/queue.db"))
server.start()
worker = Worker(WorkerSettings(worker_port=server.worker_port, log_level="error"))
worker.start()
done, is_over, wrong = 0, False, []

def produce():
    global done
    client = Client("127.0.0.1", server.client_port)
    try:
        while not is_over:
            said = f"{os.getpid()} {done}"
            module = "EchoApart" if done % 5 == 4 else "Echo"
            client.enq("Rest", params={"seconds": 0.3, "file": f"{folder}/rests"}, retain=600)
            result = client.enq(module, params=said).wait(30)
            if module == "Echo" and result != said:
                wrong.append((said, result))
            done += 1
    except ConnectionLost:
        if os.getpid() == parent:
            raise
        time.sleep(600)  # Under gevent the fork has this thread, too, and its call is not there.

def files(pid):
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if name.startswith("socket:") or name.endswith(".lock"):
            found.add(name)
    return found

def refuses():
    calls = server.start, server.info, server.drain, server.serve_forever, worker.start, worker.work_forever
    for call in (*calls, lambda: server.reload(server.settings)):
        try:
            call()
        except WrongProcess as error:
            assert (error.code, error.pid) == ("WRONG_PROCESS", parent)
        else:
            raise AssertionError(f"{call} goes on in a fork")
    assert not server.is_turning()
    server.stop()
    worker.stop()
    server.stop()

def child(end):
    assert not files("self") & files(parent), files("self") & files(parent)
    refuses()
    gevent.sleep(1.2)  # Let whatever would go on here do so; the server looks after its connections every second.
    refuses()
    with Client("127.0.0.1", server.client_port) as client:
        assert client.enq("Echo", params="child").wait(30) == "child"
    if end == "exit":
        sys.exit(0)
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)

def forked(end):
    if way == "process":
        process = multiprocessing.get_context("fork").Process(target=child, args=(end,))
        process.start()
        return process
    pid = os.fork()
    if not pid:
        try:
            child(end)
        except Exception:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return pid

producer = threading.Thread(target=produce)
producer.start()

def await_done(count):
    until = time.monotonic() + 30
    while done < count:
        assert time.monotonic() < until, f"the parent stands still at {done}"
        gevent.sleep(0.01)

def code_of(made):
    if way == "process":
        return made.exitcode
    found, status = os.waitpid(made, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None

await_done(6)  # A job in a process of its own is among them.
codes = []
children = []
for end in [*ENDS, *ENDS]:
    await_done(done + 3)
    children.append(forked(end))
for each in children:
    while (code := code_of(each)) is None:
        gevent.sleep(0.01)
    codes.append(code)
await_done(done + 10)
is_over = True
while producer.is_alive():
    gevent.sleep(0.01)
assert not wrong, wrong
assert codes == [*ENDS.values(), *ENDS.values()], codes
jobs = server.info()["jobs"]
assert jobs["Echo"]["done"] + jobs["EchoApart"]["done"] == done + len(children), (jobs, done)
worker.stop()
lines = [line.split() for line in open(f"{folder}/rests")]
assert {line[-1] for line in lines} == {str(parent)}, "a job went on in a fork"
assert sorted(line[1] for line in lines if line[0] == "start") == sorted(line[1] for line in lines if line[0] == "end")
server.stop()
"""


def run(installed: Installed, code: str, *words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    command = [str(installed.python), "-W", "ignore", "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=installed.bin)


@pytest.mark.parametrize("way", ["fork", "process"])
@pytest.mark.parametrize("kind", ["plain", "patched"])
def test_a_server_and_a_worker_go_on_in_the_parent_alone(plain: Installed, tmp_path: Path, kind: str, way: str) -> None:
    ran = run(plain, PROGRAM, kind, way, tmp_path)

    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("the server runs in process") == 6
    assert ran.stderr.count("the worker runs in process") == 6


STARTED_LATER = """
import os, sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent
from givalia_core import Server, Worker
from givalia_core.settings import ServerSettings, WorkerSettings

server = Server(ServerSettings(port=0, worker_port=0, store="memory:"))
worker = Worker(WorkerSettings())
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
server.start()
worker.settings = WorkerSettings(worker_port=server.worker_port)
worker.start()
assert worker.connected.wait(20)
assert server.info()["pid"] == os.getpid()
worker.stop()
server.stop()
"""


@pytest.mark.parametrize("kind", ["plain", "patched"])
def test_what_was_only_made_before_a_fork_starts_in_the_child(plain: Installed, kind: str) -> None:
    ran = run(plain, STARTED_LATER, kind)

    assert (ran.returncode, ran.stderr) == (0, "")


FORKED_BY_PLUGIN = """
import os, threading
import gevent
from givalia_core import Client, Server, hookimpl
from givalia_core.settings import ServerSettings

parent, calls, children = os.getpid(), [], []
reading, writing = os.pipe()

class Forking:
    @hookimpl
    def on_enq(self, job):
        os.write(writing, f"{os.getpid()} {job.key}\\n".encode())
        calls.append(job.key)
        if len(calls) % 5 == 1:
            children.append(os.fork())  # And the fork comes back as well.

server = Server(ServerSettings(port=0, worker_port=0, store="memory:"), plugins=[Forking()])
server.start()

def produce():
    with Client("127.0.0.1", server.client_port) as client:
        for number in range(30):
            client.enq("Nobody", time=600, key=str(number))

producer = threading.Thread(target=produce)
producer.start()
with gevent.Timeout(30):
    while len(calls) < 30:
        gevent.sleep(0.01)
server.stop()
producer.join()
for pid in children:
    os.waitpid(pid, 0)
os.close(writing)
said = os.read(reading, 65536).decode().split("\\n")[:-1]
assert sorted(said) == sorted(f"{parent} {number}" for number in range(30)), said
"""


def test_no_hook_is_called_in_a_fork_that_a_plugin_has_made(plain: Installed) -> None:
    ran = run(plain, FORKED_BY_PLUGIN)

    assert (ran.returncode, ran.stderr) == (0, "")


OUTLIVED = """
import os, sys, time
from gevent import monkey
monkey.patch_all()
import gevent
from givalia_core import Server, Worker
from givalia_core.settings import ServerSettings, WorkerSettings

folder, port, worker_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
server = Server(ServerSettings(port=port, worker_port=worker_port, store=f"sqlite://{folder}/queue.db"))
server.start()
worker = Worker(WorkerSettings(worker_port=server.worker_port))
worker.start()
worker.connected.wait(20)
while not os.path.exists(f"{folder}/stays"):
    gevent.sleep(0.02)
pid = os.fork()
if not pid:
    time.sleep(600)
print(pid, server.client_port, server.worker_port, flush=True)
time.sleep(600)
"""


def test_a_fork_that_outlives_its_parent_keeps_nothing_of_it(rig: Rig) -> None:
    """Neither the ports nor the lock of the store, and no process of a job."""
    # given
    server = rig.start_server()
    file = rig.store.parent / "stays"
    job = rig.client().enq("StayApart", params={"file": str(file), "seconds": 600})
    server.stop()
    program = rig.folder / "outlived.py"
    program.write_text(OUTLIVED)
    parent = rig.start(str(rig.installed.python), program, rig.store.parent, server.port, server.worker_port)
    child = rig.own_daemon(int(await_true(lambda: parent.out.partition(" ")[0], "it has forked", 40)))
    ((_, apart, _),) = lines_of(file)

    # when
    parent.kill()

    # then
    await_true(lambda: not psutil.pid_exists(int(apart)), "the process of the job ends with the parent")
    rig.start_server()
    assert rig.client().stat(id=job.id).state == "running"
    assert psutil.pid_exists(child)
