"""The view of a server and its connections for people, also that of an earlier version."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any

import msgpack
import pytest
from scripted_server import ScriptedServer
from test_nonsense import say

from givalia_core.cli import main, overview
from givalia_core.errors import VersionMismatch
from givalia_core.protocol.messages import OK, Kind

EARLIER = {
    "name": "alpha", "instance": "00", "pid": 77, "only_targeted": False, "capacity": 100, "process_capacity": 4, "running": 3,
    "processes": [], "modules": ["Sample"], "versions": {"Sample": "1.2"}, "broken": [],
}  # fmt: skip
WORKER = {**EARLIER, "draining": True, "runs": {"Sample": 3}, "address": "10.0.0.7:51234", "version": "0.1.0"}
CLIENTS = [{"address": "10.0.0.9", "agent": "givalia-client", "version": "0.1.0", "connections": 12}]
INFO = {
    "durability": "fsync", "draining": False, "now_us": 1_900_000_000_000_000, "live": 1_234_567, "pid": 16_483, "busy": "",
    "jobs": {"Sample": {"waiting": 1_003, "ready": 3, "dead": 4}},
    "store": {
        "path": "/q.db\x1b[2J", "bytes": 1_610_612_736, "log_bytes": 512,
        "index": {"is_verified": True, "scrub_ended_at_us": 1},
    },
    "limits": {"params_bytes": 524_288, "live_jobs": 100_000_000},
    "defaults": {"lease_us": 30_000_000, "backoff_us": [1_000_000, 600_000_000]},
}  # fmt: skip

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
Shown = Callable[..., list[str]]


class StoppedClock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return NOW.astimezone(tz)


@pytest.fixture
def shown(
    scripted: Callable[..., ScriptedServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shown:
    monkeypatch.setattr(overview, "datetime", StoppedClock)

    def show(kind: Kind, told: Any, *words: str) -> list[str]:
        main._main(["-m", scripted(say(OK, payload=msgpack.packb(told))).address, *words])
        return capsys.readouterr().out.splitlines()

    return show


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def since(seconds: float) -> dict[str, int]:
    return {"since_us": round((NOW.timestamp() - seconds) * 1e6)}


def test_a_worker_is_shown_with_its_address_version_age_state_and_what_it_runs(shown: Shown) -> None:
    heads, line = shown(Kind.WORKERS, [WORKER | since(7_200)], "workers")

    assert heads.split() == [
        "name", "state", "running", "capacity", "address", "pid", "version", "since", "runs", "modules", "broken",
    ]  # fmt: skip
    since_iso = "2026-11-30T10:00:00+00:00"
    for words in ("alpha", "draining", "100 + 4", "10.0.0.7:51234", "77", "0.1.0", since_iso, "Sample 3", "Sample 1.2"):
        assert words in line


def test_a_terminal_is_told_how_long_ago_and_a_program_when(shown: Shown, on_terminal: Callable[[], None]) -> None:
    told = {"clients": [CLIENTS[0] | since(90)]}
    info = {"server_started_us": since(90)["since_us"], "now_us": since(0)["since_us"]}

    _, line = shown(Kind.INFO, told, "clients")
    assert line.split() == ["10.0.0.9", "givalia-client", "0.1.0", "12", "2026-11-30T11:58:30+00:00"]
    assert [each.split()[-1] for each in shown(Kind.INFO, info, "info")[1:]] == [
        "2026-11-30T11:58:30+00:00", "2026-11-30T12:00:00+00:00",
    ]  # fmt: skip

    on_terminal()
    assert any("90 s ago" in line for line in shown(Kind.INFO, told, "clients"))
    assert any("started" in line and "90 s ago, Mon " in line for line in shown(Kind.INFO, info, "info"))


def test_what_an_earlier_server_does_not_tell_is_left_open(shown: Shown) -> None:
    _, line = shown(Kind.WORKERS, [EARLIER | since(1)], "workers")

    assert "?" in line
    assert "ready" in line
    with pytest.raises(VersionMismatch, match=r"Givalia 0\.0\.9, does not tell its clients"):
        shown(Kind.INFO, {"live": 1, "version": "0.0.9"}, "clients")


def test_clients_are_shown_by_address(shown: Shown) -> None:
    told = {"clients": [CLIENTS[0] | since(90)]}

    _, line = shown(Kind.INFO, told, "clients")
    assert line.split()[:4] == ["10.0.0.9", "givalia-client", "0.1.0", "12"]
    assert json.loads("\n".join(shown(Kind.INFO, told, "clients", "--json"))) == told["clients"]


def test_info_has_sizes_ages_and_counts_for_people(shown: Shown) -> None:
    lines = shown(Kind.INFO, INFO, "info")

    words = {line.strip().split("  ")[0]: line.split("  ")[-1].strip() for line in lines if line.startswith("  ")}
    assert words["live"] == "1,234,567"
    assert words["pid"] == "16483"
    assert words["draining"] == "no"
    assert words["size"] == "1.5 GiB"
    assert words["log size"] == "512 bytes"
    assert words["params size"] == "512 KiB"
    assert words["lease"] == "30 s"
    assert words["backoff"] == "1 s, 10 min"
    assert words["index is verified"] == "yes"
    assert "1970-01-01" in words["index scrub ended"]
    assert words["path"] == "/q.db\\x1b[2J"
    table = lines[lines.index(next(line for line in lines if line.startswith("jobs of module"))) :]
    assert [line.split() for line in table] == [
        ["jobs", "of", "module", "waiting", "ready", "running", "done", "dead", "cancelled"],
        ["Sample", "1,000", "3", "0", "0", "4", "0"],
    ]


def test_info_has_a_table_of_modules_that_no_made_up_name_makes_endless(shown: Shown) -> None:
    quiet = {"workers": 1, "ready_age_us": 0, "untaken": 0}
    told = {f"M{number:03}": quiet for number in range(150)} | {
        "Late": {"workers": 0, "ready_age_us": 90_000_000, "untaken": 3}
    }

    lines = shown(Kind.INFO, {"modules": told, "jobs": {name: {"done": 1} for name in told}}, "info")

    first = next(number for number, line in enumerate(lines) if line.startswith("modules"))
    assert lines[first + 1].split() == ["Late", "0", "90", "s", "3"]
    assert lines[first + 2].split() == ["M000", "1", "0", "0"]
    assert lines.count("... and 51 more; --json has them all") == 2


def test_only_the_troubles_that_last_are_shown(shown: Shown) -> None:
    lasts = since(0) | {"words": "no room on the disk"}

    none = shown(Kind.INFO, {"troubles": {"store_full": None, "busy": None}}, "info")
    one = shown(Kind.INFO, {"troubles": {"store_full": lasts, "busy": None}}, "info")

    assert [line.strip() for line in none[none.index("troubles") :]] == ["troubles", "none"]
    assert any("store full since" in line and line.endswith(NOW.isoformat()) for line in one)
    assert any("store full words" in line and "no room on the disk" in line for line in one)
    assert not any("busy" in line or "none" in line for line in one)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1_023, "1023 bytes"), (1_024, "1 KiB"), (1_536, "1.5 KiB"), (16 << 20, "16 MiB"),
     ((1 << 20) - 1, "1024 KiB"), (1 << 40, "1 TiB"), (1 << 55, "3.277e+04 TiB")],
)  # fmt: skip
def test_sizes_have_units(count: int, words: str) -> None:
    assert overview.size(count) == words
