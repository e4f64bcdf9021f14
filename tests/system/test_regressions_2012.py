"""The errors of the server of 2012, each as a permanent test. R8 is among the lost workers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine_rig import EngineRig
from system_install import Installed
from system_rig import Rig, free_port, lines_of
from system_wire import Lines
from waits import await_true

from givalia_core import Client, JobFailed


class House:
    """A server, a worker and a client, for what needs no more."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.server = rig.start_server("--backoff", "0")
        self.worker = rig.start_worker("-n", "house")
        self.client: Client = rig.client()
        self.notes = rig.folder / "notes"

    def ran(self) -> list[str]:
        """The ids of the jobs that have run, in order."""
        return [line[0] for line in lines_of(self.notes)]

    def let_pass(self, seconds: float) -> None:
        """Wait until a job that is due after so many seconds has run: all that was due before it had its chance."""
        self.client.enq("Note", params=str(self.notes), time=seconds).wait(seconds + 10)


@pytest.fixture(scope="module")
def house(shared_rig: Rig) -> House:
    return House(shared_rig)


@pytest.fixture
def lines(house: House) -> Iterator[Lines]:
    with Lines(house.server.port) as lines:
        yield lines


# R1: the timer looked up exactly "this second".


def test_r01_a_job_whose_second_was_slept_through_runs() -> None:
    rig = EngineRig()
    worker = rig.worker(capacity=10)
    ids = [rig.enq(delay_us=delay_us)[0] for delay_us in (0, 1_000_000, 2_500_000, 4_999_999)]

    rig.clock.advance(5)  # Without a single turn.
    rig.tick()

    assert sorted(worker.ids) == sorted(ids)


def test_r01_a_delay_of_zero_runs_and_a_negative_one_is_refused(house: House, lines: Lines) -> None:
    made = lines.ask("enq", module="Note", time=0, params=str(house.notes), key="r01-zero")
    refused = lines.ask("enq", module="Note", time=-1, params=str(house.notes), key="r01-negative")

    assert made["response"] == "success"
    assert await_true(lambda: made["id"] in house.ran(), "it runs")
    assert refused["response"] == "fail"
    assert lines.ask("stat", key="r01-negative")["desc"] == {"que": False}


def test_r02_a_job_that_was_extended_and_then_cancelled_never_runs(house: House, lines: Lines) -> None:
    made, extended, cancelled = lines.ask_at_once(
        ("enq", {"module": "Note", "time": 0.3, "params": str(house.notes), "key": "r02"}),
        ("ext", {"key": "r02", "time": 0.3}),
        ("cancel", {"key": "r02"}),
    )
    assert extended["response"] == "success"
    assert cancelled == {"response": "success", "desc": "Cancel successfull."}

    house.let_pass(1.0)

    assert made["id"] not in house.ran()


def test_r03_a_key_that_is_taken_is_refused_and_the_first_can_be_cancelled(house: House, lines: Lines) -> None:
    job: dict[str, object] = {"module": "Note", "time": 0.3, "params": str(house.notes), "key": "r03"}
    first, second, cancelled = lines.ask_at_once(("enq", job), ("enq", job), ("cancel", {"key": "r03"}))

    assert second == {"response": "fail", "desc": "Key already exists."}
    assert cancelled["response"] == "success"
    before = len(house.ran())
    house.let_pass(0.5)
    assert first["id"] not in house.ran()
    assert len(house.ran()) == before + 1


# R4: the client named the code that a worker loads.

HOSTILE = [
    "os", "os.system", "subprocess", "builtins.eval", "__import__", "givalia_core.cli.demo", "system_modules",
    "system_modules.Note", "Note.__class__", "Note.process", "antigravity", "..", ".", "/etc/passwd", "../../etc/passwd",
    "file:///etc/passwd", "Note;id", "Note`id`", "$(id)", "Note\x00", "Note\n", " Note", "Note ", "NOTE", "note", "Nöte", "",
    "A" * 128, "A" * 129, "http://127.0.0.1/x", "pickle", "c__builtin__\neval", "%s%n", "{0.__class__}", "lambda: 1", "1Note",
    "-Note", "_", "__class__", "\uff2eote",
]  # fmt: skip
HOSTILE += [
    f"{start}{name}{end}"
    for name in ("os", "sys", "eval", "exec", "Note")
    for start in ("", ".", "x.", "_", "../", "a b")
    for end in (".py", ":x", "()", ".__init__", "\x1b", "?", "#", "%00", "\\", "'", '"', "|id", "&", "@", "=", "\r\n")
]

AUDITED = """
import json, sys
from givalia_core import modules
from givalia_core.hooks import Hooks
from givalia_core.protocol.messages import Dispatch
from givalia_core.worker.attempt.pipeline import Attempt, execute
names = json.loads(sys.stdin.read())
table = modules.discover()
said, seen = [], []
def run(name):
    execute(Attempt(Dispatch(bytes(16), 1, name, 1, 0), table.get(name), Hooks([]), said.append))
run("not there")  # What the standard library loads when it first formats an error.
watched = ("import", "open", "exec", "compile", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect",
           "pickle.find_class", "ctypes.dlopen", "marshal.loads", "os.listdir", "glob.glob")
is_on = True
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:200])) if is_on and event in watched else None)
for name in names:
    run(name)
is_on = False
others = [each.error for each in said if "this worker does not serve" not in each.error]
print(json.dumps([seen, [type(each).__name__ for each in said], others]))
"""


