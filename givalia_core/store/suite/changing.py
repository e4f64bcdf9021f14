"""Commits: they insert, update, and name what they refuse."""

from __future__ import annotations

from pathlib import Path

from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    RUNNING,
    WAITING,
    Answered,
    JobState,
)
from givalia_core.store.base import (
    Change,
    Commit,
    Wanted,
)
from givalia_core.store.suite.kit import MARK, NOW, Suite, by_seq, changed, ended, inserts, job_id, request_id, waiting


class Inserting(Suite):
    """Jobs that come in."""

    def test_an_inserted_job_is_found_exactly_as_it_was_given(self, tmp_path: Path) -> None:
        full = waiting(
            3, key="cart-7", priority=-4, on_wall=True, expires_at_us=9_000, enq_at_us=8, attempt=2, max_attempts=7,
            timeout_us=1_000_000, expires_us=55, retain_us=66, backoff_us=(1, 2), fence=(5 << 40) + 1, worker="w",
            holder=b"h" * 16, releases=1, replacements=2, deaths=1, error="Traceback: ü", version=12,
            answered=(Answered(job_id(3), "enq", 1), Answered(request_id(1), "ext", 2)), params=b"\x00\xff",
        )  # fmt: skip
        finished = waiting(
            4,
            state=DEAD,
            ended_at_us=77,
            forget_at_us=99,
            stop_asked=True,
            reason="failed",
            result_error="TOO_LARGE",
            result=b"",
        )
        store = self.opened(tmp_path, full, finished)

        found = by_seq(store, {3, 4})

        assert found == {3: full, 4: finished}
        assert type(found[3].state) is JobState
        assert type(found[3].on_wall) is bool
        assert type(found[3].answered[1]) is Answered
        assert type(found[3].backoff_us) is tuple

    def test_an_insert_of_an_id_that_exists_is_refused(self, tmp_path: Path) -> None:
        first = waiting(1)
        store = self.opened(tmp_path, first)

        commit = store.commit(inserts([waiting(2, id=first.id, params=b"other")]), MARK)

        assert commit.refused == (0,)
        assert self.stored(store, 1) == first
        assert self.stored(store, 2) is None

    def test_an_insert_of_an_id_whose_job_has_ended_is_refused(self, tmp_path: Path) -> None:
        first = waiting(1)
        store = self.opened(tmp_path, first)
        store.commit([ended(first)], MARK)

        commit = store.commit(inserts([waiting(2, id=first.id)]), MARK)

        assert commit.refused == (0,)

    def test_an_insert_of_a_key_that_a_live_job_holds_is_refused(self, tmp_path: Path) -> None:
        for state in (WAITING, RUNNING):
            holder = waiting(1, key="k", state=state)
            store = self.opened(tmp_path / state, holder)

            commit = store.commit(inserts([waiting(2, key="k")]), MARK)

            assert commit.refused == (0,)
            assert store.find(Wanted(keys=frozenset({"k"})), NOW).live == {"k": holder}

    def test_an_insert_of_a_key_whose_jobs_have_ended_stands(self, tmp_path: Path) -> None:
        first = waiting(1, key="k")
        store = self.opened(tmp_path, first)
        store.commit([ended(first)], MARK)

        commit = store.commit(inserts([waiting(2, key="k")]), MARK)

        assert commit == Commit()
        assert self.stored(store, 2) is not None

    def test_jobs_without_a_key_never_stand_in_each_others_way(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, *(waiting(seq) for seq in range(1, 20)))

        assert len(self.listed(store)) == 19

    def test_of_two_inserts_with_one_id_or_key_in_one_commit_the_first_stands(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path)

        commit = store.commit(inserts([waiting(1, key="k"), waiting(2, id=job_id(1)), waiting(3, key="k"), waiting(4)]), MARK)

        assert commit.refused == (1, 2)
        assert [job.seq for job in self.listed(store)] == [1, 4]


