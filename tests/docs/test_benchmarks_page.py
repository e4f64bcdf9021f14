"""A run of the benchmarks is judged as `benchmarks` says, and its page leaves out nothing that we lose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

BURNS_IN_A_CHILD = """
import subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", burn])
print("burnt", flush=True)
time.sleep(60)
"""
BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[SimpleNamespace]:
    """The benchmarks' modules, which are on the path of those who run them only."""
    sys.path.insert(0, BENCHMARKS)
    import document
    import harness
    from harness import program, rig
    from peers import contest, standing

    yield SimpleNamespace(document=document, harness=harness, program=program, contest=contest, standing=standing, rig=rig)
    sys.path.remove(BENCHMARKS)


def contest_of(benchmarks: SimpleNamespace, **rates: float) -> dict[str, list[object]]:
    """Return contestants with the jobs a second that each does end to end, and one at a time."""
    figure, contest = benchmarks.harness.Figure, benchmarks.contest
    return {
        name: [figure(contest.SINGLES, rate, "jobs/s"), figure(contest.LOAD, rate, "jobs/s")] for name, rate in rates.items()
    }


def run_of(benchmarks: SimpleNamespace, value: float, broken: dict[str, str] | None = None, peers: object = None) -> object:
    """A run with one benchmark, one figure and one goal."""
    harness = benchmarks.harness
    figure = harness.Figure("end to end", value, "jobs/s", least=50_000)
    sections = {"End to end": harness.Section("end_to_end.py", "Words.", {"jobs": 10}, 1.0, [figure], (30.0, 40.0))}
    goals = harness.goals_of({"End to end": [figure]}, {"end to end": harness.Peer("Sloth", 7_000, "jobs/s")})
    return harness.Run("make bench-peers", [], {"python": "CPython"}, sections, goals, broken or {}, ["A note."], peers)


@pytest.mark.parametrize(
    ("value", "broken", "code"), [(50_000, {}, 0), (49_999, {}, 1), (50_000, {"Sloth": "lost"}, 2), (1, {"Sloth": "lost"}, 2)]
)
def test_exit_code_says_reached_missed_or_broken(
    benchmarks: SimpleNamespace, value: float, broken: dict[str, str], code: int
) -> None:
    run = run_of(benchmarks, value, broken)

    assert run.exit_code == code


def test_goal_has_the_peers_figure_beside_it(benchmarks: SimpleNamespace) -> None:
    printed = benchmarks.program.printed(run_of(benchmarks, 40_000, peers=benchmarks.harness.Beside("", {})))

    (line,) = (line for line in printed.splitlines() if "Sloth" in line)
    assert line.split("  ")[0] == "End to end"
    assert "MISSED" in line
    assert "Sloth: 7,000 jobs/s" in line


def test_goals_among_peers_are_judged_by_those_they_mean(benchmarks: SimpleNamespace) -> None:
    found = contest_of(benchmarks, Givalia=40_000, RQ=1_000, Huey=4_000, beanstalkd=8_000)

    goals, notes = benchmarks.standing.goals(found)

    judged = {goal.figure.name: (goal.figure.value, goal.peer.name, goal.figure.is_reached) for goal in goals}
    assert judged == {
        "end to end, of the best Python library": (10, "Huey", False),
        "end to end, of beanstalkd in memory": (5, "beanstalkd", True),
    }
    assert [note for note in notes if "beanstalkd -b -f0" in note and note.startswith("Not measured")]
    assert [note for note in notes if "Celery" in note and note.startswith("Of a part")]


def test_peer_that_was_early_is_not_punctual(benchmarks: SimpleNamespace) -> None:
    figure, contest = benchmarks.harness.Figure, benchmarks.contest
    hasty = [figure(contest.LATE_P50, 0.1, "ms"), figure(contest.EARLY, 1, "of 300")]
    ours = [figure(contest.LATE_P50, 0.5, "ms"), figure(contest.EARLY, 0, "of 300")]

    better = benchmarks.standing.better({"Hasty": hasty, "Givalia": ours})

    assert better == []


def test_page_names_better_peers_and_missed_goals(benchmarks: SimpleNamespace) -> None:
    found = contest_of(benchmarks, Givalia=5_000, Hare=9_000, Sloth=10)
    found["Hare"].append(benchmarks.harness.Figure(benchmarks.contest.LOST, 3, "of 2,000"))
    how = {"words": "Words.", "repeats": 1, "scale": 1.0, "contestants": {}, "left_out": {}}
    data = {**how, **benchmarks.standing.recorded(found)}
    run = run_of(benchmarks, 40_000, peers=benchmarks.harness.Beside("", data))

    page = benchmarks.document.page([json.loads(json.dumps(benchmarks.program.recorded(run)))])

    lost = page.partition("## Where we lose")[2].partition("\n## ")[0]
    assert "end to end: **Hare** 9,000; Givalia 5,000 jobs/s" in lost
    assert "the servers of Hare lost answered jobs" in lost
    assert "**end to end** is 40,000 jobs/s, where at least 50,000 was aimed at (80 % of it)" in lost
    assert "Sloth" not in lost
    assert "the Python loop 30.0 ms before it, 40.0 ms after it" in page
    assert "A note." in page


@pytest.fixture
def burnt() -> Iterator[int]:
    """A process whose child has used processor time and has ended; its pid."""
    process = subprocess.Popen([sys.executable, "-c", BURNS_IN_A_CHILD], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"burnt\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_processor_time_of_children_that_ended_is_counted(benchmarks: SimpleNamespace, burnt: int) -> None:
    assert benchmarks.rig.cpu_s(burnt) >= 0.3


def test_child_that_ends_while_processor_time_is_read_is_no_error(
    benchmarks: SimpleNamespace, burnt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil = benchmarks.rig.psutil
    reads: list[object] = []

    def children(self: object, *, recursive: bool) -> list[object]:
        reads.append(recursive)
        if len(reads) > 1:
            return []
        raise psutil.NoSuchProcess(0)

    monkeypatch.setattr(psutil.Process, "children", children)

    assert benchmarks.rig.cpu_s(burnt) >= 0.3
    assert reads == [True, True]