def test_r04_no_name_makes_a_worker_import_open_or_start_anything(house: House) -> None:
    """Under an audit hook, a dispatch makes a worker look the name up in a table, and nothing else."""
    assert len(set(HOSTILE)) >= 500

    done = subprocess.run(
        [str(house.rig.installed.python), "-c", AUDITED], input=json.dumps(HOSTILE), env=house.rig.environ,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    seen, said, errors = json.loads(done.stdout)
    assert seen == []
    assert said == ["FailReport"] * (len(HOSTILE) + 1)
    assert errors == []


def test_r04_a_hostile_name_is_refused_or_waits_for_ever(house: House) -> None:
    answers: list[Any] = []
    with Lines(house.server.port) as lines:
        answers += [lines.ask("enq", module=name, time=0) for name in HOSTILE]
    made = [answer for answer in answers if answer["response"] == "success"]
    assert 0 < len(made) < len(answers)

    house.let_pass(0.2)

    for answer in made:
        assert house.client.stat(id=answer["id"]).attempts == 0
        house.client.cancel(id=answer["id"])


# R5: everything was open to everybody.


def test_r05_only_two_ports_are_open_and_only_on_loopback(house: House) -> None:
    def listening(pid: int) -> set[tuple[str, int]]:
        found = psutil.Process(pid).net_connections(kind="inet")
        return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}

    assert listening(house.server.pid) == {("127.0.0.1", house.server.port), ("127.0.0.1", house.server.worker_port)}
    assert listening(house.worker.pid) == set()
    datagrams = [each for pid in (house.server.pid, house.worker.pid) for each in psutil.Process(pid).net_connections("udp")]
    assert datagrams == []


def test_r05_an_empty_address_which_would_be_every_one_is_refused(house: House) -> None:
    done = house.rig.run("givalia-server", "--host", "", "--insecure", "-p", 0, "-w", 0, "--store", "memory:")

    assert done.returncode == 78
    assert "host is a host's name or address, not '' (--host)" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2130706433", "127.example.invalid"])
def test_r05_an_address_that_others_may_reach_is_refused(house: House, host: str) -> None:
    done = house.rig.run("givalia-server", "--host", host, "-p", 0, "-w", 0, "--store", "memory:")

    assert done.returncode == 78
    assert "--insecure" in done.stderr


def test_r05_who_insists_is_reminded_in_the_log(house: House) -> None:
    """The address is loopback, written so that we cannot know: nothing is open to others while this test runs."""
    server = house.rig.start(
        "givalia-server", "--host", "2130706433", "--insecure", "-p", free_port(), "-w", free_port(), "--store", "memory:"
    )

    server.await_log("WARNING .*INSECURE: the ports on 2130706433 take commands from anybody")
    server.await_log("listening on")
    assert server.stop() == 0


# R6: one chunk of TCP was one message.


def test_r06_lines_may_come_byte_by_byte(lines: Lines) -> None:
    for byte in b'  {"action":"stat","job":{"key":"r06"}}\r\n\r\n\n {"action":"stat","job":{"key":7}}\n'.lstrip():
        lines.send(bytes([byte]))

    assert [lines.read()["desc"] for _ in range(2)] == [{"que": False}] * 2


def test_r06_a_thousand_lines_in_one_packet_are_answered_in_order(house: House, lines: Lines) -> None:
    lines.send(b"".join(b'{"action":"enq","job":{"time":600,"module":"R06","key":"r06-%d"}}\n' % n for n in range(1000)))

    answers = [lines.read() for _ in range(1000)]

    assert {answer["response"] for answer in answers} == {"success"}
    for n in (0, 499, 999):
        assert house.client.stat(f"r06-{n}").id == answers[n]["id"]


# R7: a value of the wrong type raised in the reactor.

WRONG: list[Any] = [None, True, False, -1, 1.5, 1e308, "", "text", "5", [], [1], {}, {"a": 1}, "\u202e", "x" * 300, 1 << 70]


@pytest.mark.parametrize("field", ["time", "module", "key", "target_worker", "id", "job", "action"])
def test_r07_wrong_values_in_any_field_are_refused_and_nothing_falls(house: House, lines: Lines, field: str) -> None:
    for value in WRONG:
        job = {"time": 600, "module": "R07", "params": 1}
        asked: dict[str, Any] = {"action": "ext" if field == "id" else "enq", "job": job}
        (asked if field in ("job", "action") else job)[field] = value
        lines.send(json.dumps(asked).encode() + b"\n")
        answer = lines.read()
        assert answer["response"] in ("success", "fail"), (value, answer)
        assert isinstance(answer["desc"], str)
        if field in ("job", "action", "id"):
            assert answer["response"] == "fail", (value, answer)

    assert house.client.enq("Echo", params="goes on").wait(10) == "goes on"


