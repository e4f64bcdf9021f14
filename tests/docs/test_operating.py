"""Every answer of `docs/operating.md` is short, and has been tried: its commands here, or by the test that is named here.

The commands are read from the page; parts that differ in a test (an instant, a module) are replaced.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from docs_pages import DOCS, ROOT, Block, blocks, headings, section, text
from docs_player import PROGRAMS
from docs_stage import PATIENCE_S, Stage

from givalia_core import Client, JobFailed
from givalia_core.client import JobHandle
from givalia_core.errors import SettingsInvalid, StoreUnfit

PAGE = DOCS / "operating.md"
HERE = "tests/docs/test_operating.py"
WORDS_MAX = 200  # As many as are read in a minute, with the commands.
TRIED = {
    "Why has this job not run?": ("tests/docs/test_snippets.py", "test_every_snippet_of_a_page_works"),
    "Pause for an hour": (HERE, "test_without_workers_the_queue_pauses"),
    "What failed since 14:00 with this error, and retry only that": (HERE, "test_what_failed_with_an_error_is_retried_alone"),
    "All jobs of a tenant": ("tests/docs/test_snippets.py", "test_every_snippet_of_a_page_works"),
    "See a job's params": (HERE, "test_params_of_a_job_are_shown"),
    "Who is connected": (HERE, "test_who_is_connected_is_shown"),
    "Yesterday's load": (HERE, "test_load_is_counted"),
    "Disk, memory and log for one and for ten million timers": (HERE, "test_figures_are_those_of_the_benchmarks"),
    "Get space back": (HERE, "test_store_is_made_anew_from_its_jobs"),
    "Back after an upgrade of the format": (
        "tests/system/test_upgrade_at_start.py",
        "test_store_of_the_format_before_is_upgraded_by_a_start_and_goes_back",
    ),
    "The server's disk is lost": (HERE, "test_server_whose_disk_was_lost_comes_back_with_a_hold"),
    "Restore yesterday's copy, and look before anything runs": (
        HERE,
        "test_server_whose_disk_was_lost_comes_back_with_a_hold",
    ),
    "Rotate logs": (
        "tests/system/test_logs.py",
        "test_every_line_has_one_form_whatever_jobs_do_to_logging_and_whoever_rotates_it",
    ),
    "Be told when something is wrong": ("tests/system/test_alerts.py", "test_a_real_prometheus_says_what_goes_wrong"),
    "Move to another host": ("tests/system/test_move_store.py", "test_an_export_goes_through_a_pipe"),
    "Settings that need a restart": ("tests/docs/test_reference.py", "test_generated_parts_are_up_to_date"),
}


def shown(heading: str) -> list[Block]:
    """The blocks below a heading of the page."""
    content = section(PAGE, heading)
    return [block for block in blocks(PAGE) if block.code in content]


def givalia(heading: str, *verb: str) -> list[list[str]]:
    """The words of each `givalia` command below a heading, of pipes the first command, that begins with this verb."""
    commands = []
    for block in shown(heading):
        for line in block.code.splitlines():
            if line.startswith("$ givalia "):
                words = shlex.split(line.removeprefix("$ givalia ").split(" | ")[0])
                if words[: len(verb)] == list(verb):
                    commands.append(words)
    assert commands, f"the page shows no {' '.join(verb)} below {heading}"
    return commands


def with_values(words: list[str], **values: str) -> list[str]:
    """A command with other values behind these flags."""
    changed = list(words)
    for name, value in values.items():
        changed[words.index("--" + name.replace("_", "-")) + 1] = value
    return changed


def run(stage: Stage, words: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return stage.run("-m", PROGRAMS["givalia"], *words, environ={**stage.environ, **environ})


def printed(stage: Stage, words: list[str]) -> str:
    """Return the output of a command, which must succeed."""
    done = run(stage, words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server and a worker without plugins."""
    stage = Stage(tmp_path_factory.mktemp("quiet"))
    stage.environ["GIVALIA_PLUGINS"] = "none"
    with stage:
        yield stage


@pytest.fixture
def client(quiet: Stage) -> Iterator[Client]:
    with Client("127.0.0.1", quiet.port) as client:
        yield client


