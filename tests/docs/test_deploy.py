"""The files in `deploy` fit the programs: their flags, exit codes, paths and limits exist and agree."""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from docs_pages import ROOT, text

from givalia_core import errors
from givalia_core.cli import common
from givalia_core.server import app as server_app
from givalia_core.server import connections
from givalia_core.settings import TABLES, ServerSettings, WorkerSettings, load
from givalia_core.worker import app as worker_app

DEPLOY = ROOT / "deploy"
SERVER, WORKER = DEPLOY / "givalia-server.service", DEPLOY / "givalia-worker.service"
UNITS = [SERVER, WORKER]
DOCKERFILE, COMPOSE = DEPLOY / "Dockerfile", DEPLOY / "compose.yaml"
KINDS: dict[str, type] = {"givalia-server": ServerSettings, "givalia-worker": WorkerSettings}
IN_SECONDS = {"": 1, "s": 1, "min": 60}
IN_MIB = {"M": 1, "G": 1024}

each_unit = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)


def unit(path: Path) -> dict[str, list[str]]:
    """The values of each setting of a unit, in order; names are unique over its sections."""
    found = defaultdict(list)
    for line in text(path).splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def seconds(value: str) -> float:
    """A length of time as systemd and compose write it."""
    number, unit_of = re.fullmatch(r"(\d+)(\w*)", value).groups()  # type: ignore[union-attr]
    return int(number) * IN_SECONDS[unit_of]


def mib(value: str) -> int:
    """An amount of memory as systemd writes it."""
    return int(value[:-1]) * IN_MIB[value[-1].upper()]


def settings_of(words: list[str]) -> argparse.Namespace:
    """Return the settings of a command, by the program's own flags; an unknown flag fails the test."""
    program, *flags = words
    scripts = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["scripts"]
    name = Path(program).name
    assert name in scripts
    parser = argparse.ArgumentParser(exit_on_error=False)
    common.add_settings(parser, KINDS[name])
    return parser.parse_args(flags)


def lock(path: Path) -> dict[str, set[str]]:
    """The hashes of each pinned version."""
    blocks = re.split(r"\n(?=\S)", text(path))
    pins = {pin[1]: set(re.findall(r"sha256:\w+", block)) for block in blocks if (pin := re.match(r"(\S+==\S+)", block))}
    assert pins
    return pins


# The units.


@each_unit
def test_a_unit_starts_a_program_with_flags_that_it_has(path: Path) -> None:
    (command,) = unit(path)["ExecStart"]
    given = settings_of(shlex.split(command))

    assert Path(given.config).name == "givalia.toml"
    assert f"install -D -m 0644 -t {Path(given.config).parent} deploy/givalia.toml" in text(ROOT / "docs/how-to/deploy.md")


def test_the_settings_file_of_the_units_can_be_used() -> None:
    for kind in TABLES.values():
        load(kind, {}, environ={}, file=DEPLOY / "givalia.toml")


def test_the_store_lies_in_the_folder_that_systemd_makes() -> None:
    settings = unit(SERVER)
    store = settings_of(shlex.split(settings["ExecStart"][0])).store

    assert store.startswith(f"sqlite:///var/lib/{settings['StateDirectory'][0]}/")
    assert settings["ProtectSystem"] == ["strict"], "only that folder can be written to"


def test_what_restarting_cannot_cure_is_not_restarted() -> None:
    server, worker = ({int(code) for code in unit(path)["RestartPreventExitStatus"][0].split()} for path in UNITS)

    lasting = (errors.SettingsInvalid, errors.StoreTooNew, errors.StoreUnfit, errors.StoreCorrupt, errors.StoreFailed)
    assert server == {errors.BadRequest.exit_code, *(error.exit_code for error in lasting)}
    assert worker == {errors.BadRequest.exit_code, errors.SettingsInvalid.exit_code}
    passing = {69, errors.GivaliaError.exit_code, errors.StoreLocked.exit_code, errors.StoreAway.exit_code}
    assert not server & passing


@each_unit
def test_a_service_is_told_apart_as_ready_reloading_and_alive(path: Path) -> None:
    settings = unit(path)

    # Both: systemd before 253 does not know the second, and keeps the first.
    assert settings["Type"] == ["notify", "notify-reload"]
    assert seconds(settings["WatchdogSec"][0]) / 2 > server_app.ROUND_US / 1_000_000
    assert settings["KillMode"] == ["mixed"]
    assert settings["Restart"] == ["on-failure"]


def test_services_are_given_the_time_that_draining_takes() -> None:
    server, worker = (seconds(unit(path)["TimeoutStopSec"][0]) for path in UNITS)

    assert server > 2 * (server_app.REFUSE_S + server_app.DRAIN_S + 2 * connections.GOODBYE_S)
    shipped = load(WorkerSettings, {}, environ={}, file=DEPLOY / "givalia.toml").grace
    assert worker > shipped + 2 * worker_app.STOP_S
    graces = re.findall(r"stop_grace_period: (\w+)", text(COMPOSE))
    assert [seconds(grace) for grace in graces] == [server, worker]


