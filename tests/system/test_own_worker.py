"""A `Worker` within a user's own program: patched or not, it serves both isolations, and its plugins may be slow."""

from __future__ import annotations

import json
import subprocess

import pytest
from system_install import Installed
from system_rig import Rig

PROGRAM = """
import json, sys, time
if sys.argv[2] == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent
from givalia_core import Client, Worker, hookimpl
from givalia_core.settings import WorkerSettings

class Slow:
    told = []
    @hookimpl
    def before_run(self, job):
        self.told.append(["before", job.module])
    @hookimpl
    def after_run(self, job, outcome):
        gevent.sleep(2.0 if job.module == "Echo" else 0)
        self.told.append(["after", job.module, str(outcome.kind)])

settings = WorkerSettings(worker_port=int(sys.argv[1]), plugins="", stop_grace=0.2)
worker = Worker(settings, plugins=[Slow()])
worker.start()
worker.connected.wait(10)
pool = gevent.get_hub().threadpool

def ask():
    with Client("127.0.0.1", int(sys.argv[3])) as client:
        pid, said = client.enq("EchoApart", params="apart").wait(20)
        slow = client.enq("Echo", params="slow", timeout=1, max_attempts=1)
        return [pid, said, slow.wait(20), str(slow.stat().state)]

answer = pool.apply(ask)
worker.stop()
print(json.dumps([answer, Slow.told]))
"""


@pytest.mark.parametrize("how", ["patched", "plain"])
def test_a_worker_in_a_program_serves_both_isolations_and_waits_for_its_plugins(rig: Rig, plain: Installed, how: str) -> None:
    server = rig.start_server()
    script = rig.folder / "program.py"
    script.write_text(PROGRAM)

    done = subprocess.run(
        [plain.python, script, str(server.worker_port), how, str(server.port)],
        env=rig.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    (pid, *answer), told = json.loads(done.stdout)
    assert isinstance(pid, int)
    assert answer == ["apart", "slow", "done"]
    assert told == [
        ["before", "EchoApart"], ["after", "EchoApart", "succeeded"], ["before", "Echo"], ["after", "Echo", "succeeded"],
    ]  # fmt: skip
    assert "Traceback" not in done.stderr
