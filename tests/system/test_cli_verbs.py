"""The command line: every verb for people and for programs, its exit codes, and the sources of its settings."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, run
from typing import Any

import pytest
from system_install import Installed
from system_rig import Rig, Running, free_port
from waits import await_true

from givalia_core import __version__

VERBS = (
    "enq", "stat", "explain", "cancel", "ext", "requeue", "resume", "list", "modules", "workers", "clients", "info", "plugins",
    "store", "backup", "completion", "demo",
)  # fmt: skip


@pytest.fixture(scope="module")
def house(release: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The whole release, a server and a worker."""
    with Rig(release, tmp_path_factory.mktemp("cli")) as rig:
        rig.start_server("--backoff", "0")
        rig.start_worker("-n", "cli-worker")
        yield rig


@pytest.fixture(scope="module", autouse=True)
def demo(house: Rig) -> Running:
    """The demo takes its time, so it plays while the other tests run; the last one looks at it."""
    return house.start("givalia", "demo")


def _ok(done: CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_from_enq_to_its_end(house: Rig) -> None:
    made = house.cli_json("enq", "Sample", "--time", 600, "--params", '"parameter sample"', "--key", "cart-7")
    assert set(made) == {"id", "key", "due", "durability"}
    assert (made["key"], made["durability"]) == ("cart-7", "fsync")
    due = datetime.fromisoformat(made["due"])
    assert timedelta(seconds=500) < due - datetime.now(UTC) < timedelta(seconds=600)

    status = house.cli_json("stat", "cart-7")
    assert (status["id"], status["state"], status["module"]) == (made["id"], "waiting", "Sample")
    assert 400 < status["timeleft"] <= 600
    assert house.cli_json("stat", "--id", made["id"])["key"] == "cart-7"
    assert house.cli_json("explain", "cart-7")["why"].startswith("not due for")

    later = datetime.fromisoformat(house.cli_json("ext", "cart-7", "--time", 30)["due"])
    assert abs(later - due - timedelta(seconds=30)) < timedelta(milliseconds=50)
    sooner = datetime.fromisoformat(house.cli_json("ext", "cart-7", "--at", "2020-01-01T00:00:00+00:00")["due"])
    assert sooner < due
    assert await_true(lambda: house.cli_json("stat", "cart-7")["state"] == "done", "the end")


def test_lengths_and_instants_are_given_as_people_write_them(house: Rig) -> None:
    made = house.cli_json("enq", "Sample", "--time", "1h30m", "--key", "written", "--timeout", "10m", "--retain", "2d")
    left = datetime.fromisoformat(made["due"]) - datetime.now(UTC)
    assert timedelta(minutes=89) < left <= timedelta(minutes=90)

    sooner = datetime.fromisoformat(house.cli_json("ext", "written", "--time", "-10m")["due"])
    in_berlin = house.cli_json("ext", "written", "--at", "2030-07-01T08:00", "--tz", "Europe/Berlin")

    assert abs(sooner - datetime.fromisoformat(made["due"]) + timedelta(minutes=10)) < timedelta(milliseconds=50)
    assert in_berlin["due"] == "2030-07-01T06:00:00+00:00"
    assert datetime.fromisoformat(house.cli_json("ext", made["id"], "--now")["due"]) < sooner
    assert await_true(lambda: house.cli_json("stat", "written")["state"] == "done", "the end")
    assert house.cli_json("stat", made["id"].upper())["key"] == "written"


def test_an_instant_is_shown_to_a_terminal_in_words(house: Rig) -> None:
    terminal, its_end = pty.openpty()
    command = [house.installed.program("givalia"), "-p", str(house.server.port), "enq", "Sample", "--time", "2d"]  # type: ignore[union-attr]
    run(command, env={**house.environ, "TZ": "Europe/Berlin"}, stdin=DEVNULL, stdout=its_end, timeout=30, check=True)
    os.close(its_end)

    shown = os.read(terminal, 1000).decode()

    assert re.search(r"due in 48 h, \w{3} \d\d:\d\d CES?T", shown)


def test_enq_waits_for_the_result_if_asked(house: Rig) -> None:
    done = house.cli("enq", "Flaky", "--params", '{"fail_times": 0}', "--wait")

    assert json.loads(_ok(done)) == {"attempts": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_without_a_traceback_and_leaves_the_job_alone(house: Rig, number: signal.Signals) -> None:
    port = house.server.port  # type: ignore[union-attr]
    command = ("givalia", "-p", port, "enq", "Sample", "--time", 600, "--key", "waited-for", "--wait")
    waiting = house.start(*command, *(["--json"] if number == signal.SIGTERM else []))
    waiting.await_log("after 10 s: waiting: not due")  # Now it waits.

    waiting.send(number)

    assert waiting.wait() == -number
    job = house.cli_json("stat", "waited-for")["id"]
    _, last, why = waiting.log.splitlines()
    assert last == f"givalia: not waited for any longer: job {job}, key waited-for, which goes on"
    assert why.startswith("givalia: waiting: not due")
    if number == signal.SIGTERM:
        told = json.loads(waiting.out)
        assert (told["id"], told["key"], told["state"]) == (job, "waited-for", "waiting")
    else:
        assert waiting.out == ""
    assert house.cli_json("cancel", "waited-for") == {"answer": "cancelled"}


def test_params_are_read_from_a_file_and_from_standard_input(house: Rig, tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text('{"fail_times": 0}')

    from_file = house.cli("enq", "Flaky", "--params", f"@{tmp_path / 'params.json'}", "--wait")
    code, output, _ = _piped(house, b'{"fail_times": 0}', "enq", "Flaky", "--params", "-", "--wait")

    assert json.loads(_ok(from_file)) == {"attempts": 1}
    assert (code, output) == (0, ['{"attempts": 1}'])


def test_json_is_asked_for_before_or_after_the_verb(house: Rig) -> None:
    assert json.loads(_ok(house.cli("--json", "plugins"))) == json.loads(_ok(house.cli("plugins", "--json")))


@pytest.mark.parametrize("program", ["givalia", "givalia-server", "givalia-worker"])
def test_every_program_tells_its_version(house: Rig, program: str) -> None:
    assert _ok(house.run(program, "--version")) == f"{program} {__version__}\n"


@pytest.mark.parametrize("program", ["givalia", "givalia-server", "givalia-worker"])
def test_a_settings_file_that_is_a_folder_is_refused_in_a_line(house: Rig, program: str, tmp_path: Path) -> None:
    words = ("info",) if program == "givalia" else ()

    done = house.run(program, "--config", tmp_path, *words)

    assert done.returncode == 78
    assert done.stderr.startswith(f"{program}: SETTINGS_INVALID: ")
    assert str(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_that_is_no_text_is_refused_in_a_line(house: Rig) -> None:
    command = [house.installed.program("givalia"), "-p", str(house.server.port), "stat", b"\xff\x1b"]  # type: ignore[union-attr]
    done = run(command, env=house.environ, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 64
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()


def test_a_terminal_shows_how_far_the_job_is_and_standard_output_only_the_result(house: Rig) -> None:
    terminal, its_end = pty.openpty()
    words = ["enq", "Count", "--params", '{"to": 5, "pause": 0.1}', "--wait"]
    command = [house.installed.program("givalia"), "-p", str(house.server.port), *words]  # type: ignore[union-attr]
    done = run(command, env=house.environ, stdin=DEVNULL, stdout=PIPE, stderr=its_end, timeout=30, check=True)
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # How a terminal says that nobody has it open any more.
        while more := os.read(terminal, 65_536):
            shown += more
    os.close(terminal)

    assert json.loads(done.stdout) == {"counted": 5}
    assert b"%  counted " in shown
    assert shown.endswith(b"\r\x1b[K")


def test_a_job_that_fails_fails_the_command_that_waits(house: Rig) -> None:
    done = house.cli("enq", "Flaky", "--params", '{"fail_times": 9}', "--max-attempts", 1, "--wait")

    assert (done.returncode, done.stdout) == (1, "")
    assert "JOB_FAILED" in done.stderr
    assert "failing on purpose" in done.stderr


def test_waiting_in_vain_says_try_again(house: Rig) -> None:
    done = house.cli("enq", "Sample", "--time", 60, "--wait-timeout", 0.2)

    assert (done.returncode, done.stdout) == (75, "")
    assert "WAIT_TIMEOUT" in done.stderr


def test_cancel_then_requeue(house: Rig) -> None:
    made = house.cli_json("enq", "Sample", "--time", 60, "--key", "call-off")

    assert house.cli_json("cancel", "call-off") == {"answer": "cancelled"}
    assert _ok(house.cli("cancel", "call-off")) == "cancelled\n"
    assert house.cli_json("stat", "call-off")["state"] == "cancelled"
    again = house.cli_json("requeue", "call-off", "--time", 60)
    assert again["id"] == made["id"]
    assert house.cli_json("stat", "call-off")["state"] == "waiting"


def _piped(house: Rig, said: bytes, *words: str) -> tuple[int, list[str], str]:
    """A verb with something on standard input: its exit code, the lines of its output, and its messages."""
    command = [house.installed.program("givalia"), "-p", str(house.server.port), *words]  # type: ignore[union-attr]
    done = run(command, env=house.environ, input=said, capture_output=True, timeout=30, check=False)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


def test_several_jobs_are_moved_and_called_off_by_one_command(house: Rig) -> None:
    made = {key: house.cli_json("enq", "Sample", "--time", 600, "--key", key) for key in ("one", "the other")}

    moved = [json.loads(line) for line in _ok(house.cli("ext", *made, "--time", 30, "--json")).splitlines()]
    assert [each["key"] for each in moved] == list(made)
    assert all(each["due"] > made[each["key"]]["due"] for each in moved)
    assert _ok(house.cli("cancel", *made)) == "one  cancelled\nthe other  cancelled\n"
    ids = [each["id"] for each in made.values()]
    again = _ok(house.cli("cancel", "--id", ids[0], "--id", ids[1], "--json")).splitlines()
    assert [json.loads(line) for line in again] == [{"id": job, "answer": "cancelled"} for job in ids]


def test_keys_and_ids_are_read_from_standard_input(house: Rig) -> None:
    jobs = house.client().enq_many([{"module": "Sample", "time": 600, "key": f"{n}-read"} for n in range(1_500)])

    code, moved, _ = _piped(house, b"0-read\r\n\n1-read", "ext", "-", "--time", "30")
    assert (code, [line.split("  ")[0] for line in moved]) == (0, ["0-read", "1-read"])
    code, cancelled, _ = _piped(house, "".join(f"{job.key}\n" for job in jobs).encode(), "cancel", "-")
    assert (code, cancelled) == (0, [f"{job.key}  cancelled" for job in jobs])
    code, cancelled, _ = _piped(house, f"{jobs[0].id}\n".encode(), "cancel", "--id", "-")
    assert (code, cancelled) == (0, [f"{jobs[0].id}  cancelled"])
    assert _piped(house, b"", "cancel", "-") == (0, [], "")


def test_of_several_jobs_each_that_is_refused_is_named_and_the_exit_code_tells(house: Rig) -> None:
    house.client().enq_many([{"module": "Sample", "time": 600, "key": key} for key in ("there", "there too")])
    house.cli_json("enq", "Count", "--params", '{"to": 1000, "pause": 0.02}', "--key", "started")
    await_true(lambda: house.cli_json("stat", "started")["progress"], "its progress")

    unknown = house.cli("cancel", "nobody", "there", "--json")
    mixed = house.cli("cancel", "nobody", "there too", "started")
    house.cli_json("cancel", "started", "--running")

    assert unknown.returncode == 66
    assert [json.loads(line) for line in unknown.stdout.splitlines()] == [
        {"key": "nobody", "error": "NOT_FOUND"}, {"key": "there", "answer": "cancelled"},
    ]  # fmt: skip
    assert unknown.stderr == "givalia: NOT_FOUND: nobody: no job has the key nobody\n"
    assert (mixed.returncode, mixed.stdout) == (69, "there too  cancelled\n")
    assert "givalia: WRONG_STATE: started: the job is running\n" in mixed.stderr


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"taken\nx" + b"x" * 100_000, "line 2"),
        (b"taken\n\xff\n", "line 2"),
        (b"taken\n" + b"x" * 300, "key is text of 1 to 255 bytes"),
    ],
)
def test_when_a_line_of_standard_input_names_no_job_nothing_is_asked(house: Rig, said: bytes, words: str) -> None:
    house.client().enq("Sample", time=600, key="taken", if_exists="keep")
    due = house.client().stat("taken").due

    code, output, messages = _piped(house, said, "ext", "-", "--time", "30")

    assert (code, output) == (64, [])
    assert "BAD_REQUEST" in messages
    assert words in messages
    assert abs((house.client().stat("taken").due - due).total_seconds()) < 1


def test_requeue_of_all_dead_jobs_of_a_module(house: Rig) -> None:
    ids = set()
    for _ in range(3):
        client = house.client()
        job = client.enq("Flaky", params={"fail_times": 1}, max_attempts=1)
        await_true(lambda job=job: job.stat().state == "dead", "its death")
        ids.add(job.id)

    dry = house.cli("requeue", "--dead", "--module", "Flaky", "--dry-run")
    done = json.loads(_ok(house.cli("requeue", "--dead", "--module", "Flaky", "--time", 300, "--json")))

    assert _ok(dry) == f"would be: {done['counts']['requeued']} requeued\n"
    assert {house.client().stat(id=each).state for each in ids} == {"waiting"}


def test_what_a_filter_admits_is_moved_and_called_off(house: Rig) -> None:
    for number in range(3):
        house.cli_json("enq", "Sample", "--time", 600, "--key", f"import-{number}")

    moved = _ok(house.cli("ext", "--key-prefix", "import-", "--time", 60))
    dues = [json.loads(line)["due"] for line in _ok(house.cli("list", "--key-prefix", "import-", "--json")).splitlines()]
    called_off = house.cli_json("cancel", "--key-prefix", "import-")

    assert moved == "3 moved\n"
    assert len(dues) == 3
    assert called_off == {"counts": {"cancelled": 3}, "dry_run": False, "cursor": None}


def test_running_jobs_are_stopped_on_demand(house: Rig) -> None:
    house.cli_json("enq", "Count", "--params", '{"to": 1000, "pause": 0.02}', "--key", "slow")
    await_true(lambda: house.cli_json("stat", "slow")["progress"], "its progress")

    refused = house.cli("cancel", "slow")
    assert refused.returncode == 69
    assert "WRONG_STATE" in refused.stderr
    assert "running" in refused.stderr
    assert house.cli_json("cancel", "slow", "--running") == {"answer": "stop_requested"}
    assert await_true(lambda: house.cli_json("stat", "slow")["state"] == "cancelled", "its end")


def test_list_filters_and_ends_where_asked(house: Rig) -> None:
    client = house.client()
    client.enq_many([{"module": "Listed", "time": 600} for _ in range(5)])

    done = house.cli("list", "--module", "Listed", "--state", "waiting", "--limit", 3, "--json")

    shown = [json.loads(line) for line in _ok(done).splitlines()]
    assert [each["module"] for each in shown] == ["Listed"] * 3
    assert "the first 3 only" in done.stderr
    assert len(_ok(house.cli("list", "--module", "Listed")).splitlines()) == 6
    assert _ok(house.cli("list", "--module", "Listed", "--state", "done", "--json")) == ""


def test_what_there_is(house: Rig) -> None:
    info = house.cli_json("info")
    assert info["pid"] == house.server.pid  # type: ignore[union-attr]
    assert info["durability"] == "fsync"
    (worker,) = house.cli_json("workers")
    assert worker["name"] == "cli-worker"
    assert {"Sample", "Flaky", "Count", "Webhook"} <= set(worker["modules"])
    modules = {row["module"]: row for row in house.cli_json("modules")}
    assert modules["Sample"]["distribution"] == "givalia-example-modules"
    plugins = {row["name"]: row for row in house.cli_json("plugins")}
    assert set(plugins) == {"logging", "prometheus"}
    assert {row["error"] for row in plugins.values()} == {None}


@pytest.mark.parametrize("words", [("info",), ("workers",), ("modules",), ("plugins",), ("list",)])
def test_what_there_is_in_words(house: Rig, words: tuple[str, ...]) -> None:
    assert _ok(house.cli(*words)).strip()


def test_store_verbs_need_no_server(house: Rig, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store/queue.db"
    assert house.run("givalia", "store", "check", "--store", url).returncode == 66
    with Rig(house.installed, tmp_path) as rig:
        server = rig.start_server()
        rig.client().enq("Sample", time=600)
        server.stop()

    info = json.loads(_ok(house.run("givalia", "store", "info", "--store", url, "--json")))
    assert list(info["jobs"].values()) == [1]
    for_people = _ok(house.run("givalia", "store", "info", "--store", url))
    assert re.search(r"^  log size +[\d.]+ KiB$", for_people, re.MULTILINE)
    assert re.search(r"^jobs of module +waiting.*\nSample +1 ", for_people, re.MULTILINE)
    assert json.loads(_ok(house.run("givalia", "store", "check", "--store", url, "--json"))) == {"wrong": []}
    assert _ok(house.run("givalia", "store", "check", "--store", url)) == "the store is sound\n"


CODES: dict[str, tuple[tuple[object, ...], int, str]] = {
    "stat of nothing": (("stat", "nobody"), 66, "NOT_FOUND"),
    "explain of nothing": (("explain", "nobody"), 66, "NOT_FOUND"),
    "cancel of nothing": (("cancel", "nobody"), 66, "NOT_FOUND"),
    "ext of nothing": (("ext", "nobody", "--time", 1), 66, "NOT_FOUND"),
    "requeue of nothing": (("requeue", "nobody"), 66, "NOT_FOUND"),
    "stat of an unknown id": (("stat", "--id", uuid.uuid4()), 66, "NOT_FOUND"),
    "a key that is taken": (("enq", "Sample", "--time", 60, "--key", "taken"), 73, "DUPLICATE_KEY"),
    "no verb": ((), 64, "givalia: BAD_REQUEST: the following arguments are required: VERB; see givalia -h\n"),
    "an unknown verb": (("dance",), 64, "invalid choice: 'dance'"),
    "an unknown flag": (("info", "--loudly"), 64, "unrecognized arguments: --loudly; see givalia info -h\n"),
    "no module": (("enq",), 64, "givalia: BAD_REQUEST: the following arguments are required: module; see givalia enq -h\n"),
    "a number that is none": (("enq", "Sample", "--priority", "high"), 64, "priority is -9 to 9, not 'high'"),
    "half a number": (("enq", "Sample", "--max-attempts", "2.5"), 64, "max_attempts is 1 to 100, not '2.5'"),
    "a limit that is no number": (("list", "--limit", "x"), 64, "limit is a whole number, 0 or more, not 'x'"),
    "a negative limit": (("list", "--limit", "-1"), 64, "limit is a whole number, 0 or more, not -1"),
    "a zone of no instant": (("enq", "Sample", "--tz", "Europe/Berlin"), 64, "no instant is given"),
    "a taken key without a key": (("enq", "Sample", "--if-exists", "keep"), 64, "no --key is given"),
    "a text that is no text": (("list", "--error", "\udcff"), 64, "error is text of one character or more"),
    "two states": (("requeue", "--dead", "--cancelled"), 64, "--cancelled: there is a state already; give one"),
    "two modules": (("cancel", "--module", "A", "--module", "B"), 64, "--module: there is a module already; give one"),
    "a zone behind a date": (("enq", "Sample", "--at", "2031-03-04+01:00"), 64, "ISO date and time, not '2031-03-04+01:00'"),
    "a date": (("enq", "Sample", "--at", "2031-03-04"), 64, "write 2031-03-04T00:00+01:00, or 2031-03-04T00:00Z for UTC"),
    "a year that UTC lacks": (("enq", "Sample", "--at", "0001-01-01T00:00", "--tz", "Asia/Tokyo"), 64, "years 1 to 9999"),
    "params that are empty": (("enq", "Sample", "--params", ""), 64, "--params is empty"),
    "a time that is no number": (("enq", "Sample", "--time", "soon"), 64, "10m, 1h30m, 2d, not 'soon'"),
    "a negative time": (("enq", "Sample", "--time", "-1"), 64, "BAD_REQUEST"),
    "no number as time": (("enq", "Sample", "--time", "nan"), 64, "BAD_REQUEST"),
    "an infinite time": (("enq", "Sample", "--time", "inf"), 64, "BAD_REQUEST"),
    "a time beyond ten years": (("enq", "Sample", "--time", "1e9"), 64, "BAD_REQUEST"),
    "an at beyond ten years": (("enq", "Sample", "--at", "1e11"), 64, "BAD_REQUEST"),
    "an at that is no instant": (("enq", "Sample", "--at", "soon"), 64, "ISO date and time, not 'soon'"),
    "an at without a zone": (("enq", "Sample", "--at", "2030-01-01T00:00:00"), 64, "or give --tz"),
    "an unknown zone": (("enq", "Sample", "--at", "2030-01-01T00:00:00", "--tz", "Berlin"), 64, "no time zone 'Berlin'"),
    "a priority beyond": (("enq", "Sample", "--priority", 10), 64, "priority is -9 to 9, not 10"),
    "a timeout beyond": (("enq", "Sample", "--timeout", "2d"), 64, "timeout is 1 s to 24 h, not 48 h"),
    "ext to two dues": (("ext", "taken", "--now", "--time", "5m"), 64, "one of --time, --at and --now"),
    "no patience": (("--patience", "0", "info"), 64, "patience is more than 0, not 0: "),
    "negative patience": (("--patience", "-1", "info"), 64, "patience is more than 0, not -1: "),
    "a negative wait": (("enq", "Sample", "--wait-timeout", "-1"), 64, "wait-timeout is 0 or more, not '-1'"),
    "a patience that is none": (("--patience", "long", "info"), 64, "patience is seconds, or a length"),
    "params that are no JSON": (("enq", "Sample", "--params", "text"), 64, "BAD_REQUEST"),
    "a module that cannot be": (("enq", "os;system"), 64, "BAD_REQUEST"),
    "an id that is none": (("stat", "--id", "7"), 64, "BAD_REQUEST"),
    "neither key nor id": (("stat",), 64, "BAD_REQUEST"),
    "key and id": (("stat", "taken", "--id", uuid.uuid4()), 64, "BAD_REQUEST"),
    "ext without a time": (("ext", "taken"), 64, "BAD_REQUEST"),
    "neither key nor id to cancel": (("cancel",), 64, "BAD_REQUEST"),
    "a key and a filter": (("cancel", "taken", "--module", "Sample"), 64, "BAD_REQUEST"),
    "all and a filter": (("cancel", "--all", "--module", "Sample"), 64, "BAD_REQUEST"),
    "an empty filter": (("cancel", "--key-prefix", ""), 64, "BAD_REQUEST"),
    "a dry run of one job": (("cancel", "taken", "--dry-run"), 64, "BAD_REQUEST"),
    "a cursor of nothing": (("cancel", "--module", "Sample", "--cursor", "x"), 64, "BAD_REQUEST"),
    "a state that no job to call off has": (("cancel", "--state", "dead"), 64, "BAD_REQUEST"),
    "keys and an id": (("cancel", "taken", "other", "--id", uuid.uuid4()), 64, "BAD_REQUEST"),
    "several without a time": (("ext", "taken", "other"), 64, "BAD_REQUEST"),
    "ext to NaN": (("ext", "taken", "--time", "nan"), 64, "BAD_REQUEST"),
    "an empty key": (("enq", "Sample", "--key", ""), 64, "BAD_REQUEST"),
    "a control character as key": (("enq", "Sample", "--key", "a\x1bb"), 64, "BAD_REQUEST"),
    "params too large": (("enq", "Sample", "--params", '"' + "x" * 100_000 + '"', "--priority", 99), 64, "BAD_REQUEST"),
}


@pytest.fixture(scope="module")
def codes(house: Rig) -> dict[str, CompletedProcess[str]]:
    """All of those commands, a few at a time."""
    house.client().enq("Sample", time=600, key="taken", if_exists="keep")
    with ThreadPoolExecutor(4) as pool:
        done = pool.map(lambda case: house.cli(*case[0]), CODES.values())
        return dict(zip(CODES, done, strict=True))


@pytest.mark.parametrize("case", CODES)
def test_what_goes_wrong_has_its_exit_code_and_says_so_on_standard_error(
    codes: dict[str, CompletedProcess[str]], case: str
) -> None:
    _, code, words = CODES[case]

    assert (codes[case].returncode, codes[case].stdout) == (code, "")
    assert words in codes[case].stderr
    assert "Traceback" not in codes[case].stderr


def test_two_hyphens_are_a_text_as_any_other(house: Rig) -> None:
    for key in ("--7", "plain"):
        house.client().enq("Sample", time=600, key=key, if_exists="keep")

    listed = _ok(house.cli("list", "--key-prefix=--", "--json", "--limit", "9" * 30))

    assert [json.loads(line)["key"] for line in listed.splitlines()] == ["--7"]
    assert _ok(house.cli("cancel", "--module", "Sample", "--key-prefix=--")) == "1 cancelled\n"


def test_a_job_that_a_listing_names_again_is_acted_on_once(house: Rig) -> None:
    job = house.client().enq("Sample", time=600)
    names = [job.id, *(str(uuid.uuid4()) for _ in range(10_000)), job.id]
    command = [house.installed.program("givalia"), "-p", str(house.server.port)]  # type: ignore[union-attr]

    moved = run(
        [*command, "ext", "--id", "-", "--time", "60"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert moved.stdout.count(job.id) == 1
    assert moved.stderr.endswith("givalia: 10,000 NOT_FOUND, 1 OK\n")


def test_no_server_is_unavailable(house: Rig) -> None:
    done = house.run("givalia", "-p", free_port(), "--patience", 0.3, "info")

    assert done.returncode == 69
    assert "CONNECTION_LOST" in done.stderr


@pytest.mark.parametrize(
    "text",
    ["[server\n", "[srever]\nport = 1\n", "[server]\nprot = 1\n", '[server]\nport = "x"\n', "[server]\nlease = 1\n", None],
)
@pytest.mark.parametrize("program", ["givalia-server"])
def test_a_bad_settings_file_starts_nothing(house: Rig, program: str, text: str | None, tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    if text is not None:
        config.write_text(text)

    done = house.run(program, "--config", config, "--store", "memory:", "-w", 0)

    assert done.returncode == 78
    assert "SETTINGS_INVALID" in done.stderr
    assert str(config) in done.stderr


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (("--lease", "1"), {}, "--lease"),
        (("-p", "70000"), {}, "--port"),
        (("--log-level", "loud"), {}, "--log-level"),
        ((), {"GIVALIA_LEASE": "nan"}, "lease is 5 s to 24 h (seconds, or a length such as 10m, 1h30m, 2d), not 'nan'"),
        (("--connections-max", "0"), {}, "connections_max is 1 to 100,000, not '0' (--connections-max)"),
        (("--host", "0.0.0.0"), {}, "--insecure"),
        (("--store", "mysql://db/q"), {}, "mysql"),
    ],
)
def test_a_setting_that_cannot_be_used_starts_nothing(
    house: Rig, flags: tuple[str, ...], environ: dict[str, str], words: str
) -> None:
    done = house.run("givalia-server", "-w", 0, *flags, **environ)

    assert done.returncode == 78
    assert words in done.stderr


def test_what_kubernetes_sets_for_a_service_is_ignored_with_one_line(house: Rig, tmp_path: Path) -> None:
    environ = {"GIVALIA_WORKER_PORT": "tcp://10.43.7.1:12323"}
    with Rig(house.installed, tmp_path) as rig:
        server = rig.start(house.installed.program("givalia-server"), "--store", "memory:", "-p", 0, **environ)
        server.await_log("GIVALIA_WORKER_PORT=tcp://10.43.7.1:12323 is ignored")

        done = rig.run("givalia", "plugins", GIVALIA_PORT="tcp://10.43.7.1:12322")

    assert done.returncode == 0
    assert done.stderr.startswith("givalia: GIVALIA_PORT=tcp://10.43.7.1:12322 is ignored: Kubernetes sets it for a Service")


def test_flag_goes_before_environment_before_file_before_default(house: Rig, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[server]\nretain = 400\nbackoff = 4\nmax_attempts = 4\n")
    environ = {"GIVALIA_CONFIG": str(config), "GIVALIA_RETAIN": "300", "GIVALIA_BACKOFF": "3"}
    with Rig(house.installed, tmp_path) as rig:
        rig.start_server("--retain", 200, **environ)

        defaults: dict[str, Any] = rig.client().info()["defaults"]

    assert defaults["retain_us"] == 200_000_000  # The flag.
    assert defaults["backoff_us"][0] == 3_000_000  # The environment.
    assert defaults["max_attempts"] == 4  # The file.
    assert defaults["lease_us"] == 30_000_000  # The default.


def test_the_client_and_the_worker_read_their_settings_too(house: Rig, tmp_path: Path) -> None:
    server = house.server
    assert server is not None
    config = tmp_path / "settings.toml"
    config.write_text(f'[client]\nport = {server.port}\n[worker]\nworker_port = {server.worker_port}\nname = "from-file"\n')

    assert json.loads(_ok(house.run("givalia", "--config", config, "info", "--json")))["pid"] == server.pid
    done = house.run("givalia", "info", "--json", GIVALIA_PORT=str(server.port))
    assert json.loads(_ok(done))["pid"] == server.pid
    worker = house.start("givalia-worker", "--config", config)
    worker.await_log("connected to .* as from-file")
    assert worker.stop() == 0


@pytest.mark.parametrize("program", ["givalia", "givalia-server", "givalia-worker"])
def test_help_names_every_flag_of_2012(house: Rig, program: str) -> None:
    text = _ok(house.run(program, "-h"))

    assert "exit codes" in text
    flags = {
        "givalia": ("-m", "-p", *VERBS),
        "givalia-server": ("-p", "--mainport", "-w", "--workerport", "-d", "--daemon", "--host", "--insecure", "--store"),
        "givalia-worker": ("-m", "--master", "-w", "--workerport", "-n", "--workername", "-c", "-d", "--only-targeted"),
    }
    assert not [flag for flag in flags[program] if flag not in text]


def test_a_broken_pipe_is_no_error(house: Rig) -> None:
    house.client().enq_many([{"module": "Piped", "time": 600} for _ in range(3_000)])
    command = f"{house.installed.program('givalia')} -p {house.server.port} list --module Piped --limit 0 --json | head -n 1"  # type: ignore[union-attr]
    done = run(["/bin/sh", "-c", command], env=house.environ, capture_output=True, text=True, timeout=30, stdin=DEVNULL)

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_the_demo_shows_it_all(house: Rig, demo: Running) -> None:
    assert demo.wait(60) == 0, demo.log
    assert "Run job sample" in demo.out
    assert "4 jobs done, 1 cancelled, 1 server killed, 0 lost" in demo.out
    assert "THIS MUST NEVER BE SEEN" not in demo.out
    told = [line.split("demo ", 1)[1].split() for line in demo.out.splitlines() if " demo " in line]
    spoken_of = {word.strip(":") for line in told for word in line} & {"first", "pushed", "dropped", "survivor-1", "survivor-2"}
    assert {line[1].strip(":") for line in told if line[0] == "enq"} == spoken_of
    assert len(spoken_of) == 5
    assert "ConnectionLost: ConnectionLost" not in demo.out
