"""What the index of the SQLite store promises: it agrees with the records, and is made anew if it is strange.

`test_sqlite_kills` kills it at each instruction.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlite_history import SEED, Script, killed, make_small, power_cut

from givalia_core.errors import StoreFailed, StoreFull
from givalia_core.model import RUNNING, WAITING, Job
from givalia_core.store import routes
from givalia_core.store.base import Claim, Route, Span, Wanted, by_module
from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite, chores
from givalia_core.store.sqlite.index import names, opening, runs, slots, words
from givalia_core.store.sqlite.index.upkeep import pages, shards, sweeper
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, changed, claimed, ended, inserts, waiting


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that seals, sweeps and cut fronts happen all the time."""
    make_small(monkeypatch.setattr)


@pytest.fixture
def larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thousand jobs are a few runs."""
    make_small(monkeypatch.setattr, 256, 20)


def test_a_history_with_restarts_of_all_kinds_is_that_of_the_reference(tmp_path: Path) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    until = time.monotonic() + 8
    seed = SEED
    while time.monotonic() < until:
        _live_small(seed, tmp_path)
        seed += 1


# A lane that was freed twice, under two numbers, and then had both given to others.
@pytest.mark.parametrize("seed", [571_274_811])
def test_a_history_that_once_was_another_than_that_of_the_reference(tmp_path: Path, seed: int) -> None:
    _live_small(seed, tmp_path)


def _live_small(seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched.setattr, chance.choice((8, 16, 64)), chance.choice((3, 4, 20)))
        _live(seed, folder / str(seed), chance)


def _live(seed: int, folder: Path, chance: random.Random) -> None:
    script = Script(seed)
    store = SQLite(f"sqlite://{folder}/queue.db")
    store.open()
    for number in range(60):
        step = script.step()
        assert step.do(store) == step.do(script.reference), (seed, number)
        store.tidy()
        if chance.random() < 0.1:
            store._core.scrub.finish()
        if chance.random() < 0.15:
            how = chance.choice(("close", "kill", "power cut"))
            if how == "close":
                store.close()
            else:
                store = killed(store) if how == "kill" else power_cut(store, f"{folder.name}.{number}")
            store.open()
            assert store.check() == [], (seed, number, how)
        if chance.random() < 0.4:
            assert script.seen(store) == script.seen(script.reference), (seed, number)
    store.close()


@pytest.mark.parametrize("look", ["find", "tidy", "commit", "close"])
def test_answers_do_not_wait_for_the_index(store: SQLite, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    entered = Mock(wraps=store._core.index.insert)
    monkeypatch.setattr(store._core.index, "insert", entered)

    store.commit(inserts([waiting(1, key="a")]), MARK)

    assert not entered.called
    if look == "find":
        assert store.find(Wanted(keys=frozenset({"a"})), NOW).live["a"].seq == 1
    elif look == "commit":
        assert store.commit(inserts([waiting(2, key="a")]), MARK).refused == (0,)
    else:
        getattr(store, look)()
    assert entered.called


def test_a_job_that_comes_in_below_those_before_it_is_there_after_a_kill(store: SQLite) -> None:
    high = inserts(waiting(seq, key=f"k{seq}") for seq in range(100, 140))
    low = inserts(waiting(seq, key=f"k{seq}") for seq in range(1, 5))
    store.commit(high, MARK)
    store.commit(low, MARK)
    store.abandon()

    store.open()

    assert store.check() == []
    assert [timer.seq for timer in store.upcoming([Span(Route("Mail", "any"), 5)], NOW)[0].timers] == [1, 2, 3, 4, 100]


def test_half_the_name_of_a_lane_is_dropped(store: SQLite) -> None:
    jobs = [waiting(seq, target_worker=f"w{seq}", due_at_us=5) for seq in (1, 2, 3)]
    store.commit(inserts(jobs[:1]), MARK)
    store.abandon()
    with store.path.with_name("queue.db.index").joinpath("lanes.keys").open("ab") as file:
        file.write(b"\x05\0\0\0\1\2\3\4\xa3du")

    for job in (None, *jobs[1:]):
        store.open()
        store.commit(inserts([job] if job else []), MARK)
        store.abandon()
    store.open()

    assert [claimed(store, route=Route("Mail", f"w{seq}")) for seq in (1, 2, 3)] == [[job] for job in jobs]
    assert store.check() == []


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_commit_that_the_index_has_no_room_for_is_refused_before_it_is_stored(
    store: SQLite, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    first = waiting(1, key="a")
    store.commit(inserts([first]), MARK)
    many = inserts(waiting(seq, key=f"k{seq}", target_worker="w9") for seq in range(2, 1_200))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StoreFull):
            store.commit(many, MARK)
        assert store.is_full
        assert store.commit([changed(first, state=RUNNING)], MARK).refused == ()  # What needs no room goes on.

    assert store.has_room()
    assert store.check() == []
    assert store.counts() == {("Mail", RUNNING): 1}
    assert store.commit(many, MARK).refused == ()


def test_a_store_that_is_opened_again_knows_nothing_of_the_index_it_had(store: SQLite, path: Path) -> None:
    jobs = [waiting(seq) for seq in range(1, 4_000)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job, forget_in_us=-1) for job in jobs[:-1]], MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten:
        store.tidy()
    store.close()
    shutil.rmtree(path.with_name("queue.db.index"))

    store.open()

    assert store.commit([changed(jobs[-1])], MARK).refused == ()


# When its files are not what it left.


def lived(path: Path, seed: int = 7) -> tuple[SQLite, Script]:
    """A store that is open, in the middle of a history."""
    script = Script(seed)
    store = SQLite(f"sqlite://{path}")
    store.open()
    for _ in range(40):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        store.tidy()
    script.last += 1_100  # More than the files have room for at first.
    for each in (store, script.reference):
        each.commit(inserts(waiting(seq, key=f"k{seq}") for seq in range(script.last - 1_099, script.last + 1)), MARK)
    return store, script


def open_files() -> int:
    """How many this process has, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def noise(file: Path) -> None:
    file.write_bytes(random.Random(SEED).randbytes(file.stat().st_size))


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("name", opening._FILES)
@pytest.mark.parametrize("damage", [Path.unlink, half, zeros, noise], ids=["gone", "half", "zeros", "noise"])
def test_a_damaged_index_is_made_anew(path: Path, name: str, damage: Callable[[Path], None]) -> None:
    store, script = lived(path)
    store.close()
    damage(path.with_name("queue.db.index") / name)
    files = open_files()

    store.open()

    assert script.seen(store) == script.seen(script.reference)
    assert [line for line in store.check() if not line.startswith("the index was damaged, and has been rebuilt")] == []
    store.close()
    assert open_files() == files
    store.open()
    assert store.check() == []
    assert script.seen(store) == script.seen(script.reference)
    store.close()


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("name", opening._FILES)
def test_an_index_that_lacks_a_file_after_a_kill_is_made_anew(path: Path, name: str) -> None:
    store, script = lived(path)
    store.abandon()
    (path.with_name("queue.db.index") / name).unlink()

    store.open()

    assert script.seen(store) == script.seen(script.reference)
    store.close()