def dead(client: Client, params: Any, key: str) -> JobHandle:
    """A job that has failed for good."""
    job = client.enq("Flaky", params=params, key=key, max_attempts=1)
    with pytest.raises(JobFailed):
        job.wait(PATIENCE_S)
    return job


def an_hour_ago() -> str:
    return (datetime.now(UTC) - timedelta(hours=1)).isoformat()


def test_every_answer_is_tried() -> None:
    assert [words for depth, words in headings(PAGE) if depth == 2] == list(TRIED)
    for file, name in TRIED.values():
        assert f"def {name}(" in text(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("heading", TRIED)
def test_answer_reads_in_a_minute_and_has_a_command(heading: str) -> None:
    written = section(PAGE, heading)

    assert len(written.split()) <= WORDS_MAX
    assert "```" in written or "`systemctl reload`" in written or "`make " in written


def test_without_workers_the_queue_pauses(quiet: Stage, client: Client) -> None:
    quiet._programs.pop().stop()
    try:
        job = client.enq("Count", params={"to": 1, "pause": 0.0})

        assert client.stat(id=job.id).why == "due, but no worker has module Count"
    finally:
        quiet._programs.append(quiet.start(PROGRAMS["givalia-worker"], [], quiet.environ, quiet.folder))
    job.wait(PATIENCE_S)


def test_what_failed_with_an_error_is_retried_alone(quiet: Stage, client: Client) -> None:
    heading = "What failed since 14:00 with this error, and retry only that"
    (listing,) = givalia(heading, "list")
    try_it, do_it = givalia(heading, "requeue")
    for number in range(2):
        dead(client, {"fail_times": 9}, f"on purpose {number}")
    in_an_hour = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    other = dead(client, None, "by mistake")

    listed = printed(quiet, with_values(listing, ended_after=an_hour_ago(), error="ON purpose"))
    would_be = printed(quiet, with_values(try_it, ended_after=an_hour_ago(), error="ON purpose"))
    later = printed(quiet, with_values(do_it, ended_after=in_an_hour, error="on purpose"))
    done = printed(quiet, with_values(do_it, ended_after=an_hour_ago(), error="ON purpose"))

    assert ("on purpose 0" in listed, "by mistake" in listed) == (True, False)
    assert (would_be, later, done) == ("would be: 2 requeued\n", "no job\n", "2 requeued\n")
    assert client.stat(id=other.id).state == "dead"


def test_params_of_a_job_are_shown(quiet: Stage, client: Client) -> None:
    enq, stat = givalia("See a job's params", "enq")[0], givalia("See a job's params", "stat")[0]
    printed(quiet, enq)

    assert re.search(r"^params +.*\"?cart\"?: 8", printed(quiet, stat), re.MULTILINE)
    client.cancel("cart-8")


def test_who_is_connected_is_shown(quiet: Stage, client: Client) -> None:
    heading = "Who is connected"
    (worker,) = client.workers()

    assert str(worker["pid"]) in printed(quiet, givalia(heading, "workers")[0])
    assert "givalia-example-modules" in printed(quiet, givalia(heading, "modules")[0])
    assert "127.0.0.1" in printed(quiet, givalia(heading, "clients")[0])


def test_load_is_counted(quiet: Stage, client: Client) -> None:
    heading = "Yesterday's load"
    (listing,) = givalia(heading, "list")
    metrics = text(ROOT / "plugins" / "givalia-prometheus" / "README.md")
    since = datetime.now(UTC).isoformat()
    for job in [client.enq("Count", params={"to": 1, "pause": 0.0}) for _ in range(107)]:  # More than `list` shows unasked.
        job.wait(PATIENCE_S)

    assert len(printed(quiet, with_values(listing, ended_after=since)).splitlines()) == 107
    assert all(f"| `{name}` |" in metrics for name in re.findall(r"givalia_\w+", section(PAGE, heading)))


def test_log_has_no_line_for_a_job_that_goes_well(quiet: Stage, client: Client) -> None:
    def lines() -> int:
        return sum(len(program.log.read_text().splitlines()) for program in quiet._programs)

    before = lines()
    for job in [client.enq("Flaky", params={"fail_times": 0}) for _ in range(50)]:
        job.wait(PATIENCE_S)

    assert lines() - before < 5


def test_figures_are_those_of_the_benchmarks() -> None:
    measured = text(DOCS / "benchmarks.md").split("--ten-million`\n\n### While many wait")[1]
    table = section(PAGE, "Disk, memory and log for one and for ten million timers")

    def figure(name: str) -> float:
        found = re.search(rf"^\| {re.escape(name)} \| ([\d.]+)", measured, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    each = figure("store on disk, each")
    for jobs in (1_000_000, 10_000_000):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {jobs:,} |"))
        assert f"{jobs * each / 1e9:.2g} GB ({each:.0f} bytes a job)" in row
        assert f"{figure(f'{jobs:,} waiting, memory of the server'):.0f} MB" in row
    assert f"{figure('10,000,000 waiting, memory after the restart'):.0f} MB after a restart" in table


def test_store_is_made_anew_from_its_jobs(tmp_path: Path) -> None:
    # given a store that its server has closed
    stage, disk = Stage(tmp_path), tmp_path / "disk"
    environ = {**stage.environ, "GIVALIA_STORE": f"sqlite://{disk / 'queue.db'}"}
    first = stage.start(PROGRAMS["givalia-server"], [], environ, tmp_path)
    with Client("127.0.0.1", stage.port) as client:
        client.enq("Sample", time=600, key="kept")
    first.stop()

    # when it is done what the page says, here
    (block,) = shown("Get space back")
    ((script,),) = [re.findall(r"sh -c '(.+?)'", block.code, re.DOTALL)]
    script = script.replace("/var/lib/givalia", str(disk)).replace("/opt/givalia/bin", str(Path(sys.executable).parent))
    subprocess.run(["sh", "-c", script], check=True, capture_output=True)

    # then a server finds the job there
    second = stage.start(PROGRAMS["givalia-server"], [], environ, tmp_path)
    try:
        with Client("127.0.0.1", stage.port) as client:
            assert client.stat("kept").state == "waiting"
    finally:
        second.stop()


def test_server_whose_disk_was_lost_comes_back_with_a_hold(tmp_path: Path) -> None:
    heading = "Restore yesterday's copy, and look before anything runs"
    stage = Stage(tmp_path)
    server, worker = PROGRAMS["givalia-server"], PROGRAMS["givalia-worker"]
    environ = {**stage.environ, "GIVALIA_STORE": f"sqlite://{tmp_path / 'disk' / 'queue.db'}"}
    disk, copy = tmp_path / "disk", tmp_path / "queue.backup"
    disk.mkdir()

    # given a backup with jobs that are ready, and a disk that is lost
    first = stage.start(server, [], environ, tmp_path)
    try:
        with Client("127.0.0.1", stage.port) as client:
            client.enq("Sample", params="runs on", key="runs-on")
            client.enq("Flaky", params={"fail_times": 0}, key="must-not-run")
        printed(stage, givalia("The server's disk is lost", "backup")[0])
    finally:
        first.stop()
    disk.rename(tmp_path / "lost")
    disk.mkdir()

    # then a server that may not make a store refuses
    refused = stage.run("-m", server, environ={**environ, "GIVALIA_CREATE": "no"})
    assert refused.returncode in (StoreUnfit.exit_code, SettingsInvalid.exit_code), refused.stderr

    # when the copy is restored, with a hold
    copy.rename(disk / "queue.db")
    second = stage.start(server, [], {**environ, "GIVALIA_CREATE": "no", "GIVALIA_HOLD": "yes"}, tmp_path)
    beside = None
    try:
        beside = stage.start(worker, [], environ, tmp_path)
        with Client("127.0.0.1", stage.port) as client:
            # then nothing runs, and what must not is called off
            listed = printed(stage, givalia(heading, "list")[0])
            assert ("runs-on" in listed, "must-not-run" in listed) == (True, True)
            assert "this server holds" in client.stat("runs-on").why
            off = [word for word in with_values(givalia(heading, "cancel")[0], module="Flaky") if word != "--dry-run"]
            assert printed(stage, off) == "1 cancelled\n"
            assert client.stat("runs-on").state == "ready"

            assert printed(stage, givalia(heading, "resume")[0]) == "resumed\n"

            client.wait(client.stat("runs-on").id, PATIENCE_S)
            assert client.stat("must-not-run").state == "cancelled"
            assert client.stat("must-not-run").attempts == 0
    finally:
        if beside is not None:
            beside.stop()
        second.stop()
