"""Jobs are forgotten, and until then outlast every restart."""

from __future__ import annotations

from pathlib import Path

from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    RUNNING,
    WAITING,
)
from givalia_core.store.base import (
    FENCE_COUNTER_BITS,
    Commit,
    Opened,
    Retention,
    Wanted,
    by_module,
)
from givalia_core.store.suite.kit import KEEP_ALL, MARK, NOW, Suite, changed, ended, inserts, waiting


class Forgetting(Suite):
    """Forgetting of ended jobs."""

    def test_an_ended_job_is_forgotten_when_its_time_is_over_and_not_before(self, tmp_path: Path) -> None:
        for state in (DONE, CANCELLED, DEAD):
            job, later, live = waiting(1, key="k"), waiting(2), waiting(3)
            store = self.opened(tmp_path / state, job, later, live)
            store.commit([ended(job, state, forget_in_us=0), ended(later, state, forget_in_us=1)], MARK)
            assert store.forgettable(KEEP_ALL)

            commit = store.commit([], MARK, KEEP_ALL)

            assert commit == Commit(forgotten=1)
            assert {job.seq for job in self.listed(store)} == {2, 3}
            assert store.find(Wanted(past_keys=frozenset({"k"})), NOW).ended == {}
            assert store.counts() == {("Mail", state): 1, ("Mail", WAITING): 1}
            assert not store.forgettable(KEEP_ALL)
            assert store.check() == []

    def test_live_jobs_are_never_forgotten(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1), waiting(2, state=RUNNING))
        nothing_kept = Retention(NOW.timer_us * 9, NOW.timer_us * 9, 0, 0, 100)

        assert not store.forgettable(nothing_kept)
        assert store.commit([], MARK, nothing_kept) == Commit()
        assert len(self.listed(store)) == 2

    def test_beyond_their_number_those_nearest_to_being_forgotten_go_first(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, 11)]
        store = self.opened(tmp_path, *jobs)
        done = [ended(job, (DONE, CANCELLED)[job.seq % 2], 50 + job.seq, 100 - job.seq) for job in jobs[:5]]
        dead = [ended(job, DEAD, 50 + job.seq, 100 - job.seq) for job in jobs[5:]]
        store.commit([*done, *dead], MARK)
        retention = Retention(NOW.timer_us, NOW.timer_us, keep_ended=2, keep_dead=4, limit=100)
        assert store.forgettable(retention)

        commit = store.commit([], MARK, retention)

        assert commit.forgotten == 4
        assert {job.seq for job in self.listed(store)} == {1, 2, 6, 7, 8, 9}
        assert not store.forgettable(retention)

    def test_time_and_number_together_forget_no_more_than_the_stricter_asks(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, 6)]
        store = self.opened(tmp_path, *jobs)
        store.commit([ended(job, DONE, 10 + job.seq, -2 if job.seq <= 2 else job.seq) for job in jobs], MARK)

        commit = store.commit([], MARK, Retention(NOW.timer_us, NOW.timer_us, 2, 0, 100))

        assert commit.forgotten == 3
        assert {job.seq for job in self.listed(store)} == {4, 5}

    def test_what_ended_a_moment_ago_stays_whatever_the_number(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, 5)]
        store = self.opened(tmp_path, *jobs)
        store.commit([ended(job, DONE, job.seq * 10, 1_000 - job.seq * 10) for job in jobs], MARK)
        retention = Retention(NOW.timer_us, NOW.timer_us - 25, 0, 0, 100)

        commit = store.commit([], MARK, retention)

        assert commit.forgotten == 2
        assert {job.seq for job in self.listed(store)} == {1, 2}
        assert not store.forgettable(retention)

    def test_one_that_must_stay_holds_up_no_other_that_may_go(self, tmp_path: Path) -> None:
        fresh, old, older = (waiting(seq) for seq in (1, 2, 3))
        store = self.opened(tmp_path, fresh, old, older)
        store.commit([ended(fresh, DONE, 1, 10), ended(old, DONE, 500, 1_000), ended(older, DONE, 900, 2_000)], MARK)
        retention = Retention(NOW.timer_us, NOW.timer_us - 100, 1, 1, 100)

        commit = store.commit([], MARK, retention)

        assert commit.forgotten == 2
        assert [job.seq for job in self.listed(store)] == [1]

    def test_a_commit_forgets_no_more_than_its_limit(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, 9)]
        store = self.opened(tmp_path, *jobs)
        store.commit([ended(job, (DONE, DEAD)[job.seq % 2], 10 + job.seq, -1) for job in jobs], MARK)
        retention = KEEP_ALL._replace(limit=3)

        forgotten = [store.commit([], MARK, retention).forgotten for _ in range(4)]

        assert forgotten == [3, 3, 2, 0]
        assert store.counts() == {}

    def test_a_job_requeued_in_the_same_commit_is_not_forgotten(self, tmp_path: Path) -> None:
        job = waiting(1)
        store = self.opened(tmp_path, job)
        died = ended(job, DEAD, 10, -1)
        store.commit([died], MARK)

        commit = store.commit([changed(died.job, state=WAITING, ended_at_us=0, forget_at_us=None)], MARK, KEEP_ALL)

        assert commit == Commit()
        assert self.stored(store, 1) is not None


