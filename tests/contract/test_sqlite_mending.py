"""Mending of the SQLite store: an index that is damaged is made anew from the records, and bad records are set aside."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import msgpack
import pytest
from sqlite_rig import database, read_anew

from givalia_core.errors import StoreCorrupt
from givalia_core.model import CANCELLED, DONE, RUNNING, WAITING
from givalia_core.store.sqlite import SQLite, mending
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index.slots import AT
from givalia_core.store.sqlite.mending import mend, rebuild, set_bad_aside, settle_in
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.suite import MARK, by_seq, changed, ended, inserts, job_id, waiting

pytestmark = pytest.mark.usefixtures("small_ballast")

JOBS = [waiting(seq, key=f"k{seq}", params=b"12") for seq in (1, 2, 3)]


@pytest.fixture
def core(store: SQLite) -> Core:
    """The parts of a store in which job 2 runs, and job 3 has ended."""
    store.commit(inserts(JOBS), MARK)
    store.commit([changed(JOBS[1], state=RUNNING), ended(JOBS[2])], MARK)
    store.tidy()
    store._core.rebuilds = 0  # The first index was made as all others are.
    return store._core


def spoil(store: SQLite, table: str, place: int, record: bytes) -> None:
    """Replace a part of the only row of a table."""
    (blob,) = database(store).execute(f"SELECT records FROM {table}").fetchone()
    records = msgpack.unpackb(blob)
    records[place] = record
    database(store).execute(f"UPDATE {table} SET records = ?", (msgpack.packb(records),))
    read_anew(store)


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[None]]:
    """Return work that fails so many times, and the list of its calls."""
    calls: list[None] = []

    def work() -> str:
        calls.append(None)
        if len(calls) <= times:
            raise error
        return "done"

    return work, calls


@pytest.mark.parametrize("error", [Damaged("a lane goes round"), IndexError()])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_work_that_meets_damage_is_done_once_more_behind_a_rebuild(core: Core, error: Exception, times: int) -> None:
    work, calls = failing(times, error)

    if times < 2:
        assert mending.mending(core, work) == "done"
    else:
        with pytest.raises(type(error)):
            mending.mending(core, work)

    assert core.rebuilds == min(times, 1)
    assert len(calls) == min(times + 1, 2)


def test_other_errors_of_work_rebuild_nothing(core: Core) -> None:
    work, calls = failing(1, OSError(errno.EIO, "no disk"))

    with pytest.raises(OSError, match="no disk"):
        mending.mending(core, work)

    assert (core.rebuilds, len(calls)) == (0, 1)


@pytest.mark.parametrize("is_sure", [True, False])
def test_damage_that_a_kill_may_have_caused_is_mended_and_not_told(core: Core, is_sure: bool) -> None:
    core.index.was_closed, core.index.is_verified = is_sure, False

    mend(core, Damaged("a lane goes round"))

    assert core.rebuilds == 1
    assert core.damages == ["the index was damaged, and has been rebuilt: a lane goes round"] * is_sure


def test_an_error_without_words_is_told_by_its_name_and_old_damages_make_room(core: Core) -> None:
    core.damages = [f"damage {number}" for number in range(150)]
    core.index.is_verified = True

    mend(core, IndexError())

    assert core.damages[-1] == "the index was damaged, and has been rebuilt: IndexError"
    assert len(core.damages) <= 101


def test_a_rebuild_finds_every_job_as_it_was_and_says_so(store: SQLite, core: Core, caplog: pytest.LogCaptureFixture) -> None:
    before, counts, name = by_seq(store, {1, 2, 3}), store.counts(), core.index.name
    core.counted["Fax", DONE] = 0  # A count of none is no difference.
    store.tidy()

    with caplog.at_level(logging.WARNING):
        rebuild(core, "a lane goes round")

    assert by_seq(store, {1, 2, 3}) == before
    assert store.counts() == counts == {("Mail", WAITING): 1, ("Mail", RUNNING): 1, ("Mail", DONE): 1}
    assert core.index.name == core.fact("index") != name
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is rebuilt from the records, 3 jobs: a lane goes round" in caplog.text
    assert store.check() == []


def test_a_rebuild_without_jobs_is_not_worth_a_word(store: SQLite, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rebuild(store._core, "it was not there")

    assert caplog.records == []
    assert store._core.rebuilds == 2, "the first index was made so too"


def test_counts_that_are_not_those_of_the_records_are_corrected_and_told(
    store: SQLite, core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    counts = store.counts()
    core.count_from({("Mail", WAITING): 9, ("Fax", DONE): 1})
    core.uncounted = {("Fax", DONE): 1}
    core.write_counts({("Fax", DONE): 5})

    rebuild(core, "a lane goes round")

    assert store.counts() == counts
    assert core.in_state[WAITING] == 1
    assert core.uncounted == {}
    assert "the records have 3 jobs, the stored counts had 10: the counts are corrected" in caplog.text
    store.close()
    store.open()
    assert store.counts() == counts


@pytest.mark.parametrize(("table", "place", "seq"), [("jobs", 0, 1), ("jobs", 3, 2), ("changes", 0, 2)])
def test_a_job_with_a_bad_record_is_set_aside_by_a_rebuild(
    store: SQLite, core: Core, caplog: pytest.LogCaptureFixture, table: str, place: int, seq: int
) -> None:
    (blob,) = database(store).execute(f"SELECT records FROM {table}").fetchone()
    spoil(store, table, place, msgpack.unpackb(blob)[place][:-1] + b"?")

    rebuild(core, "a lane goes round")

    assert f"job {seq} of {core.path} is set aside: " in caplog.text
    assert core.quarantine.count == 1
    assert core.quarantine.lines()[0].startswith(f"job {seq} is in quarantine: ")
    assert set(by_seq(store, {1, 2, 3})) == {1, 2, 3} - {seq}
    assert sum(store.counts().values()) == 2
    assert len(store.check()) == 1


def test_a_change_before_the_params_were_replaced_is_past_although_nothing_says_what_came_after(
    store: SQLite, core: Core
) -> None:
    stored = by_seq(store, {1})[1]
    cancelled = ended(stored, CANCELLED)
    store.commit([cancelled], MARK)
    again = changed(cancelled.job, state=WAITING, params=b"other", ended_at_us=0, forget_at_us=None)
    store.commit([again], MARK)
    store.tidy()
    (row,) = database(store).execute("SELECT max(number) FROM changes").fetchone()
    database(store).execute("UPDATE changes SET records = ? WHERE number = ?", (b"\xc1", row))
    core.index.slots.at[core.index.jobs.by_id[job_id(1)].slot + AT] = 0  # Nor does the old index know whose the record was.

    rebuild(core, "a lane goes round")

    assert by_seq(store, {1})[1] == again.job


def test_a_record_of_nobody_knows_whom_is_told_and_nothing_is_set_aside(
    store: SQLite, core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    store.commit([changed(waiting(99))], MARK)
    database(store).execute("INSERT INTO changes VALUES (90, ?)", (msgpack.packb([b"\xc1"]),))

    rebuild(core, "a lane goes round")

    assert f"job ? of {core.path} is set aside" in caplog.text
    assert core.quarantine.count == 0
    assert set(by_seq(store, {1, 2, 3})) == {1, 2, 3}


def test_jobs_that_were_found_bad_are_set_aside_and_the_next_start_reads_every_record(
    store: SQLite, core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(store, "jobs", 1, b"other")
    assert set(by_seq(store, {1, 2, 3})) == {2, 3}

    set_bad_aside(core)

    assert core.quarantine.lines() == ["job 1 is in quarantine: a record does not match its checksum"]
    assert "givalia store check lists what is in quarantine" in caplog.text
    assert core.fact("index") == 0
    assert core.index.jobs.bad == {}
    assert job_id(1) not in core.index.jobs.by_id
    set_bad_aside(core)
    assert core.quarantine.count == 1, "once"
    store.close()
    store.open()
    assert core.rebuilds == 1
    assert sum(store.counts().values()) == 2


def test_pages_that_are_not_in_order_are_refused_before_anything_is_removed(
    store: SQLite, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disorder() -> None:
        raise StoreCorrupt("pages")

    name = core.index.name
    monkeypatch.setattr(core, "refuse_disorder", disorder)

    with pytest.raises(StoreCorrupt, match="pages"):
        rebuild(core, "a lane goes round")

    assert (core.index.name, core.rebuilds) == (name, 0)
    assert set(by_seq(store, {1, 2, 3})) == {1, 2, 3}


def test_upkeep_begins_anew_with_what_the_store_has_by_now(core: Core) -> None:
    before = core.sweeper, core.scrub

    settle_in(core)

    assert core.sweeper is not before[0]
    assert core.scrub is not before[1]
    assert (core.sweeper._changes_to, core.sweeper._jobs_to) == (core.last_number, core.last_seq) == (1, 3)
