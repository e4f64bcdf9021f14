"""Claims are bounded in the bytes they bring into memory, and the jobs they leave out are not forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from givalia_core.store.base import Claim, Route, Store, Wanted
from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite
from givalia_core.store.suite import MARK, NOW, inserts, waiting

KIB = 1 << 10
MAIL, FAX = Route("Mail", "any"), Route("Fax", "any")


@pytest.fixture(params=[lambda path: Memory(), lambda path: SQLite(f"sqlite://{path}/q.db")], ids=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    make: Callable[[Path], Store] = request.param
    made = make(tmp_path)
    made.open()
    yield made
    made.close()


def test_claims_bring_no_more_than_they_may_and_say_which_routes_have_more(store: Store) -> None:
    large = [waiting(seq, due_at_us=0, params=bytes(100 * KIB)) for seq in range(1, 61)]
    small = [waiting(seq, due_at_us=0, module="Fax", params=b"small") for seq in range(61, 70)]
    store.commit(inserts([*large, *small]), MARK)

    found = store.find(Wanted(claims=(Claim(MAIL, 100), Claim(FAX, 100)), claimed_bytes=250 * KIB), NOW)

    assert [job.seq for job in found.ready[MAIL]] == [1, 2, 3]
    assert [job.seq for job in found.ready[FAX]] == [61]  # Each route has one, so that none waits for ever.
    assert found.cut == {MAIL, FAX}


def test_claims_of_small_jobs_are_not_cut(store: Store) -> None:
    store.commit(inserts([waiting(seq, due_at_us=0) for seq in range(1, 1_001)]), MARK)

    found = store.find(Wanted(claims=(Claim(MAIL, 900),), claimed_bytes=250 * KIB), NOW)

    assert [job.seq for job in found.ready[MAIL]] == list(range(1, 901))
    assert not found.cut
