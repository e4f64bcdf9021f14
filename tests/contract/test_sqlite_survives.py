"""Commits of the SQLite store that survive kill -9; and the store's plans, checkpoints and memory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from sqlite_history import killed
from sqlite_rig import CALLS, database, python, read_anew

from givalia_core.model import DEAD, DONE, RUNNING, WAITING, Job, JobState
from givalia_core.store.base import Change, Claim, Filter, Retention, Span, Wanted
from givalia_core.store.sqlite import SQLite, chores, disk
from givalia_core.store.suite import (
    KEEP_ALL,
    MARK,
    NOW,
    ROUTE,
    by_seq,
    changed,
    claimed,
    ended,
    inserts,
    job_id,
    request_id,
    waiting,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("small_ballast")


# What survives.

WRITER = """
import sys
from givalia_core.store.sqlite import store as sqlite_store, disk
from givalia_core.store.sqlite import SQLite
from givalia_core.store.suite import MARK, changed, ended, inserts, waiting
disk.BALLAST_BYTES = 1 << 16
chores.CHECKPOINT_PAGES = 40
store = SQLite(sys.argv[1])
seq = store.open().last_seq
while True:
    jobs = [waiting(seq + number, key=f"k{seq + number}", params=bytes(300)) for number in range(1, 6)]
    store.commit(inserts(jobs), MARK)
    seq += 5
    print("+", seq, flush=True)
    store.commit([ended(jobs[0], forget_in_us=10**9)], MARK)
    print("-", seq - 4, flush=True)
    store.tidy()