class Restarting(Suite):
    """Restarts."""

    def test_a_new_store_knows_nothing(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        self._open_stores.append(store)

        opened = store.open()

        assert opened.epoch >= 1
        assert opened == Opened(opened.epoch, None, 0, is_new=opened.is_new)
        assert self.listed(store) == []
        assert store.counts() == {}
        assert by_module(store.ready(NOW)) == {}
        assert list(store.running()) == []
        assert store.check() == []

    def test_each_open_gives_a_larger_epoch(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        self._open_stores.append(store)
        epochs = [store.open().epoch]

        for _ in range(4):
            store, opened = self.reopened(store)
            epochs.append(opened.epoch)

        assert epochs == sorted(set(epochs))

    def test_everything_is_there_after_a_restart(self, tmp_path: Path) -> None:
        jobs = [waiting(seq, key=f"k{seq}", expires_at_us=seq) for seq in range(1, 9)]
        store = self.opened(tmp_path, *jobs)
        running = changed(jobs[0], state=RUNNING, fence=1 << 40, expires_at_us=None)
        dead = ended(jobs[1], DEAD)
        store.commit([running, dead], MARK)

        store, opened = self.reopened(store)

        assert opened.mark == MARK
        assert opened.last_seq == 8
        assert {job.seq: job for job in self.listed(store)} == {
            **{job.seq: job for job in jobs},
            1: running.job,
            2: dead.job,
        }
        assert list(store.running()) == [running.job]
        assert len(store.expired(NOW, 100)) == 6
        assert store.commit([changed(jobs[2])], MARK) == Commit()
        assert store.check() == []

    def test_the_last_seq_is_never_given_again_not_even_after_the_newest_job_was_forgotten(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in (1, 2, 3)]
        store = self.opened(tmp_path, *jobs)
        store.commit([ended(job, DONE, 10 + job.seq, -1) for job in jobs[1:]], MARK, KEEP_ALL)

        store, opened = self.reopened(store)
        assert opened.last_seq == 3

        store.commit([ended(jobs[0], DONE, 10, -1)], MARK, KEEP_ALL)
        store, opened = self.reopened(store)
        assert opened.last_seq == 3
        assert self.listed(store) == []

    def test_a_refused_insert_leaves_no_trace_after_a_restart(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1, key="k"))
        store.commit(inserts([waiting(9, key="k")]), MARK)

        store, opened = self.reopened(store)

        assert opened.last_seq in (1, 9)  # A number that was never given may be skipped.
        assert [job.seq for job in self.listed(store)] == [1]

    def test_raised_numbers_are_never_given_again(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(3))
        fence = (9 << FENCE_COUNTER_BITS) + 5

        store.raise_numbers(1_000, fence)
        store, opened = self.reopened(store)

        assert opened.last_seq >= 1_000
        assert opened.epoch > fence >> FENCE_COUNTER_BITS
        assert not store.is_shared or store.find(Wanted(numbers=True), NOW).floor >= fence
        assert opened.mark == MARK
        assert self.listed(store) == [waiting(3)]
        assert store.check() == []

    def test_raising_numbers_lowers_none_and_restarts_go_on_from_them(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path)
        store.raise_numbers(1_000, 9 << FENCE_COUNTER_BITS)
        store.raise_numbers(7, 1 << FENCE_COUNTER_BITS)
        store.commit(inserts([waiting(1_001)]), MARK)

        store, first = self.reopened(store)
        store, second = self.reopened(store)

        assert (first.last_seq, second.last_seq) == (1_001, 1_001)
        assert second.epoch > first.epoch > 9

    def test_an_upgrade_of_the_present_format_changes_nothing(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1))
        store.close()

        before, after = store.upgrade()

        assert before == after >= 1
        assert store.open().last_seq == 1
        assert self.listed(store) == [waiting(1)]

    def test_closing_twice_is_safe(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1))

        store.close()
        store.close()

        assert store.open().last_seq == 1

    def test_a_store_says_what_durability_it_gives_and_describes_itself(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1))

        assert store.durability in ("fsync", "memory")
        assert all(isinstance(name, str) for name in store.describe())
        assert store.has_room() is True

    def test_tidying_changes_nothing_that_can_be_read(self, tmp_path: Path) -> None:
        jobs = [waiting(seq, params=bytes(2_000)) for seq in range(1, 200)]
        store = self.opened(tmp_path)

        for job in jobs:
            store.commit(inserts([job]), MARK)
            store.tidy()

        assert self.listed(store, limit=500) == jobs
        assert store.check() == []
