"""The alerts that the documentation recommends fire when they should, and else do not; a real Prometheus decides."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system_disks import MIB, mounted
from system_install import Installed
from system_prometheus import ROOT, RULES, Watching, promtool
from system_rig import Rig, free_port, lines_of
from waits import await_true

LATE, UNSERVED, DYING, LOST, FILLING, TROUBLE, SILENT = (
    "GivaliaJobsLate", "GivaliaModuleUnserved", "GivaliaJobsDying", "GivaliaWorkerLost", "GivaliaDiskFilling",
    "GivaliaInTrouble", "GivaliaSilent",
)  # fmt: skip
DISK = 'givalia_store_disk_free_bytes{instance="a"}'
DEAD = 'givalia_jobs_dead_total{instance="a",module="Mail",reason="failed"}'

# For each alert: metrics a minute apart, and from when to when it fires, in minutes.
CASES: list[tuple[str, dict[str, str], list[int], list[int]]] = [
    (LATE, {'givalia_ready_age_seconds{module="Mail"}': "0 0 40 100 0 0"}, [2, 3], [0, 1, 4, 5]),
    (LATE, {'givalia_ready_age_seconds{module="Mail"}': "0 29 0 12 29"}, [], [0, 1, 2, 3, 4]),
    (UNSERVED, {'givalia_jobs_untaken{module="Mail"}': "0 0 500 500 500 0"}, [3, 4], [0, 1, 2, 5]),
    (DYING, {DEAD: "0 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"}, [3, 10, 15], [0, 1, 18, 20]),
    (DYING, {DEAD: "_ _ 1x30"}, [2, 3, 15], [0, 1, 20, 30]),  # Its first death was before the first scrape.
    (LOST, {'givalia_workers_lost_total{instance="a"}': "0 0 1x30"}, [3, 8], [0, 1, 15]),
    (LOST, {'givalia_leases_lost_total{instance="a"}': "0 0 3x30"}, [3, 8], [0, 1, 15]),
    (FILLING, {DISK: "10000000000-80000000x90"}, [40, 90], [0, 10, 25]),
    (FILLING, {DISK: "10000000000-10000000x90"}, [], [0, 10, 40, 90]),
    (FILLING, {'givalia_trouble{instance="a",trouble="store_nearly_full"}': "0 1 1 0"}, [1, 2], [0, 3]),
    (TROUBLE, {'givalia_trouble{instance="a",trouble="slow_syncs"}': "0 1 1 1 0"}, [2, 3], [0, 1, 4]),
    (TROUBLE, {'givalia_trouble{instance="a",trouble="store_full"}': "0 1 1 1 0"}, [], [2, 3]),
    (SILENT, {'givalia_answers{instance="a"}': "1 0 0 1"}, [2], [0, 1, 3]),
]


def test_every_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)
    tests: list[dict[str, Any]] = []
    for alert, series, firing, quiet in CASES:
        (labels,) = ({name.partition("=")[0]: name.partition("=")[2].strip('"') for name in _labels(next(iter(series)))},)
        shown = {name: value for name, value in labels.items() if name in _KEPT[alert]}
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": [{"exp_labels": shown}] if fires else []}
                    for minutes, fires in ((firing, True), (quiet, False))
                    for minute in minutes
                ],
            }
        )
    rules = tmp_path / "rules.yml"
    rules.write_text(_without_words(RULES.read_text()))
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))

    assert "SUCCESS" in promtool("test", "rules", file)
    assert {alert for alert, *_ in CASES} == {LATE, UNSERVED, DYING, LOST, FILLING, TROUBLE, SILENT}


_KEPT = {
    LATE: {"module"}, UNSERVED: {"module"}, DYING: {"module"}, LOST: {"instance"}, FILLING: {"instance"},
    TROUBLE: {"instance", "trouble"}, SILENT: {"instance"},
}  # fmt: skip


def _labels(series: str) -> list[str]:
    return series.partition("{")[2].rstrip("}").split(",")


def _without_words(rules: str) -> str:
    """The rules without annotations and severity, which a test of promtool would have to repeat."""
    left_out = ("annotations:", "summary:", "labels:", "severity:")
    return "".join(line for line in rules.splitlines(keepends=True) if not line.strip().startswith(left_out))


def test_what_the_page_shows_is_read_by_prometheus(tmp_path: Path) -> None:
    pages = [path for path in (ROOT / "docs").rglob("*.md") if "```yaml" in path.read_text()]
    config, rules = re.findall(r"^```yaml\n(.*?)^```$", pages[0].read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / RULES.name).write_text(rules)

    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")
    assert rules == RULES.read_text()
    assert [path.name for path in pages] == ["alerts.md"]


@pytest.fixture
def rig(release: Installed, tmp_path: Path) -> Iterator[Rig]:
    """With the plugin; as root on a disk of its own, that can be filled."""
    with Rig(release, tmp_path) as rig:
        if os.geteuid() != 0:
            yield rig
            return
        with mounted("tmpfs", tmp_path, mib=160) as place:
            rig.store = place / "queue.db"
            yield rig
            rig.__exit__(None, None, None)


def test_a_real_prometheus_says_what_goes_wrong(rig: Rig) -> None:
    # given
    port, stayed = free_port(), rig.folder / "stayed"
    rig.start_server("--lease", 5, GIVALIA_PROMETHEUS_PORT=str(port))
    rig.start_worker("-n", "full", "-c", 1, "--only-targeted")
    doomed = rig.start_worker("-n", "doomed", "--only-targeted")
    rig.start_worker("-n", "idle")
    watching = Watching(rig, port)
    client = rig.client()
    client.enq("Echo").wait(10)
    watching.await_scrapes()
    assert watching.firing() == set()

    # when
    stay = {"file": str(stayed), "seconds": 90}
    jobs = [client.enq("Stay", params=stay, target_worker=name) for name in ("full", "full", "doomed")]
    await_true(lambda: {jobs[0].id, jobs[2].id} <= {words[0] for words in lines_of(stayed)}, "two of them run")
    client.enq_many([{"module": "Nobody"}] * 500)
    client.enq("End", params="base_exception", max_attempts=1)
    doomed.kill()
    expected = {(LATE, "Stay"), (LATE, "Nobody"), (UNSERVED, "Nobody"), (DYING, "End"), (LOST, "")}
    if os.geteuid() == 0:
        (rig.store.parent / "somebody else's").write_bytes(bytes(110 * MIB))
        expected |= {(FILLING, "")}

    # then
    await_true(lambda: expected <= watching.firing(), "the alerts fire", 90, every=0.5)
    assert watching.firing() == expected