class Updating(Suite):
    """Jobs that change."""

    def test_an_update_replaces_the_whole_job(self, tmp_path: Path) -> None:
        first = waiting(1, key="k", expires_at_us=5)
        store = self.opened(tmp_path, first)
        change = changed(
            first, key="other", module="Fax", target_worker="w1", priority=3, on_wall=True, due_at_us=5, state=RUNNING,
            expires_at_us=None, attempt=1, fence=9, worker="w1", holder=b"i" * 16, params=b"new", stop_asked=True,
        )  # fmt: skip

        commit = store.commit([change], MARK)

        assert commit == Commit()
        assert self.stored(store, 1) == change.job
        assert store.find(Wanted(keys=frozenset({"k", "other"})), NOW).live == {"other": change.job}

    def test_an_update_decided_on_an_older_version_is_refused(self, tmp_path: Path) -> None:
        first = waiting(1)
        store = self.opened(tmp_path, first)
        newer = changed(first, priority=1)
        store.commit([newer], MARK)

        commit = store.commit([changed(first, priority=2)], MARK)

        assert commit.refused == (0,)
        assert self.stored(store, 1) == newer.job

    def test_an_update_decided_on_a_newer_version_is_refused(self, tmp_path: Path) -> None:
        first = waiting(1)
        store = self.opened(tmp_path, first)

        commit = store.commit([changed(first.changed(version=2))], MARK)

        assert commit.refused == (0,)

    def test_an_update_of_a_job_that_is_gone_is_refused_and_makes_none(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1))

        commit = store.commit([changed(waiting(2), priority=2)], MARK)

        assert commit.refused == (0,)
        assert [job.seq for job in self.listed(store)] == [1]

    def test_an_update_that_would_take_a_key_from_a_live_job_is_refused(self, tmp_path: Path) -> None:
        dead, holder = waiting(1, key="k"), waiting(2, key="k")
        store = self.opened(tmp_path, dead)
        died = ended(dead, DEAD)
        store.commit([died, *inserts([holder])], MARK)

        commit = store.commit([changed(died.job, state=WAITING, ended_at_us=0, forget_at_us=None)], MARK)

        assert commit.refused == (0,)
        assert self.stored(store, 1) == died.job

    def test_a_requeued_job_holds_its_key_again(self, tmp_path: Path) -> None:
        first = waiting(1, key="k")
        store = self.opened(tmp_path, first)
        died = ended(first, DEAD)
        store.commit([died], MARK)
        again = changed(died.job, state=WAITING, ended_at_us=0, forget_at_us=None)

        commit = store.commit([again], MARK)

        found = store.find(Wanted(keys=frozenset({"k"}), past_keys=frozenset({"k"})), NOW)
        assert commit == Commit()
        assert found.live == {"k": again.job}
        assert found.ended == {}


class Committing(Suite):
    """Several changes in one commit."""

    def test_refused_places_are_named_and_the_others_stand(self, tmp_path: Path) -> None:
        one, two, three = (waiting(seq, key=f"k{seq}") for seq in (1, 2, 3))
        store = self.opened(tmp_path, one, two, three)
        changes = [
            changed(one, priority=1),
            changed(two.changed(version=9), priority=1),
            changed(three, priority=1),
            Change(None, waiting(4, key="k2")),
            Change(None, waiting(5, key="k5")),
            Change(None, waiting(6, id=one.id)),
            Change(None, waiting(7)),
        ]

        commit = store.commit(changes, MARK)

        assert commit.refused == (1, 3, 5)
        assert {job.seq: job.priority for job in self.listed(store)} == {1: 1, 2: 0, 3: 1, 5: 0, 7: 0}
        assert store.counts() == {("Mail", WAITING): 5}
        assert store.check() == []

    def test_an_update_may_free_the_key_that_an_insert_takes_in_one_commit(self, tmp_path: Path) -> None:
        first, second = waiting(1, key="k"), waiting(2, key="k")
        store = self.opened(tmp_path, first)
        cancelled = ended(first, CANCELLED)

        commit = store.commit([cancelled, Change(None, second)], MARK)

        found = store.find(Wanted(keys=frozenset({"k"}), past_keys=frozenset({"k"})), NOW)
        assert commit == Commit()
        assert (found.live, found.ended) == ({"k": second}, {"k": cancelled.job})

    def test_an_update_may_free_the_key_that_another_update_takes_in_one_commit(self, tmp_path: Path) -> None:
        first, second = waiting(1, key="k"), waiting(2)
        store = self.opened(tmp_path, first, second)

        commit = store.commit([ended(first), changed(second, key="k")], MARK)

        assert commit == Commit()
        assert store.find(Wanted(keys=frozenset({"k"})), NOW).live["k"].seq == 2

    def test_changes_apply_in_the_order_given(self, tmp_path: Path) -> None:
        first = waiting(1, key="k")
        store = self.opened(tmp_path, first)

        commit = store.commit([Change(None, waiting(2, key="k")), ended(first)], MARK)

        assert commit.refused == (0,)
        assert self.stored(store, 2) is None

    def test_a_guard_that_fails_spoils_no_index(self, tmp_path: Path) -> None:
        one, two = waiting(1, key="a"), waiting(2, key="b", expires_at_us=NOW.timer_us)
        store = self.opened(tmp_path, one, two)
        newer = (*two.answered, Answered(request_id(7), "ext", 1))

        store.commit([changed(two.changed(version=5), answered=newer, state=RUNNING), ended(one)], MARK)

        assert store.find(Wanted(requests=frozenset({request_id(7)})), NOW).requests == {}
        assert store.expired(NOW, 10) == [two]
        assert list(store.running()) == []
        assert store.counts() == {("Mail", WAITING): 1, ("Mail", DONE): 1}
        assert store.check() == []

    def test_an_empty_commit_keeps_the_mark(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path)
        later = MARK._replace(timer_us=MARK.timer_us + 5)

        assert store.commit([], later) == Commit()
        assert self.reopened(store)[1].mark == later

    def test_a_commit_of_ten_thousand_jobs_stands_whole(self, tmp_path: Path) -> None:
        jobs = [waiting(seq, key=f"key-{seq}") for seq in range(1, 10_001)]
        store = self.opened(tmp_path)

        commit = store.commit(inserts(jobs), MARK)

        assert commit == Commit()
        assert store.counts() == {("Mail", WAITING): 10_000}
        assert store.find(Wanted(ids=frozenset(job.id for job in jobs)), NOW).ids == {job.id: job for job in jobs}
