"""Jobs are listed page by page, and counted."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from givalia_core.model import (
    DEAD,
    DONE,
    ENDED,
    RUNNING,
    STORED_STATES,
    WAITING,
    Job,
    JobState,
)
from givalia_core.store.base import (
    READY_COUNTED_TO,
    ROW_BYTES,
    SCAN_MAX,
    Filter,
    Route,
    Store,
    by_module,
)
from givalia_core.store.suite.kit import KEEP_ALL, MARK, NOW, Suite, changed, ended, inserts, waiting


class Listings(Suite):
    """Listings and counts."""

    def test_pages_show_every_job_once_and_then_end(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, 12)]
        store = self.opened(tmp_path, *jobs)

        for limit in (1, 2, 3, 10, 11, 12, 500):
            assert sorted(self.listed(store, limit=limit)) == jobs

    def test_a_listing_shows_what_its_filter_admits(self, tmp_path: Path) -> None:
        jobs = [
            waiting(
                seq, module=module, target_worker=worker, state=state, due_at_us=NOW.timer_us + (seq % 2 or -1),
                ended_at_us=seq * (state in ENDED), forget_at_us=1_000 - seq if state in ENDED else None,
            )
            for seq, (module, worker, state) in enumerate(
                itertools.product(("Mail", "Fax"), ("any", "w1"), STORED_STATES * 3), 1
            )
        ]  # fmt: skip
        store = self.opened(tmp_path, *jobs)

        for state in (None, JobState.READY, *STORED_STATES):
            for module in (None, "Fax", "None"):
                for worker in (None, "w1"):
                    wanted = Filter(state, module, worker)
                    expected = [job for job in jobs if wanted.admits(job, NOW)]
                    assert sorted(self.listed(store, wanted, limit=2)) == expected

    def test_waiting_and_ready_are_told_apart_on_both_clocks(self, tmp_path: Path) -> None:
        store = self.opened(
            tmp_path,
            waiting(1, due_at_us=NOW.timer_us),
            waiting(2, due_at_us=NOW.timer_us + 1),
            waiting(3, due_at_us=NOW.wall_us, on_wall=True),
            waiting(4, due_at_us=NOW.wall_us + 1, on_wall=True),
        )

        assert [job.seq for job in self.listed(store, Filter(JobState.READY))] == [1, 3]
        assert [job.seq for job in self.listed(store, Filter(WAITING))] == [2, 4]

    def of_many_kinds(self, tmp_path: Path) -> tuple[Store, list[Job]]:
        """Return a store and its jobs: of all states, on two clocks and several routes, with keys and errors."""
        jobs = []
        for seq in range(1, 73):
            state = STORED_STATES[seq % 5]
            on_wall = seq % 3 == 0
            jobs.append(
                waiting(
                    seq, module=("Mail", "Fax")[seq % 2], target_worker=("any", "w1", "any")[seq % 3], priority=seq % 4,
                    state=state, on_wall=on_wall, key=None if seq % 7 == 0 else f"{'cart' if seq % 2 else 'visit'}-{seq}",
                    due_at_us=(NOW.wall_us if on_wall else NOW.timer_us) + (seq * 37 % 29 - 14) * 1_000,
                    error=None if seq % 4 else f"Traceback\nTimeoutError: SMTP {seq % 3}",
                    ended_at_us=(seq * 31 % 97 + 1) * 1_000 if state in ENDED else 0,
                    forget_at_us=NOW.timer_us + seq * 17 % 23 if state in ENDED else None,
                )
            )  # fmt: skip
        return self.opened(tmp_path, *jobs), jobs

    def test_jobs_that_wait_are_listed_by_their_dues(self, tmp_path: Path) -> None:
        store, jobs = self.of_many_kinds(tmp_path)

        for state in (WAITING, JobState.READY):
            expected = [job for job in jobs if job.shown_state(NOW) is state]
            expected.sort(key=lambda job: (job.due_on_timer_us(NOW), job.seq))
            assert len(expected) > 4
            for limit in (1, 2, 500):
                assert self.listed(store, Filter(state), limit) == expected

    def test_jobs_that_have_ended_are_listed_with_the_last_one_first(self, tmp_path: Path) -> None:
        store, jobs = self.of_many_kinds(tmp_path)

        for state in sorted(ENDED):
            expected = sorted((job for job in jobs if job.state is state), key=lambda job: -job.ended_at_us)
            for limit in (1, 2, 500):
                assert self.listed(store, Filter(state), limit) == expected

    def test_a_job_that_ends_again_is_listed_where_it_ended_last(self, tmp_path: Path) -> None:
        store, _ = self.of_many_kinds(tmp_path)
        dead = self.listed(store, Filter(DEAD))
        again = changed(dead[-1], state=WAITING, ended_at_us=0, forget_at_us=None)
        store.commit([again], MARK)
        without = self.listed(store, Filter(DEAD))
        store.commit([ended(again.job, DEAD)], MARK)

        assert without == dead[:-1]
        assert [job.seq for job in self.listed(store, Filter(DEAD))] == [dead[-1].seq, *(job.seq for job in dead[:-1])]

    def test_each_part_of_a_filter_counts(self, tmp_path: Path) -> None:
        store, jobs = self.of_many_kinds(tmp_path)
        told = NOW.wall_us
        parts: list[dict[str, Any]] = [
            {"key_prefix": "cart-"}, {"key_prefix": "cart-1"}, {"key_prefix": ""}, {"due_before_us": told - 3_000},
            {"due_after_us": told + 2_000}, {"due_after_us": told - 5_000, "due_before_us": told + 5_000},
            {"ended_after_us": 50_000 - NOW.told_ahead_us}, {"error": "smtp 1"}, {"error": "no such words"},
            {"module": "Fax", "error": "timeouterror", "key_prefix": "visit"},
        ]  # fmt: skip

        for part in parts:
            for state in (None, JobState.READY, *STORED_STATES):
                wanted = Filter(state, **part)
                expected = [job for job in jobs if wanted.admits(job, NOW)]
                assert sorted(self.listed(store, wanted, limit=2)) == expected

    def test_a_listing_in_the_order_of_enq_is_that_whatever_the_state(self, tmp_path: Path) -> None:
        store, jobs = self.of_many_kinds(tmp_path)

        for state in (None, JobState.READY, *STORED_STATES):
            wanted = Filter(state, by_enq=True)
            assert self.listed(store, wanted, limit=2) == [job for job in jobs if wanted.admits(job, NOW)]

    def test_a_page_can_be_cut_behind_each_of_its_jobs(self, tmp_path: Path) -> None:
        store, _ = self.of_many_kinds(tmp_path)

        for state in (None, JobState.READY, *STORED_STATES):
            page = store.page(Filter(state), None, 500, NOW)
            for place, cursor in enumerate(page.cursors, 1):
                assert store.page(Filter(state), cursor, 500, NOW).jobs == page.jobs[place:]

    def test_a_listing_goes_on_behind_its_cursor_when_jobs_have_come_and_gone(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, 7)]
        store = self.opened(tmp_path, *jobs)
        page = store.page(Filter(), None, 3, NOW)

        store.commit([ended(jobs[0], forget_in_us=0), *inserts([waiting(7)])], MARK, KEEP_ALL)

        following = store.page(Filter(), page.after, 9, NOW)
        assert [job.seq for job in page.jobs] == [1, 2, 3]
        assert [job.seq for job in following.jobs] == [4, 5, 6, 7]

    def test_a_page_looks_at_a_bounded_number_of_rows(self, tmp_path: Path) -> None:
        jobs = [waiting(seq) for seq in range(1, SCAN_MAX + 1)]
        rare = waiting(SCAN_MAX + 1, module="Fax")
        store = self.opened(tmp_path, *jobs, rare)

        first = store.page(Filter(module="Fax"), None, 10, NOW)

        assert first.jobs == []
        assert first.after is not None
        assert store.page(Filter(module="Fax"), first.after, 10, NOW).jobs == [rare]

    def of_three_states(self, tmp_path: Path, each: int, **fields: Any) -> Store:
        """Return a store with `each` jobs that wait, then as many that run, then as many that are done."""
        jobs = [waiting(seq, **fields) for seq in range(1, 3 * each + 1)]
        store = self.opened(tmp_path, *jobs)
        run, end = jobs[each : 2 * each], jobs[2 * each :]
        store.commit([*(changed(job, state=RUNNING) for job in run), *map(ended, end)], MARK)
        return store

    @staticmethod
    def pages(store: Store, wanted: Filter, rows: int) -> list[list[int]]:
        """Return the seqs of each page of a listing whose pages look at `rows` rows."""
        pages: list[list[int]] = []
        after: tuple[int, int] | None = None
        while not pages or after is not None:
            page = store.page(wanted, after, 40, NOW, rows)
            pages.append([job.seq for job in page.jobs])
            after = page.after
            assert len(pages) < 100
        return pages

    def test_a_page_looks_at_no_more_rows_than_it_is_told_and_goes_on_behind_them(self, tmp_path: Path) -> None:
        store = self.of_three_states(tmp_path, 20)
        for state, seqs in ((None, range(1, 61)), (WAITING, range(1, 21)), (RUNNING, range(21, 41)), (DONE, range(41, 61))):
            pages = self.pages(store, Filter(state), 7)

            assert list(itertools.chain(*pages)) == list(seqs)
            assert max(map(len, pages)) == 7
            # A store may have an index of waiting jobs by module, and read no other jobs.
            assert state is WAITING or len(self.pages(store, Filter(state, module="Fax"), 7)) > 20 // 7

    def test_a_large_job_counts_as_several_rows_of_a_page(self, tmp_path: Path) -> None:
        store = self.of_three_states(tmp_path, 4, params=bytes(20 * ROW_BYTES))
        for state, seqs in ((None, range(1, 13)), (WAITING, range(1, 5)), (RUNNING, range(5, 9)), (DONE, range(9, 13))):
            pages = self.pages(store, Filter(state), 30)

            assert list(itertools.chain(*pages)) == list(seqs)
            assert max(map(len, pages)) == 2

    def test_counts_are_by_module_and_stored_state(self, tmp_path: Path) -> None:
        job, fax = waiting(1, due_at_us=0), waiting(2, module="Fax")
        store = self.opened(tmp_path, job, fax, waiting(3))
        assert store.counts() == {("Mail", WAITING): 2, ("Fax", WAITING): 1}

        store.commit([changed(job, state=RUNNING), ended(fax, DEAD)], MARK)

        counts = {("Mail", WAITING): 1, ("Mail", RUNNING): 1, ("Fax", DEAD): 1}
        assert store.counts() == counts
        assert self.reopened(store)[0].counts() == counts

    def test_counts_follow_a_job_to_another_module(self, tmp_path: Path) -> None:
        job = waiting(1)
        store = self.opened(tmp_path, job)

        store.commit([changed(job, module="Fax")], MARK)

        assert store.counts() == {("Fax", WAITING): 1}

    def test_ready_jobs_are_counted_by_module_over_routes_and_clocks(self, tmp_path: Path) -> None:
        store = self.opened(
            tmp_path,
            waiting(1, due_at_us=NOW.timer_us),
            waiting(2, due_at_us=NOW.wall_us, on_wall=True, priority=5),
            waiting(3, due_at_us=0, target_worker="w1"),
            waiting(4, due_at_us=NOW.timer_us + 1),
            waiting(5, due_at_us=NOW.wall_us + 1, on_wall=True),
            waiting(6, due_at_us=0, module="Fax"),
            waiting(7, due_at_us=0, module="Fax", state=RUNNING),
            waiting(8, due_at_us=NOW.timer_us + 9, module="Late"),
        )

        assert by_module(store.ready(NOW)) == {"Mail": 3, "Fax": 1}

    def test_the_ready_jobs_of_a_route_are_told_with_the_due_of_the_first(self, tmp_path: Path) -> None:
        store = self.opened(
            tmp_path,
            waiting(1, due_at_us=NOW.timer_us - 5),
            waiting(2, due_at_us=NOW.wall_us - 9, on_wall=True, priority=5),
            waiting(3, due_at_us=NOW.timer_us - 7, priority=-5),
            waiting(4, due_at_us=NOW.timer_us - 1, target_worker="w1"),
            waiting(5, due_at_us=NOW.timer_us + 1, module="Late"),
        )

        counts: Counter[Route] = Counter()
        since: dict[Route, int] = {}
        for found in store.ready(NOW):
            counts[found.route] += found.jobs
            if found.since_us is not None:
                since[found.route] = min(found.since_us, since.get(found.route, found.since_us))

        assert +counts == {Route("Mail", "any"): 3, Route("Mail", "w1"): 1}
        assert since == {Route("Mail", "any"): NOW.timer_us - 9, Route("Mail", "w1"): NOW.timer_us - 1}

    def test_a_backlog_hides_no_other_route(self, tmp_path: Path) -> None:
        jobs = [waiting(seq, due_at_us=0) for seq in range(READY_COUNTED_TO + 10)]
        store = self.opened(tmp_path, *jobs, waiting(READY_COUNTED_TO + 20, module="Zebra", due_at_us=7))

        (found,) = (each for each in store.ready(NOW) if each.route.module == "Zebra" and each.jobs)

        assert (found.jobs, found.since_us) == (1, 7)

    def test_ready_jobs_are_counted_to_a_bound_in_all(self, tmp_path: Path) -> None:
        half = READY_COUNTED_TO // 2 + 10
        jobs = [waiting(seq, module=("Mail", "Fax")[seq % 2], due_at_us=0) for seq in range(2 * half)]
        store = self.opened(tmp_path, *jobs)

        assert sum(by_module(store.ready(NOW)).values()) == READY_COUNTED_TO
