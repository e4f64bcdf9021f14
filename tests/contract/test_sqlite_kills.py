"""The index of the SQLite store is right after a kill at any instruction that changes the index."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType

import pytest
from instructions import before_each_instruction
from sqlite_history import make_small

from givalia_core.model import WAITING, Answered
from givalia_core.store.base import Change, Store, Wanted
from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite
from givalia_core.store.sqlite.index import names
from givalia_core.store.sqlite.index.upkeep import sweeper
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, changed, ended, inserts, job_id, request_id, waiting


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that seals, sweeps and cut fronts happen all the time."""
    make_small(monkeypatch.setattr)


def run_killed(work: Callable[[], None], within: str, after: int | None = None) -> int:
    """Run `work` in a fork and kill it before its instruction number `after` in this function of the store.

    Returns the number of instructions, or 0 if the fork was killed at one of them. The fork never returns from here: it would
    run the clean-up of the tests.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        done = 0

        def is_within(code: CodeType) -> bool:
            return code.co_qualname == within and "/givalia_core/store/" in code.co_filename

        def count() -> None:
            nonlocal done
            done += 1
            if done == after:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with before_each_instruction(is_within, count):
                work()
            os.write(writing, b"%d" % done)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        told = file.read()
    os.waitpid(child, 0)
    assert told or after is not None
    return int(told or 0)


def each_kill(
    path: Path, within: str, before: list[list[Change]], last: list[Change], every: int = 1
) -> Iterator[tuple[SQLite, Store]]:
    """The store after a kill at each instruction of a function while it does the last of some commits, with the reference.

    That commit was not acknowledged, and is in the reference if it is in the records.
    """

    def work() -> None:
        store = SQLite(f"sqlite://{path}")
        store.open()
        store.commit(last, MARK)
        store.tidy()

    def prepare() -> None:
        shutil.rmtree(path.parent, ignore_errors=True)
        store = SQLite(f"sqlite://{path}")
        store.open()
        for changes in before:
            assert not store.commit(changes, MARK).refused
        store.close()

    prepare()
    instructions = run_killed(work, within)
    assert instructions
    for number in range(1, instructions + 1, every):
        prepare()
        assert not run_killed(work, within, number)
        store = SQLite(f"sqlite://{path}")
        store.open()
        reference = Memory()
        reference.open()
        for changes in (*before, last):
            reference.commit(changes, MARK)
        assert store.check() == []
        assert store.counts() == reference.counts()
        yield store, reference
        store.close()


def past_of(store: Store, key: str) -> int | None:
    job = store.find(Wanted(past_keys=frozenset({key})), NOW).ended.get(key)
    return None if job is None else job.seq


def test_a_kill_while_a_job_is_linked_behind_later_ends_of_its_key_leaves_one_chain(path: Path) -> None:
    ends = [ended(waiting(seq, key="a"), ago_us=100 - seq).job for seq in (1, 2, 4)]
    first = waiting(3, key="a")

    for store, reference in each_kill(path, "Chains.link", [inserts([*ends, first])], [ended(first, ago_us=99)]):
        for seq in (4, 2, 3, 1):
            assert past_of(store, "a") == past_of(reference, "a") == seq
            for each in (store, reference):
                (job,) = each.find(Wanted(ids=frozenset({job_id(seq)})), NOW).ids.values()
                assert not each.commit([changed(job, state=WAITING, key=None, ended_at_us=0, forget_at_us=None)], MARK).refused


def test_a_kill_while_a_name_is_removed_leaves_the_last_end_of_a_key_before_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names.NameTable, "hash", lambda self, name: name[0] << 8)  # So that entries move.
    other = waiting(1, answered=(Answered(request_id(1), "ext", 1),))
    first = ended(waiting(2, key="a"), ago_us=9).job

    for store, _ in each_kill(path, "NameTable.remove", [inserts([other, first])], [changed(other, answered=())], 11):
        store.commit(inserts([ended(waiting(3, key="a")).job]), MARK)
        assert past_of(store, "a") == 3


def test_a_kill_while_an_ended_job_comes_in_leaves_it_under_its_key(path: Path) -> None:
    for store, _ in each_kill(path, "Chains.link", [[]], inserts([ended(waiting(1, key="a")).job])):
        assert past_of(store, "a") == 1


def test_a_job_that_ends_while_another_of_its_key_comes_and_ends_is_second_in_their_chain(store: SQLite) -> None:
    first = waiting(1, key="a")
    store.commit(inserts([first]), MARK)

    store.commit([ended(first, ago_us=50), *inserts([ended(waiting(2, key="a"), ago_us=10).job])], MARK)

    assert past_of(store, "a") == 2
    assert store.check() == []


def test_a_kill_while_a_job_starts_again_with_other_params_leaves_it_under_its_key(path: Path) -> None:
    ends = [ended(waiting(seq, key="a"), ago_us=100 - seq).job for seq in (1, 2)]
    again = changed(ends[0], state=WAITING, params=b"other", ended_at_us=0, forget_at_us=None)

    for store, _ in each_kill(path, "Index.change", [inserts(ends)], [again]):
        assert store.find(Wanted(keys=frozenset({"a"})), NOW).live["a"] == again.job


def test_a_kill_between_the_two_halves_of_a_sweep_leaves_the_other_jobs_of_the_key(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = ended(waiting(1, key="a"), ago_us=50).job
    goes = [ended(waiting(seq, key="a"), ago_us=50 - seq, forget_in_us=-1).job for seq in (2, 3, 4)]
    for job in (stays, *goes):
        store.commit(inserts([job]), MARK)
    assert store.commit([], MARK, KEEP_ALL).forgotten == 3

    with monkeypatch.context() as patched:
        patched.setattr(sweeper.Sweeper, "drop", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.tidy()
    store.abandon()
    store.open()
    assert past_of(store, "a") == 1
    for _ in range(20):
        store.tidy()

    assert past_of(store, "a") == 1
    store.commit(inserts([waiting(5)]), MARK)
    assert store._core.index.slots.most == 4  # Those of forgotten jobs are used again.


@pytest.mark.parametrize("within", ["Index.insert", "Index._name", "NameTable.add", "Slots.take", "Slots.write", "Lanes.stand"])
def test_a_kill_while_new_jobs_are_entered_leaves_them_under_all_their_names(path: Path, within: str) -> None:
    there = [ended(waiting(1, key="a")).job, waiting(2, key="b")]
    new = [waiting(3, key="a", answered=(Answered(request_id(1), "ext", 1),)), waiting(4, key="c")]

    for store, reference in each_kill(path, within, [inserts(there)], inserts(new), 7):
        wanted = Wanted(
            ids=frozenset(map(job_id, range(1, 5))), keys=frozenset("abc"), past_keys=frozenset("abc"),
            requests=frozenset({request_id(1)}),
        )  # fmt: skip
        assert store.find(wanted, NOW)._replace(learned=None) == reference.find(wanted, NOW)