def test_the_server_holds_back_its_clients_before_it_meets_the_limits_of_its_unit() -> None:
    settings, own = unit(SERVER), ServerSettings()

    assert mib(settings["MemoryMax"][0]) > own.memory_max
    assert int(settings["LimitNOFILE"][0]) > own.connections_max + 100


def test_job_code_does_not_run_as_the_user_that_owns_the_queue() -> None:
    assert unit(SERVER)["User"] == ["givalia"]
    assert unit(WORKER)["DynamicUser"] == ["yes"]
    assert "User" not in unit(WORKER)


@each_unit
def test_a_reload_of_a_unit_is_one_whatever_its_terminal(path: Path) -> None:
    assert unit(path)["ReloadSignal"] == ["SIGUSR1"]
    assert "kill -USR1 $MAINPID" in text(path)


@each_unit
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_understands_a_unit_and_finds_it_hardened(path: Path, tmp_path: Path) -> None:
    # The programs are here rather than under /opt, and systemd looks whether they are there.
    here = tmp_path / path.name
    here.write_text(text(path).replace("/opt/givalia/bin", str(Path(sys.executable).parent)))
    version = int(re.search(r"systemd (\d+)", _analyze("--version").stdout)[1])  # type: ignore[index]

    verified = _analyze("verify", "--man=no", here)
    secured = _analyze("security", "--offline=yes", "--threshold=20", here)

    complaints = [line for line in verified.stderr.splitlines() if line.startswith(str(here))]
    if version < 253:
        unknown = ("ignoring: notify-reload", "Unknown key 'ReloadSignal' in section [Service], ignoring.")
        complaints = [line for line in complaints if not line.endswith(unknown)]
    assert complaints == []
    assert verified.returncode == 0, verified.stderr
    assert secured.returncode == 0, secured.stdout + secured.stderr


def _analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60)


# The image.


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines put together."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text(DOCKERFILE), flags=re.MULTILINE))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_all_that_the_image_copies_is_there_and_is_sent_to_the_builder() -> None:
    sources = [
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    everything, *kept = (line for line in text(DEPLOY / "Dockerfile.dockerignore").splitlines() if not line.startswith("#"))

    assert sources
    assert everything == "*"
    assert {f"!{source.removeprefix('./')}" for source in sources} == {line for line in kept if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch.fnmatch(source, line) for source in sources for line in kept if not line.startswith("!"))


def test_stages_that_are_copied_from_exist_and_use_one_python() -> None:
    stages = [re.fullmatch(r"(\S+)(?: AS (\w+))?", rest) for name, rest in instructions() if name == "FROM"]
    names = {stage[2] for stage in stages if stage}
    used = set(re.findall(r"--from=(\w+)", text(DOCKERFILE)))

    assert used == names - {None}
    assert {stage[1] for stage in stages if stage} == {"python:${PYTHON}-slim"}
    (default,) = (rest.partition("=")[2] for name, rest in instructions() if name == "ARG")
    oldest = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, default.split("."))) >= tuple(map(int, oldest.split(".")))


def test_the_image_runs_a_program_without_a_shell_and_not_as_root() -> None:
    settings = dict(instructions())  # Of each, the last one holds.

    given = settings_of(json.loads(settings["CMD"]))
    assert given.store == f"sqlite://{settings['VOLUME']}/queue.db"
    assert settings["USER"] == "givalia"
    assert settings["STOPSIGNAL"] == "SIGTERM"
    assert set(settings["EXPOSE"].split()) == {str(ServerSettings().port), str(ServerSettings().worker_port)}
    health = json.loads(settings["HEALTHCHECK"].partition(" CMD ")[2])
    assert health[0] == "givalia"
    done = subprocess.run([Path(sys.executable).parent / "givalia", *health[1:-1], "info", "--help"], capture_output=True)
    assert (health[-1], done.returncode) == ("info", 0)


def test_the_image_installs_what_the_project_needs_from_a_part_of_its_lock() -> None:
    whole, part = lock(ROOT / "requirements.lock"), lock(DEPLOY / "requirements.lock")
    wanted = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["dependencies"]

    assert part.items() <= whole.items()
    assert {re.split(r"[^\w-]", each)[0] for each in wanted} | {"flit-core"} <= {pin.partition("==")[0] for pin in part}
    assert "index" not in text(DEPLOY / "requirements.lock")


def test_commands_of_the_compose_file_are_those_of_the_programs() -> None:
    server, worker = (json.loads(found) for found in re.findall(r"command: (\[.*\])", text(COMPOSE)))

    given = settings_of(server)
    assert (given.host, given.insecure) == ("0.0.0.0", True)
    assert "ports:" not in text(COMPOSE), "there is no authentication, so nothing is published"
    settings_of(worker)
    assert "GIVALIA_MASTER: server" in text(COMPOSE)
    assert f"queue:{Path(given.store.removeprefix('sqlite://')).parent}" in text(COMPOSE)


def test_no_file_names_where_packages_come_from() -> None:
    for path in DEPLOY.iterdir():
        assert not re.search(r"https?://|index-url|pypi", text(path)), path