"""


def test_kill_9_in_the_middle_of_commits_loses_no_acknowledged_one(path: Path) -> None:
    url = f"sqlite://{path}"
    last, ended_seqs = 0, set()
    for acks in (1, 8, 21, 34):
        with python(WRITER, url) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(acks)]
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        for line in lines:
            if line.endswith("\n"):
                sign, seq = line.split()
                last = max(last, int(seq)) if sign == "+" else last
                ended_seqs |= {int(seq)} if sign == "-" else set()

        store = SQLite(url)
        opened = store.open()
        found = by_seq(store, range(1, last + 1))
        wrong = store.check()
        store.close()

        assert opened.last_seq >= last
        assert set(found) == set(range(1, last + 1))
        assert all(found[seq].state is DONE for seq in ended_seqs)
        assert wrong == []


@pytest.mark.parametrize("modules", [1, 40])
def test_counts_are_right_after_a_kill_however_many_modules_there_are(store: SQLite, modules: int) -> None:
    jobs = [waiting(seq, module=f"m{seq % modules}") for seq in range(1, 81)]
    for job in jobs:
        store.commit(inserts([job]), MARK)
    for job in jobs[:60]:
        store.commit([ended(job)], MARK)
    before = store.counts()

    again = killed(store)
    again.open()

    assert again.counts() == before
    assert sum(count for (_, state), count in before.items() if state is DONE) == 60
    assert again.check() == []
    again.close()


def test_a_torn_end_of_the_log_is_dropped_and_the_rest_stands(store: SQLite, path: Path, tmp_path: Path) -> None:
    in_second_page = 32 + 24 + 4_096 + 512
    sizes = []
    for seq in range(1, 6):
        store.commit(inserts([waiting(seq)]), MARK)
        sizes.append(Path(f"{path}-wal").stat().st_size)

    for cut, expected in ((sizes[4] - 1, 4), (sizes[3] + 512, 4), (sizes[2], 3), (in_second_page, 0)):
        folder = tmp_path / str(cut)
        folder.mkdir(mode=0o700)
        (folder / "queue.db").write_bytes(path.read_bytes())
        (folder / "queue.db-wal").write_bytes(Path(f"{path}-wal").read_bytes()[:cut])
        torn = SQLite(f"sqlite://{folder}/queue.db")
        assert torn.open().last_seq == expected
        assert torn.check() == []
        torn.close()


# How it works.


def test_the_log_is_used_again_and_does_not_grow_without_bound(
    store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 50)
    log = Path(f"{path}-wal")
    sizes = []
    for seq in range(1, 401):
        store.commit(inserts([waiting(seq, key=f"k{seq}", params=bytes(500))]), MARK)
        store.tidy()
        sizes.append(log.stat().st_size)

    assert max(sizes) < 4 * 50 * 4_200
    assert max(sizes[200:]) < 1.5 * max(sizes[:200])
    assert sizes[-1] > 0  # Used again from its start, not truncated.


def test_the_file_shrinks_when_most_jobs_were_forgotten(store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 1)
    monkeypatch.setattr(chores, "VACUUM_PAGES", 20)
    jobs = [waiting(seq, state=DONE, ended_at_us=seq, forget_at_us=1, params=bytes(3_000)) for seq in range(1, 801)]
    store.commit(inserts(jobs), MARK)
    store.tidy()
    before = path.stat().st_size
    store.commit([], MARK, KEEP_ALL)

    for seq in range(1_000, 1_200):
        store.commit(inserts([waiting(seq)]), MARK)
        store.tidy()

    assert path.stat().st_size < before // 2
    assert store.check() == []


def test_nothing_but_a_listing_scans_the_jobs(store: SQLite) -> None:
    states = (WAITING, RUNNING, DONE, DEAD)
    store.commit(
        inserts(
            waiting(
                seq, key=f"k{seq}", state=states[seq % 4], expires_at_us=5, priority=seq % 5, on_wall=bool(seq % 3),
                ended_at_us=seq * (seq % 4 > 1), forget_at_us=seq if seq % 4 > 1 else None,
            )
            for seq in range(1, 400)
        ),
        MARK,
    )  # fmt: skip
    read_anew(store)
    statements: list[str] = []
    database(store).set_trace_callback(statements.append)

    for name in ("find", "claim", "running", "expired"):
        CALLS[name](store)
    names = frozenset(f"k{seq}" for seq in range(30))
    store.find(Wanted(frozenset({job_id(1)}), names, names, frozenset({request_id(1)}), (Claim(ROUTE, 10),)), NOW)
    store.upcoming([Span(ROUTE, 10)], NOW)
    store.commit([], MARK, Retention(5, NOW.timer_us, 10, 10, 20))
    store.commit([changed(waiting(400).changed(seq=4, id=job_id(4)))], MARK)
    for _ in range(20):
        store.tidy()
    for state in (RUNNING, DONE, DEAD):
        store.page(Filter(state), None, 5, NOW)

    database(store).set_trace_callback(None)
    planned = [each for each in dict.fromkeys(statements) if each.startswith(("SELECT", "UPDATE", "DELETE"))]
    plans = {statement: [row[3] for row in database(store).execute(f"EXPLAIN QUERY PLAN {statement}")] for statement in planned}
    assert len(plans) > 5
    assert {statement: plan for statement, plan in plans.items() if any(step.startswith("SCAN") for step in plan)} == {}


def test_a_commit_is_one_transaction_and_one_sync_whatever_its_size(store: SQLite) -> None:
    statements: list[str] = []
    database(store).set_trace_callback(statements.append)

    store.commit(inserts(waiting(seq) for seq in range(1, 1_001)), MARK)

    database(store).set_trace_callback(None)
    assert statements[0].startswith("BEGIN IMMEDIATE")
    assert [each for each in statements if each in ("COMMIT", "ROLLBACK")] == ["COMMIT"]


def test_opening_reads_no_jobs(store: SQLite, path: Path) -> None:
    store.commit(inserts(waiting(seq, params=bytes(200)) for seq in range(1, 20_001)), MARK)
    store.close()

    started = time.perf_counter()
    opened = store.open()

    assert opened.last_seq == 20_000
    assert time.perf_counter() - started < 0.5


def test_a_description_says_where_and_how_large(store: SQLite, path: Path) -> None:
    store.commit(inserts([waiting(1)]), MARK)

    described = store.describe()

    assert described["url"] == f"sqlite://{path}"
    assert described["format"] == disk.FORMAT
    assert described["bytes"] == path.stat().st_size
    assert described["log_bytes"] > 0


def test_a_large_fence_and_far_times_keep_all_their_bits(store: SQLite) -> None:
    job = waiting(1, fence=(1 << 63) - 1, due_at_us=-(1 << 50), expires_at_us=1 << 60, enq_at_us=1 << 60)
    store.commit([Change(None, job)], MARK)

    found: dict[int, Job] = by_seq(store, {1})

    assert found == {1: job}
    assert claimed(store) == [job]
    assert store.page(Filter(JobState.READY), None, 1, NOW).jobs == [job]


def test_a_file_is_told_from_every_other_by_its_device_and_its_number_on_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).touch()
    one, other = (disk.identity(os.fsencode(tmp_path / name)) for name in ("one", "other"))
    status = (tmp_path / "one").stat()

    assert one != other
    assert one == (status.st_ino, os.major(status.st_dev), os.minor(status.st_dev))
    with pytest.raises(FileNotFoundError, match="none"):
        disk.identity(os.fsencode(tmp_path / "none"))