@pytest.mark.usefixtures("larger")
def test_an_index_that_cannot_be_removed_is_not_taken_for_an_empty_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = lived(path)
    store.close()
    half(path.with_name("queue.db.index") / "slots")
    monkeypatch.setattr(shutil, "rmtree", Mock(side_effect=PermissionError(errno.EPERM, "not permitted", "queue.db.index")))

    with pytest.raises(StoreFailed, match="index"):
        store.open()


def a_link(folder: Path) -> None:
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(elsewhere)


def a_dead_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"not ours")


def a_pipe(folder: Path) -> None:
    shutil.rmtree(folder)
    os.mkfifo(folder)


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("replaced", [a_link, a_dead_link, a_file, a_pipe])
def test_what_has_the_place_of_the_index_and_is_no_folder_makes_way_for_a_new_one(
    path: Path, replaced: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store, script = lived(path)
    store.close()
    folder = path.with_name("queue.db.index")
    replaced(folder)
    elsewhere = folder.with_name("elsewhere")
    before = {each.name: each.read_bytes() for each in elsewhere.iterdir()} if elsewhere.exists() else None

    store.open()

    assert [record.message for record in caplog.records if "is no folder of its own" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert script.seen(store) == script.seen(script.reference)
    store.close()
    assert before == ({each.name: each.read_bytes() for each in elsewhere.iterdir()} if elsewhere.exists() else None)
    store.open()
    assert caplog.messages[1:] == []
    store.close()


def test_the_index_of_another_store_is_made_anew(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "queue.db"
    for place, key in ((path, "a"), (other, "b")):
        store = SQLite(f"sqlite://{place}")
        store.open()
        store.commit(inserts([waiting(1, key=key)]), MARK)
        store.close()
    other.rename(path)

    store = SQLite(f"sqlite://{path}")
    store.open()

    assert set(store.find(Wanted(keys=frozenset({"a", "b"})), NOW).live) == {"b"}
    store.close()


# When the disk is full.


def test_what_a_full_disk_kept_from_being_swept_is_swept_later(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    jobs = [ended(waiting(seq, params=bytes(3_000)), forget_in_us=-1).job for seq in range(1, 41)]

    def forget(some: list[Job]) -> None:
        store.commit(inserts(some), MARK)
        store.commit([], MARK, KEEP_ALL)
        for _ in range(30):
            store.tidy()

    with monkeypatch.context() as patched:
        patched.setattr(sweeper.Records, "drop_changes", Mock(side_effect=full))
        forget(jobs[:20])
    forget(jobs[20:])

    rows = sum(1 for _ in store._core.records.bases(0))
    assert rows <= sweeper.ROWS_AT_ONCE


@pytest.mark.parametrize("how", ["close", "kill", "go on"])
def test_what_the_index_has_no_room_for_behind_a_commit_is_kept_in_memory_and_filed_later(
    store: SQLite, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    script = Script(SEED)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    for number in range(60):
        step = script.step()
        # New jobs are secured before; names and runs are what grows behind a commit.
        with monkeypatch.context() as patched:
            if number > 20:
                patched.setattr(names.Names, "_room", full)
                patched.setattr(runs.Runs, "_write_list", full)
            assert step.do(store) == step.do(script.reference)
            store.tidy()
    assert script.seen(store) == script.seen(script.reference)

    if how == "close":
        store.close()
        store.open()
    elif how == "kill":
        store.abandon()
        store.open()
    for _ in range(20):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        store.tidy()
    store._core.scrub.finish()

    assert store.check() == []
    assert store._core.index.names.is_whole
    assert script.seen(store) == script.seen(script.reference)


# How much it looks at.


@pytest.mark.usefixtures("larger")
def test_forgetting_the_jobs_of_one_key_does_not_go_through_all_of_them_for_each(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROWS_AT_ONCE", 32)
    for first in range(1, 3_000, 1_000):
        jobs = [ended(waiting(seq, key="a"), ago_us=-seq, forget_in_us=seq - 9_000).job for seq in range(first, first + 1_000)]
        store.commit(inserts(jobs), MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten:
        pass

    writes = Mock(wraps=store._core.index.slots.put)
    monkeypatch.setattr(store._core.index.slots, "put", writes)
    while store._core.sweeper.has_work():
        store.tidy()

    assert writes.call_count <= 3 * 3_000  # A job and its two neighbours, however many there are.


@pytest.mark.usefixtures("larger")
def test_jobs_that_ended_before_they_expired_are_not_read_to_find_those_that_expired(store: SQLite) -> None:
    jobs = [waiting(seq, expires_at_us=NOW.timer_us - 1) for seq in range(1, 500)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job) for job in jobs[:-1]], MARK)
    statements: list[str] = []
    store.tidy()
    store._core.index.jobs.clear()
    assert store._core.database is not None
    store._core.database.set_trace_callback(statements.append)

    assert store.expired(NOW, 10) == jobs[-1:]

    assert len(statements) == 1
    store._core.database.set_trace_callback(None)
    again = changed(ended(jobs[0]).job, state=WAITING, expires_at_us=NOW.timer_us - 1, ended_at_us=0, forget_at_us=None)
    assert not store.commit([again], MARK).refused
    assert store.expired(NOW, 10) == [again.job, jobs[-1]]


def test_what_is_ready_is_counted_wherever_it_stands(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    reference = Memory("memory:")
    reference.open()
    jobs: list[Job] = []
    for first in range(1, 400, 20):
        new = [
            waiting(seq, due_at_us=chance.randrange(1_000), on_wall=chance.random() < 0.5) for seq in range(first, first + 20)
        ]
        for each in (store, reference):
            each.commit(inserts(new), MARK)
        jobs += new
        moved = [
            ended(jobs.pop(chance.randrange(len(jobs)))),
            changed(jobs.pop(chance.randrange(len(jobs))), due_at_us=chance.randrange(1_000)),
        ]
        for each in (store, reference):
            each.commit(moved, MARK)
        jobs.append(moved[1].job)
        monkeypatch.setattr(routes, "READY_COUNTED_TO", chance.choice((5, 50, 1_000)))
        monkeypatch.setattr(routes, "READY_COUNTED_LEAST", chance.choice((3, 30)))
        now = NOW._replace(timer_us=chance.randrange(1_000), wall_us=chance.randrange(1_000))
        if chance.random() < 0.3:
            store.find(Wanted(claims=(Claim(Route("Mail", "any"), 7),)), now)  # So that some of it has been read.

        assert by_module(store.ready(now)) == by_module(reference.ready(now))


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("name", ["module", "target_worker", "specifier"])
def test_names_that_were_used_once_leave_nothing_behind(store: SQLite, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_CUT_LEAST", 64)
    lanes_before = len(store._core.index.lanes.by_key)
    for first in range(1, 3_000, 500):
        jobs = [waiting(seq, key=f"k{seq}", **{name: f"N{seq}"}) for seq in range(first, first + 500)]
        store.commit(inserts(jobs), MARK)
        store.commit([ended(job, forget_in_us=-1) for job in jobs], MARK)
    stays = waiting(9_000, key="stays", module="Stays")
    store.commit(inserts([stays]), MARK)
    bytes_before = store.describe()["index_bytes"]

    while store.commit([], MARK, KEEP_ALL).forgotten or store._core.sweeper.has_work():
        store.tidy()
    for _ in range(20):
        store._core.scrub.finish()

    assert len(store._core.index.lanes.by_key) == lanes_before + 1
    assert list(store._core.index.routes) == [Route("Stays", "any")]
    assert store._core.index.targets == {"Stays": {"any"}}
    assert store.describe()["index_bytes"] < bytes_before
    assert store.check() == []
    store.close()
    store.open()
    assert store.check() == []
    assert len(store._core.index.lanes.by_key) == lanes_before + 1
    assert store.find(Wanted(keys=frozenset({"stays"})), NOW).live == {"stays": stays}
    more = inserts(waiting(seq, key=f"k{seq}") for seq in range(10_000, 11_000))
    assert store.commit(more, MARK).refused == ()
    assert store.check() == []


def test_the_table_of_names_is_as_small_as_a_new_one_when_its_names_are_gone_little_by_little(tmp_path: Path) -> None:
    there = slots.Slots(tmp_path, Mock())
    table = names.Names(tmp_path / "names", b"secret", there, Mock())
    new = (tmp_path / "names").stat().st_size
    hashes = [table.hash(b"%d" % number) for number in range(40_000)]
    for hashed in hashes:
        table.add(hashed, slots.FIRST)
    for first, end in ((0, 20_000), (20_000, 30_000), (30_000, 35_000), (35_000, 40_000), *[(0, 0)] * 4):
        for hashed in hashes[first:end]:
            table.remove(hashed, slots.FIRST)

        for shard in range(names.SHARDS):
            shards.tidy(table, shard)
        shards.cut(table)

    assert (tmp_path / "names").stat().st_size < 2 * new
    table.close()
    there.close()


@pytest.mark.usefixtures("larger")
def test_a_disk_that_is_full_while_the_index_is_made_smaller_ends_nothing(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [waiting(seq, key=f"k{seq}", module=f"N{seq}") for seq in range(1, 1_001)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job, forget_in_us=-1) for job in jobs], MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten or store._core.sweeper.has_work():
        store.tidy()
    real = os.open

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def without_new_files(name: Any, *rest: Any) -> int:
        return full() or real(name, *rest) if str(name).endswith(".making") else real(name, *rest)

    monkeypatch.setattr(store._core.scrub, "step", lambda **_: store._core.scrub.finish())
    with monkeypatch.context() as patched:
        patched.setattr(words, "allocate", full)
        patched.setattr(os, "open", without_new_files)
        patched.setattr(names.Names, "_room", full)
        for _ in range(4):
            store._core.scrub.rest_until_s = 0.0
            store.rest()

    assert list(store._core.index.routes) == []
    store.commit(inserts(waiting(seq, module=f"N{seq}") for seq in range(2_000, 2_100)), MARK)
    assert len(store._core.index.routes) == 100
    store.tidy()
    assert store.check() == []


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("left", [0, 20, 400])
def test_runs_whose_entries_are_past_are_laid_together(store: SQLite, path: Path, left: int) -> None:
    runs_of, file = store._core.index.lanes.runs, path.with_name("queue.db.index") / "runs"
    jobs = [waiting(seq, due_at_us=seq * 7 % 1_000, expires_at_us=10**15 if seq % 2 else None) for seq in range(1, 6_001)]
    for first in range(0, 6_000, 500):
        store.commit(inserts(jobs[first : first + 500]), MARK)
    store.commit([ended(job, forget_in_us=-1) for job in jobs[: 6_000 - left]], MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten or store._core.sweeper.has_work():
        store.tidy()
    many, large = len(runs_of), file.stat().st_size

    for _ in range(4):
        store._core.scrub.finish()

    assert len(runs_of) <= 3 + left // 64 < many / 4
    assert file.stat().st_size < large / 2
    assert store.check() == []
    store.abandon()  # As a kill does.
    store.open()
    assert not store._core.index.strangeness
    assert store.check() == []
    assert store.counts() == ({("Mail", WAITING): left} if left else {})


@pytest.mark.parametrize("bit", range(63))
def test_a_flipped_bit_of_a_name_is_found(tmp_path: Path, bit: int) -> None:
    there = slots.Slots(tmp_path, Mock())
    table = names.Names(tmp_path / "names", b"secret", there, Mock())
    hashed = table.hash(b"a name")
    table.add(hashed, slots.FIRST)
    at = table.words.at
    (place,) = (place for place in range(names._DATA, len(table.words)) if at[place])

    at[place] ^= 1 << bit

    with pytest.raises(words.Damaged):
        table.verify(hashed >> 54)
    table.close()
    there.close()


# The scrub.


def test_the_scrub_waits_for_a_moment_of_quiet_and_for_some_seconds_at_most(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = Mock()
    monkeypatch.setattr(store._core.scrub, "go_on", went_on)
    scrub = store._core.scrub
    scrub.rest_until_s, scrub._owed_s = 0.0, 0.0

    def later() -> None:
        scrub._last -= 1.0
        chores.begin(store._core, due_s=0.0)
        store.tidy()

    for _ in range(3):
        later()
    assert not went_on.called

    store.rest()
    (seconds,) = went_on.call_args.args
    assert seconds <= 0.005

    for _ in range(2):
        later()
    assert went_on.call_count == 2