# R8: see test_lost_workers.


@pytest.mark.parametrize("how", ["system_exit_0", "system_exit_1", "memory", "keyboard_interrupt", "base_exception"])
def test_r09_what_no_rescue_caught_fails_the_attempt_alone(house: House, how: str) -> None:
    job = house.client.enq("End", params=how, max_attempts=1)

    with pytest.raises(JobFailed):
        job.wait(10)

    assert house.client.enq("Echo", params=how).wait(10) == how
    assert house.worker.is_alive


def test_r10_a_job_for_an_unknown_worker_says_so(house: House, lines: Lines) -> None:
    made = lines.ask("enq", module="Note", time=0, key="r10", target_worker="nobody", params=str(house.notes))

    desc = lines.ask("stat", key="r10")["desc"]

    assert desc["que"] is True
    assert "worker nobody is not connected" in desc["why"]
    assert "worker nobody is not connected" in house.rig.cli("explain", "r10").stdout
    nobody = house.rig.start_worker("-n", "nobody")
    assert await_true(lambda: made["id"] in house.ran(), "it runs once its worker is there")
    nobody.stop()


def test_r11_a_job_of_an_unknown_module_waits_and_holds_up_nobody(
    house: House, lines: Lines, release: Installed, tmp_path: Path
) -> None:
    made = lines.ask("enq", module="Sample", time=0, key="r11", params="late")
    assert "no worker has module Sample" in lines.ask("stat", key="r11")["desc"]["why"]
    assert house.client.enq("Echo", params="before it").wait(10) == "before it"

    with Rig(release, tmp_path) as other:
        other.server = house.server
        worker = other.start_worker()

        house.client.wait(made["id"], 20)

        assert "Run job sample\nlate\n" in worker.out


# R12: params went to the log as they were.

EVIL = "r12\r\nERROR forged line\x1b[2J\x1b]0;title\x07\u202e\x00\x9b31m"


@pytest.mark.parametrize("params_logged", ["", "1"])
def test_r12_nothing_in_params_or_errors_can_forge_or_colour_a_log(
    release: Installed, plain: Installed, tmp_path: Path, params_logged: str
) -> None:
    installed = release if params_logged else plain
    with Rig(installed, tmp_path) as rig:
        server = rig.start_server("--log-level", "debug")
        worker = rig.start_worker("--log-level", "debug", GIVALIA_LOGGING_PARAMS=params_logged)
        client = rig.client()
        job = client.enq("Flaky" if params_logged else "End", params={EVIL: EVIL}, key="r12", max_attempts=1)
        with pytest.raises(JobFailed):
            job.wait(10)
        client.enq("Nobody", params=EVIL, time=60).cancel()
        with Lines(server.port) as lines:
            lines.send(json.dumps({"action": EVIL, "job": {}}).encode() + b"\n")
            assert lines.read()["response"] == "fail"
        shown = rig.cli("stat", "r12").stdout
        worker.stop()
        server.stop()
        for text in (server.log, worker.log, shown):
            assert not set(text) & set("\x1b\x07\x00\x9b\u202e\r")
            assert not [line for line in text.splitlines() if line.startswith("ERROR forged line")]
        if not params_logged:
            assert "forged" not in server.log + worker.log


# R13: everything was lost with the process.


def test_r13_what_was_acknowledged_outlives_the_process(rig: Rig) -> None:
    server = rig.start_server()
    with Lines(server.port) as lines:
        made = lines.ask("enq", module="Note", time=0.5, params=str(rig.folder / "notes"), key="r13")
        lines.ask("enq", module="Note", time=0.5, params=str(rig.folder / "notes"), key="r13-off")
        lines.ask("cancel", key="r13-off")
        late = lines.ask("enq", module="Note", time=600, key="r13-late")
        lines.ask("ext", key="r13-late", time=600)
    server.kill()

    rig.start_server()
    rig.start_worker()

    client = rig.client()
    client.wait(made["id"], 10)
    assert [line[0] for line in lines_of(rig.folder / "notes")] == [made["id"]]
    assert client.stat("r13-off").state == "cancelled"
    assert client.stat("r13-late").id == late["id"]
    assert 1100 < (client.stat("r13-late").timeleft or 0) <= 1200


# R14: commands by id passed the parser and did nothing; enq returned no id.


def test_r14_every_command_works_by_id(house: House, lines: Lines) -> None:
    made = lines.ask("enq", module="Note", time=600, params=str(house.notes))
    job_id = made["id"]

    assert lines.ask("stat", id=job_id)["desc"]["que"] is True
    assert lines.ask("ext", id=job_id, time=600)["response"] == "success"
    assert lines.ask("stat", id=job_id)["desc"]["timeleft"] in (1198, 1199, 1200)
    assert lines.ask("cancel", id=job_id)["response"] == "success"
    assert lines.ask("stat", id=job_id)["desc"]["que"] is False
    assert house.client.stat(id=job_id).state == "cancelled"
