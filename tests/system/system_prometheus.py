"""A real Prometheus for a test: the program from the PATH or, unpacked into `build`, from the system's packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from system_rig import Rig, Running, free_port
from waits import await_true

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from peers import bring  # noqa: E402

RULES = ROOT / "deploy" / "givalia-alerts.yml"


def program(name: str) -> Path:
    """The path of `prometheus` or `promtool`; the test is skipped only where no packages of a Debian can be had."""
    try:
        return bring.program("prometheus", name).path
    except bring.Absent as absent:
        if shutil.which("apt-get"):
            raise
        pytest.skip(str(absent))


def promtool(*words: object) -> str:
    """Return the output of promtool's check, which must pass."""
    done = subprocess.run([str(program("promtool")), *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Watching:
    """A Prometheus that scrapes some ports each second and decides by our rules as often."""

    def __init__(self, rig: Rig, *ports: int) -> None:
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "givalia", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            ],
        }
        file = rig.folder / "prometheus.yml"
        file.write_text(json.dumps(config))  # Which is YAML, too.
        self.process: Running = rig.start(
            str(program("prometheus")),
            f"--config.file={file}",
            f"--storage.tsdb.path={rig.folder / 'metrics'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def await_scrapes(self) -> None:
        """Wait until every target was scraped and every rule has been decided once."""

        def look() -> bool:
            try:
                targets, groups = self._ask("targets")["activeTargets"], self._ask("rules")["groups"]
            except OSError:
                return False
            rules = [rule for group in groups for rule in group["rules"]]
            return bool(targets and rules) and all(
                [*(target["health"] == "up" for target in targets), *(rule["health"] == "ok" for rule in rules)]
            )

        await_true(look, "every target is scraped", 30)

    def firing(self) -> set[tuple[str, str]]:
        """The alerts that fire, each with the module or trouble that it is about."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("module", alert["labels"].get("trouble", "")))
            for alert in self._ask("alerts")["alerts"]
            if alert["state"] == "firing"
        }
