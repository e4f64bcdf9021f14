"""Lists, acts by filter and a backup on a large queue, and the time that others wait for their answers meanwhile.

Many jobs wait, among them those of a mistaken import, whose keys have a common prefix. The command line lists with filters
that match nothing, copies the store, and pushes back, calls off and requeues all jobs of the import. Each of these is repeated
until another client has sent five thousand stats, one after the other.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count

import harness
from harness import Figure, Option

TITLE = "Beside an operator"
OPTIONS = (
    Option("waiting", 1_000_000, "jobs that wait"),
    Option("imported", 50_000, "jobs of the import"),
    Option("stats", 5_000, "stats of another client beside each thing that is done, at least"),
)
PREFIX = "import-"
LATE_MS = 50  # The longest allowed wait beside a filter that matches nothing, or beside a copy.


def measure(waiting: int, imported: int, stats: int, folder: str | None = None) -> list[Figure]:
    """Fill the store with the jobs, then run one operation after the other."""
    with harness.Rig(1, folder) as rig, rig.client() as client:
        handles = harness.enq_in_parts(client, range(waiting), module="Nobody", time=86_400)
        client.enq_many([{"module": "Mail", "key": f"{PREFIX}{number}", "time": 86_400} for number in range(imported)])
        beside = _Beside(rig, client, [handle.key for handle in handles], stats)
        acts = ("--key-prefix", PREFIX, "--module", "Mail")
        figures = [
            *_stats("idle, stat", beside.nothing(), None),
            *beside.doing("list that finds no key", "list", "--key-prefix", "nobody-", most=LATE_MS),
            *beside.doing("list that finds no error", "list", "--error", "no such words", "--state", "waiting", most=LATE_MS),
            *beside.doing("cancel that finds nothing", "cancel", "--module", "Nothing", "--target-worker", "x", most=LATE_MS),
            *beside.doing("backup", "backup", "--force", str(rig.folder / "copy.db"), most=LATE_MS),
            *beside.doing("ext of the import", "ext", *acts, "--time", "60"),
            *beside.doing("cancel and requeue of the import", "cancel", *acts, back=("requeue", "--cancelled", *acts)),
        ]
        left = client.info()["jobs"]
    if left["Nobody"]["waiting"] != waiting or left["Mail"]["waiting"] != imported:
        raise harness.Broken(f"all jobs should wait; there is {left}")
    return figures


class _Beside:
    """Another client, which sends a stat of a job as soon as it has the previous answer."""

    def __init__(self, rig: harness.Rig, client: harness.Client, keys: list[str], stats: int) -> None:
        self._client, self._keys, self._stats = client, keys, stats
        self._command = [sys.executable, "-m", "givalia_core.cli.main", "-p", str(rig.port)]

    def nothing(self) -> list[float]:
        """Return the milliseconds of each answer while no operation runs."""
        return [self._stat_ms() for _ in range(self._stats)]

    def doing(self, name: str, *words: str, back: Sequence[str] = (), most: float | None = None) -> list[Figure]:
        """Repeat the operation, and its reverse `back`, until there are enough answers; return its time, and theirs."""
        waits_ms: list[float] = []
        took_s: list[float] = []
        for turn in count():
            if len(waits_ms) >= self._stats and turn % 2 == 0:
                break
            began = time.perf_counter()
            waits_ms += self._while(back if back and turn % 2 else words)
            took_s.append(time.perf_counter() - began)
        return [
            Figure(f"{name}, each time", sum(took_s) / len(took_s), "s"),
            *_stats(f"{name}, stat beside it", waits_ms, most),
        ]

    def _while(self, words: Sequence[str]) -> list[float]:
        command = subprocess.Popen([*self._command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        waits_ms = [self._stat_ms()]
        while command.poll() is None:
            waits_ms.append(self._stat_ms())
        _, said = command.communicate()
        if command.returncode:
            raise harness.Broken(f"givalia {' '.join(words)}: {said}")
        return waits_ms

    def _stat_ms(self) -> float:
        began = time.perf_counter()
        self._client.stat(random.choice(self._keys))
        return (time.perf_counter() - began) * 1e3


def _stats(name: str, waits_ms: list[float], most: float | None) -> list[Figure]:
    return [
        Figure(f"{name}, p50", harness.quantile(waits_ms, 0.5), "ms"),
        Figure(f"{name}, p99", harness.quantile(waits_ms, 0.99), "ms"),
        Figure(f"{name}, at most", max(waits_ms), "ms", most=most),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
