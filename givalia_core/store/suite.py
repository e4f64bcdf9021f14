"""The suite that every store passes, ours and other people's: every promise of `base`, each as one test.

Derive a class from `StoreSuite` in a test file of yours, say in `make_store` how a store is made, and run it with pytest.
The last test compares a whole store with a dictionary over random histories; it prints the seed that replays it, and
`GIVALIA_SEED` sets one. Only tests import this file: it needs hypothesis, which the package itself does not.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from givalia_core.clock import Mark, Now
from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    ENDED,
    REQUESTS_KEPT,
    REQUESTS_MOST,
    RUNNING,
    STORED_STATES,
    WAITING,
    Answered,
    Job,
    JobState,
)
from givalia_core.store.base import (
    FENCE_COUNTER_BITS,
    READY_COUNTED_TO,
    ROW_BYTES,
    SCAN_MAX,
    VARIANTS_MAX,
    Change,
    Claim,
    Commit,
    Filter,
    Found,
    Near,
    Opened,
    Retention,
    Route,
    Span,
    Store,
    Timer,
    Wanted,
    by_module,
)

NOW = Now(timer_us=1_000_000_000, wall_us=1_000_400_000, mono_us=5_000)  # The wall clock is ahead, so that mixing shows.
MARK = Mark("boot", 17, NOW.timer_us, NOW.wall_us)
ROUTE = Route("Mail", "any")
KEEP_ALL = Retention(NOW.timer_us, NOW.timer_us, 1_000_000, 1_000_000, 1_000)


def job_id(number: int) -> bytes:
    """The id of the job of this number; not the order of seq, as ids of several clients are not."""
    return (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)).to_bytes(16, "big")


def request_id(number: int) -> bytes:
    """A request id that is no job's."""
    return b"request:" + number.to_bytes(8, "big")


def waiting(seq: int, **fields: Any) -> Job:
    """A job as `enq` makes it."""
    values: dict[str, Any] = {
        "seq": seq,
        "id": job_id(seq),
        "key": None,
        "state": WAITING,
        "module": ROUTE.module,
        "target_worker": ROUTE.target,
        "priority": 0,
        "on_wall": False,
        "due_at_us": NOW.timer_us + 1_000,
        "answered": (Answered(job_id(seq), "enq", NOW.wall_us),),
        "params": b"params",
    }
    return Job(**{**values, **fields})


def changed(job: Job, **fields: Any) -> Change:
    """The guarded change of a job that was read as `job`."""
    return Change(job, job.changed(version=job.version + 1, **fields))


def ended(job: Job, state: JobState = DONE, ago_us: int = 0, forget_in_us: int = 1_000_000) -> Change:
    """The change that ends a job, `ago_us` before now."""
    return changed(
        job,
        state=state,
        ended_at_us=NOW.timer_us - ago_us,
        forget_at_us=NOW.timer_us + forget_in_us,
        expires_at_us=None,
    )


def by_seq(store: Store, seqs: Iterable[int]) -> dict[int, Job]:
    """Those of the jobs of these numbers that the store has."""
    found = store.find(Wanted(ids=frozenset(map(job_id, seqs))), NOW)
    return {job.seq: job for job in found.ids.values()}


def claimed(store: Store, limit: int = 100, route: Route = ROUTE) -> list[Job]:
    """The jobs that the store offers to be lent on a route."""
    return store.find(Wanted(claims=(Claim(route, limit),)), NOW).ready.get(route, [])


def inserts(jobs: Iterable[Job]) -> list[Change]:
    """One insert for each job."""
    return [Change(None, job) for job in jobs]


class StoreSuite:
    """Derive, override `make_store` (and `reopen`, if a restart of this store is anything else), run with pytest."""

    examples = 20  # Random histories to compare with a dictionary,
    steps = 25  # and how long each is.
    derandomize = False

    def make_store(self, folder: Path) -> Store:
        """A store that is not open yet and has nothing in it; files of it go into `folder`."""
        raise NotImplementedError

    def reopen(self, store: Store) -> tuple[Store, Opened]:
        """End this store, by a close or as a crash would, and open again what it left."""
        store.close()
        return store, store.open()

    # What the tests are written with.

    _open_stores: list[Store]

    def setup_method(self) -> None:
        self._open_stores = []

    def teardown_method(self) -> None:
        for store in self._open_stores:
            store.close()

    def opened(self, folder: Path, *jobs: Job) -> Store:
        """A new store, open, holding these jobs; closed when the test ends."""
        store = self.make_store(folder)
        self._open_stores.append(store)
        store.open()
        if jobs:
            assert store.commit(inserts(jobs), MARK) == Commit()
        return store

    def reopened(self, store: Store) -> tuple[Store, Opened]:
        """As `reopen`, and closed when the test ends."""
        store, opened = self.reopen(store)
        if store not in self._open_stores:
            self._open_stores.append(store)
        return store, opened

    @staticmethod
    def stored(store: Store, seq: int) -> Job | None:
        """The job of this seq as the store has it."""
        return by_seq(store, {seq}).get(seq)

    @staticmethod
    def listed(store: Store, wanted: Filter = Filter(), limit: int = 3, now: Now = NOW) -> list[Job]:  # noqa: B008
        """All jobs of a listing, page by page."""
        jobs: list[Job] = []
        after: tuple[int, int] | None = None
        for _ in range(100_000):
            page = store.page(wanted, after, limit, now)
            assert len(page.jobs) <= limit
            jobs += page.jobs
            if page.after is None:
                return jobs
            assert page.after != after, "a cursor that stands still"
            after = page.after
        raise AssertionError("a listing without an end")

    # Inserting.

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

    # Updating.

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

    # Commits.

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

    # Finding.

    def test_jobs_are_found_by_every_name_they_have(self, tmp_path: Path) -> None:
        asked = (Answered(job_id(1), "enq", 1), Answered(request_id(5), "ext", 2))
        job = waiting(1, key="k", answered=asked)
        store = self.opened(tmp_path, job, waiting(2, key="other"))
        names = Wanted(
            ids=frozenset({job.id, job_id(99)}),
            keys=frozenset({"k", "none"}),
            past_keys=frozenset({"k", "none"}),
            requests=frozenset({request_id(5), request_id(99)}),
        )

        found = store.find(names, NOW)

        assert found._replace(learned=None) == Found({job.id: job}, {"k": job}, {}, {request_id(5): job}, {}, {})

    def test_nothing_wanted_finds_nothing(self, tmp_path: Path) -> None:
        store = self.opened(tmp_path, waiting(1, key="k"))

        assert store.find(Wanted(), NOW)._replace(learned=None) == Found({}, {}, {}, {}, {}, {})

    def test_an_ended_job_is_no_longer_live_under_its_key_but_its_past(self, tmp_path: Path) -> None:
        job = waiting(1, key="k")
        store = self.opened(tmp_path, job)
        done = ended(job)
        store.commit([done], MARK)

        found = store.find(Wanted(keys=frozenset({"k"}), past_keys=frozenset({"k"})), NOW)

        assert (found.live, found.ended) == ({}, {"k": done.job})

    def test_a_past_key_is_the_job_that_ended_last_whatever_its_seq(self, tmp_path: Path) -> None:
        old = [
            waiting(seq, key="k", state=state, ended_at_us=end, forget_at_us=10**12)
            for seq, state, end in ((1, DEAD, 500), (2, DONE, 900), (3, CANCELLED, 700))
        ]
        store = self.opened(tmp_path, *old, waiting(4, key="k"))

        found = store.find(Wanted(past_keys=frozenset({"k"})), NOW)

        assert found.ended == {"k": old[1]}

    def test_a_job_that_ends_under_the_key_of_a_live_one_is_found_when_that_has_ended_and_is_forgotten(
        self, tmp_path: Path
    ) -> None:
        renamed, live = waiting(1, key="other"), waiting(2, key="k")
        store = self.opened(tmp_path, renamed, live)
        first = Change(renamed, renamed.changed(key="k", state=DONE, version=2, ended_at_us=500, forget_at_us=10**12))
        last = Change(live, live.changed(state=DONE, version=2, ended_at_us=900, forget_at_us=1))
        store.commit([first], MARK)
        store.commit([last], MARK)
        assert store.find(Wanted(past_keys=frozenset({"k"})), NOW).ended == {"k": last.job}

        store.commit([], MARK, Retention(NOW.timer_us, 0, 10, 10, 100))

        assert store.find(Wanted(past_keys=frozenset({"k"})), NOW).ended == {"k": first.job}

    def test_keys_are_compared_as_written(self, tmp_path: Path) -> None:
        keys = ["é", "e\u0301", "É", "k", "K", "k ", " k", "ключ", "鍵", "🗝", "%", "_", "'", '"; --', "a" * 255, "\ufeffk"]
        jobs = [waiting(seq, key=key) for seq, key in enumerate(keys, 1)]
        store = self.opened(tmp_path, *jobs)

        found = store.find(Wanted(keys=frozenset(keys)), NOW)

        assert found.live == {job.key: job for job in jobs}

    def test_params_and_results_are_opaque_bytes(self, tmp_path: Path) -> None:
        odd = [b"", b"\x00", b"\xff" * 9, b"\x93GV1", random.Random(5).randbytes(512 << 10), "ü".encode("latin-1")]
        jobs = [waiting(seq, params=value) for seq, value in enumerate(odd, 1)]
        store = self.opened(tmp_path, *jobs)
        done = [ended(job, ago_us=job.seq) for job in jobs]
        done = [Change(was, job.changed(result=job.params[::-1])) for was, job in done]

        store.commit(done, MARK)

        store, _ = self.reopened(store)
        assert {job.seq: job for job in self.listed(store)} == {job.seq: job for _, job in done}

    def test_no_result_is_not_an_empty_one(self, tmp_path: Path) -> None:
        jobs = [waiting(1, state=DONE, ended_at_us=1, forget_at_us=2, result=None)]
        jobs.append(waiting(2, state=DONE, ended_at_us=3, forget_at_us=4, result=b""))
        store = self.opened(tmp_path, *jobs)

        assert [job.result for job in self.listed(store)] == [None, b""]

    # Requests.

    def test_a_request_is_found_while_the_job_remembers_it(self, tmp_path: Path) -> None:
        job = waiting(1)
        store = self.opened(tmp_path, job)
        for number in range(1, 7):
            past = (*job.answered, Answered(request_id(number), "ext", number))[-REQUESTS_KEPT:]
            change = changed(job, answered=past)
            assert store.commit([change], MARK) == Commit()
            job = change.job

        found = store.find(Wanted(requests=frozenset(request_id(number) for number in range(1, 8))), NOW)

        assert found.requests == {request_id(number): job for number in (3, 4, 5, 6)}

    def test_a_job_is_found_by_each_of_a_thousand_requests_after_a_restart_too(self, tmp_path: Path) -> None:
        numbers = range(1, REQUESTS_MOST)
        job = waiting(1)
        store = self.opened(tmp_path, job)
        every = (*job.answered, *(Answered(request_id(number), "ext", number, number) for number in numbers))
        change = changed(job, answered=every)
        store.commit([change], MARK)
        fewer = changed(change.job, answered=(*every[500:], Answered(request_id(2_000), "ext", 1, 1)))
        store.commit([fewer], MARK)

        wanted = Wanted(requests=frozenset(request_id(number) for number in (*numbers, 2_000)))
        left = {request_id(number): fewer.job for number in (*range(500, REQUESTS_MOST), 2_000)}

        assert store.find(wanted, NOW).requests == left
        store, _ = self.reopened(store)
        assert store.find(wanted, NOW).requests == left

    def test_a_request_is_still_found_when_its_job_has_ended(self, tmp_path: Path) -> None:
        job = waiting(1)
        store = self.opened(tmp_path, job)
        was, over = ended(job, CANCELLED)
        over = over.changed(answered=(*job.answered, Answered(request_id(1), "cancel", 0)))
        store.commit([Change(was, over)], MARK)

        store, _ = self.reopened(store)

        assert store.find(Wanted(requests=frozenset({request_id(1)})), NOW).requests == {request_id(1): over}

    def test_requests_of_a_forgotten_job_are_forgotten(self, tmp_path: Path) -> None:
        job = waiting(1, answered=(Answered(job_id(1), "enq", 1), Answered(request_id(1), "ext", 2)))
        store = self.opened(tmp_path, job)
        store.commit([ended(job, forget_in_us=0)], MARK, KEEP_ALL)

        found = store.find(Wanted(requests=frozenset({request_id(1)}), ids=frozenset({job.id})), NOW)

        assert (found.requests, found.ids) == ({}, {})
        assert store.commit(inserts([waiting(2, id=job.id)]), MARK) == Commit()

    # What comes next.

    def test_ready_jobs_come_by_priority_then_due_then_enq_over_both_clocks(self, tmp_path: Path) -> None:
        ahead = NOW.timer_ahead_us
        due = NOW.timer_us - 1_000
        jobs = [
            waiting(1, due_at_us=due),
            waiting(2, due_at_us=due - 5, priority=-1),
            waiting(3, due_at_us=due - 7 - ahead, on_wall=True),
            waiting(4, due_at_us=due),
            waiting(5, due_at_us=due - ahead, on_wall=True),
            waiting(6, due_at_us=NOW.timer_us, priority=9),
            waiting(7, due_at_us=NOW.wall_us, on_wall=True, priority=9),
            waiting(8, due_at_us=due + 1, on_wall=False),
        ]
        store = self.opened(tmp_path, *jobs)

        assert [job.seq for job in claimed(store)] == [6, 7, 3, 1, 4, 5, 8, 2]
        assert claimed(store) == sorted(jobs, key=lambda job: (job.rank, job.due_on_timer_us(NOW), job.seq))

    def test_a_claim_takes_the_first_of_all_that_are_ready(self, tmp_path: Path) -> None:
        jobs = [
            waiting(seq, due_at_us=(NOW.wall_us if seq % 2 else NOW.timer_us) - seq, on_wall=bool(seq % 2), priority=seq % 3)
            for seq in range(1, 12)
        ]
        store = self.opened(tmp_path, *jobs, waiting(20), waiting(21, priority=9))
        whole = sorted(jobs, key=lambda job: (job.rank, job.due_on_timer_us(NOW), job.seq))

        assert [claimed(store, limit) for limit in (1, 4, 10, 11, 12)] == [whole[:limit] for limit in (1, 4, 10, 11, 12)]

    def test_a_claim_changes_nothing(self, tmp_path: Path) -> None:
        job = waiting(1, due_at_us=NOW.timer_us)
        store = self.opened(tmp_path, job)

        first = claimed(store)
        store.commit([], MARK)

        assert first == claimed(store) == [job]

    def test_timers_come_by_due_then_enq_whatever_their_priority(self, tmp_path: Path) -> None:
        ahead = NOW.timer_ahead_us
        jobs = [
            waiting(1, due_at_us=NOW.timer_us + 1),
            waiting(2, due_at_us=NOW.timer_us + 9, priority=9),
            waiting(3, due_at_us=NOW.timer_us + 5 - ahead, on_wall=True, priority=-9),
            waiting(4, due_at_us=NOW.timer_us + 5, priority=4),
            waiting(5, due_at_us=NOW.wall_us, on_wall=True),  # Due: not a timer any more.
            waiting(6, due_at_us=NOW.timer_us),
        ]
        store = self.opened(tmp_path, *jobs)

        (near,) = store.upcoming([Span(ROUTE, 100)], NOW)

        assert [timer.seq for timer in near.timers] == [1, 3, 4, 2]
        assert [timer.due_us - NOW.timer_us for timer in near.timers] == [1, 5, 5, 9]
        assert (near.is_ready, near.more) == (True, False)

    def test_a_span_is_cut_at_its_limit_and_says_that_there_is_more(self, tmp_path: Path) -> None:
        timers = [waiting(seq, due_at_us=NOW.timer_us + seq, priority=seq % 3) for seq in range(8, 15)]
        store = self.opened(tmp_path, *timers)
        whole = [Timer(NOW.timer_us + seq, seq) for seq in range(8, 15)]

        answers = store.upcoming([Span(ROUTE, limit) for limit in (1, 6, 7, 8)], NOW)

        assert answers == [Near(False, whole[:1], True), Near(False, whole[:6], True), *[Near(False, whole, False)] * 2]

    def test_what_is_near_on_a_route_are_waiting_jobs_of_it_only(self, tmp_path: Path) -> None:
        fields: list[dict[str, str]] = [{}, {"module": "Fax"}, {"target_worker": "w1"}]
        over = {"ended_at_us": 1, "forget_at_us": 2}
        routes = [ROUTE, Route("Fax", "any"), Route("Mail", "w1"), Route("Fax", "w1"), Route("None", "any")]
        for due_us in (0, 5):
            due = {"due_at_us": NOW.timer_us + due_us}
            jobs = [waiting(seq, **due, **each) for seq, each in enumerate(fields, 1)]
            others = [waiting(4, state=RUNNING, **due)]
            others += [waiting(seq, state=state, **over, **due) for seq, state in enumerate((DEAD, DONE, CANCELLED), 5)]
            store = self.opened(tmp_path / str(due_us), *jobs, *others)

            near = store.upcoming([Span(route, 10) for route in routes], NOW)

            here = [[1], [2], [3], [], []]
            ready, timers = (here, [[]] * 5) if due_us == 0 else ([[]] * 5, here)
            assert [[job.seq for job in claimed(store, route=route)] for route in routes] == ready
            assert [each.is_ready for each in near] == [bool(seqs) for seqs in ready]
            assert [[timer.seq for timer in each.timers] for each in near] == timers

    def test_a_job_that_moved_is_near_in_its_new_place_only(self, tmp_path: Path) -> None:
        job = waiting(1, due_at_us=NOW.timer_us + 5)
        store = self.opened(tmp_path, job)
        moved = changed(job, due_at_us=NOW.timer_us - 5, module="Fax", priority=3)
        store.commit([moved], MARK)

        near = store.upcoming([Span(ROUTE, 9), Span(Route("Fax", "any"), 9)], NOW)

        assert near == [Near(False, [], False), Near(True, [], False)]
        assert (claimed(store), claimed(store, route=Route("Fax", "any"))) == ([], [moved.job])

    def test_the_variants_of_a_route_are_those_on_which_jobs_wait(self, tmp_path: Path) -> None:
        jobs = [
            waiting(1, specifier=">=2"),
            waiting(2, specifier=">=2", priority=3),
            waiting(3, specifier="<3,>=1.5", on_wall=True),
            waiting(4),
            waiting(5, module="Fax", specifier="==1"),
            waiting(6, target_worker="any-other", specifier="==2"),
            waiting(7, target_worker="an", specifier="==3"),
            waiting(8, state=RUNNING, specifier="==4"),
            waiting(9, state=DEAD, ended_at_us=1, forget_at_us=2, specifier="==5"),
        ]
        store = self.opened(tmp_path, *jobs)
        asked = frozenset({ROUTE, Route("Fax", "any"), Route("Fax", "w1"), Route("Mail", "an")})

        found = store.find(Wanted(variants=asked), NOW)

        assert found.variants == {
            ROUTE: [Route("Mail", "any <3,>=1.5"), Route("Mail", "any >=2")],
            Route("Fax", "any"): [Route("Fax", "any ==1")],
            Route("Mail", "an"): [Route("Mail", "an ==3")],
        }
        assert all(variant.plain == plain for plain, variants in found.variants.items() for variant in variants)
        assert [variant.specifier for variant in found.variants[ROUTE]] == ["<3,>=1.5", ">=2"]

    def test_a_variant_is_gone_with_its_last_waiting_job(self, tmp_path: Path) -> None:
        first, second = waiting(1, specifier=">=2"), waiting(2, specifier=">=2")
        store = self.opened(tmp_path, first, second)
        store.commit([changed(first, specifier=None)], MARK)
        assert store.find(Wanted(variants=frozenset({ROUTE})), NOW).variants == {ROUTE: [Route("Mail", "any >=2")]}

        store.commit([changed(second, state=RUNNING)], MARK)

        assert store.find(Wanted(variants=frozenset({ROUTE})), NOW).variants == {}
        assert by_seq(store, (1, 2))[1].target == "any"

    def test_of_many_variants_the_first_are_named(self, tmp_path: Path) -> None:
        jobs = [waiting(seq, specifier=f"==1.{seq:03}", on_wall=seq % 2 == 0) for seq in range(1, 2 * VARIANTS_MAX)]
        store = self.opened(tmp_path, *jobs, *[waiting(1_000 + seq, target_worker=f"w{seq}") for seq in range(100)])

        variants = store.find(Wanted(variants=frozenset({ROUTE})), NOW).variants[ROUTE]

        assert variants == [Route("Mail", job.target) for job in jobs[:VARIANTS_MAX]]

    def test_jobs_of_a_variant_are_near_and_claimed_there_only(self, tmp_path: Path) -> None:
        plain, ready = waiting(1, due_at_us=NOW.timer_us), waiting(2, due_at_us=NOW.timer_us, specifier=">=2")
        later = waiting(3, due_at_us=NOW.timer_us + 5, specifier=">=2")
        store = self.opened(tmp_path, plain, ready, later)
        variant = Route("Mail", "any >=2")

        assert store.upcoming([Span(ROUTE, 9), Span(variant, 9)], NOW) == [
            Near(True, [], False), Near(True, [Timer(NOW.timer_us + 5, 3)], False),
        ]  # fmt: skip
        assert (claimed(store), claimed(store, route=variant)) == ([plain], [ready])
        assert sorted(self.listed(store, Filter(target_worker="any"))) == [plain, ready, later]

    def test_no_spans_give_no_answers(self, tmp_path: Path) -> None:
        assert self.opened(tmp_path, waiting(1)).upcoming([], NOW) == []

    def test_running_names_every_running_job_and_no_other(self, tmp_path: Path) -> None:
        jobs = [
            waiting(seq, state=state, ended_at_us=seq * (state in ENDED), forget_at_us=9 if state in ENDED else None)
            for seq, state in enumerate(STORED_STATES * 2, 1)
        ]
        store = self.opened(tmp_path, *jobs)

        assert list(store.running()) == [job for job in jobs if job.state is RUNNING]

    def test_expired_names_waiting_jobs_whose_time_to_start_has_passed(self, tmp_path: Path) -> None:
        jobs = [
            waiting(1, expires_at_us=NOW.timer_us),
            waiting(2, expires_at_us=NOW.timer_us + 1),
            waiting(3, expires_at_us=NOW.wall_us, on_wall=True),
            waiting(4, expires_at_us=NOW.wall_us + 1, on_wall=True),
            waiting(5),
            waiting(6, expires_at_us=5, state=RUNNING),
            waiting(7, expires_at_us=5),
        ]
        store = self.opened(tmp_path, *jobs)

        assert {job.seq for job in store.expired(NOW, 10)} == {1, 3, 7}
        assert len(store.expired(NOW, 2)) == 2
        assert all(job.is_expired(NOW) for job in store.expired(NOW, 10))

    # Listing and counting.

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
        """A store with jobs of all states, on two clocks and several routes, with keys and errors."""
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
        """A store with so many jobs that wait, then as many that run, then as many that are done."""
        jobs = [waiting(seq, **fields) for seq in range(1, 3 * each + 1)]
        store = self.opened(tmp_path, *jobs)
        run, end = jobs[each : 2 * each], jobs[2 * each :]
        store.commit([*(changed(job, state=RUNNING) for job in run), *map(ended, end)], MARK)
        return store

    @staticmethod
    def pages(store: Store, wanted: Filter, rows: int) -> list[list[int]]:
        """The seqs of each page of a listing whose pages look at so many rows."""
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
            # A store may have an index of jobs that wait by module, and look at none of the others.
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

    # Forgetting.

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

    # Restarts.

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

    def test_a_store_equals_a_dictionary_after_any_history(self, tmp_path: Path) -> None:
        seed = int(os.environ.get("GIVALIA_SEED") or (0 if self.derandomize else random.SystemRandom().randrange(1 << 32)))
        print(f"GIVALIA_SEED={seed} replays this run")
        folders = (tmp_path / str(number) for number in itertools.count())

        def history() -> RuleBasedStateMachine:
            return History(self, next(folders))

        factory: Any = hypothesis.seed(seed)(history)
        run_state_machine_as_test(
            factory,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=self.steps,
                deadline=None,
                database=None,
                print_blob=True,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )


_KEYS = (None, "a", "b", "ключ")
_ROUTES = (ROUTE, Route("Mail", "w1"), Route("Fax", "any"), Route("Mail", "any >=2"), Route("Mail", "any <2"))
_DRAWN = st.fixed_dictionaries(
    {
        "key": st.sampled_from(_KEYS),
        "route": st.sampled_from(_ROUTES),
        "priority": st.integers(-2, 2),
        "on_wall": st.booleans(),
        "due_us": st.integers(-3, 3),
        "expires_us": st.sampled_from((None, -2, 0, 2)),
        "state": st.sampled_from(STORED_STATES),
        "forget_us": st.integers(-2, 2),
        "params": st.binary(max_size=8),
        "is_stale": st.integers(0, 7).map(lambda number: number == 0),
        "pick": st.integers(0, 1 << 16),
    }
)


class History(RuleBasedStateMachine):
    """A store and a dictionary that are given the same changes; after each step they must say the same of everything."""

    def __init__(self, suite: StoreSuite, folder: Path) -> None:
        super().__init__()
        self.suite = suite
        self.store = suite.make_store(folder)
        self.epoch = self.store.open().epoch
        self.jobs: dict[int, Job] = {}
        self.last_seq = 0
        self.top = 0  # The highest seq of a job that was taken in, forgotten or not.
        self.ends = NOW.timer_us - 1_000_000
        self.requests = 0

    def teardown(self) -> None:
        self.store.close()

    @rule(updates=st.lists(_DRAWN, max_size=4), new=st.lists(_DRAWN, max_size=4))
    def commit(self, updates: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
        """Some updates, then some inserts; some of them on stale versions, ids that exist and keys that are held."""
        changes: list[Change] = []
        for drawn in updates if self.jobs else ():
            was = self.jobs[sorted(self.jobs)[drawn["pick"] % len(self.jobs)]]
            if drawn["is_stale"]:
                was = was.changed(version=was.version + 1)
            if all(was.seq != change.job.seq for change in changes):
                changes.append(Change(was, self._drawn(was, drawn)))
        for drawn in new:
            self.last_seq += 1
            base = waiting(self.last_seq, version=0)
            if drawn["is_stale"] and self.jobs:
                base = base.changed(id=self.jobs[sorted(self.jobs)[drawn["pick"] % len(self.jobs)]].id)
            changes.append(Change(None, self._drawn(base, drawn)))

        refused = self.store.commit(changes, MARK).refused

        assert refused == tuple(place for place, change in enumerate(changes) if not self._apply(change))

    def _drawn(self, base: Job, drawn: dict[str, Any]) -> Job:
        state = drawn["state"]
        now_us = NOW.wall_us if drawn["on_wall"] else NOW.timer_us
        expires_us = drawn["expires_us"] if state is WAITING else None
        self.ends += 1
        self.requests += 1
        answered = base.answered
        if drawn["pick"] % 3 == 0:
            answered = (*answered, Answered(request_id(self.requests), "ext", 0))[-REQUESTS_KEPT:]
        return base.changed(
            version=base.version + 1,
            key=drawn["key"],
            state=state,
            module=drawn["route"].module,
            target_worker=drawn["route"].plain.target,
            specifier=drawn["route"].specifier,
            priority=drawn["priority"],
            on_wall=drawn["on_wall"],
            due_at_us=now_us + drawn["due_us"],
            expires_at_us=None if expires_us is None else now_us + expires_us,
            ended_at_us=self.ends if state in ENDED else 0,
            forget_at_us=NOW.timer_us + drawn["forget_us"] if state in ENDED else None,
            answered=answered,
            params=drawn["params"],
        )

    def _apply(self, change: Change) -> bool:
        was, job = change
        others = [other for other in self.jobs.values() if was is None or other.seq != was.seq]
        if job.key is not None and job.is_live and any(other.is_live and other.key == job.key for other in others):
            return False
        if was is None and any(other.id == job.id for other in others):
            return False
        if was is not None and (was.seq not in self.jobs or self.jobs[was.seq].version != was.version):
            return False
        self.jobs[job.seq] = job
        self.top = max(self.top, job.seq)
        return True

    @rule(keep_ended=st.integers(0, 4), keep_dead=st.integers(0, 4))
    def forget(self, keep_ended: int, keep_dead: int) -> None:
        retention = Retention(NOW.timer_us, NOW.timer_us, keep_ended, keep_dead, 1_000)
        gone: list[Job] = []
        for is_dead, keep in ((False, keep_ended), (True, keep_dead)):
            over = [job for job in self.jobs.values() if job.state in ENDED and (job.state is DEAD) is is_dead]
            over.sort(key=lambda job: job.forget_at_us or 0)
            cut = max(len(over) - keep, 0)
            # Of those that are forgotten at one instant, any may go first: then only the number is certain.
            due = [job for job in over if (job.forget_at_us or 0) <= NOW.timer_us]
            gone += due if cut <= len(due) else self._certain(over, cut)

        assert self.store.forgettable(retention) is bool(gone)
        commit = self.store.commit([], MARK, retention)

        assert commit == Commit(forgotten=len(gone))
        for job in gone:
            del self.jobs[job.seq]

    def _certain(self, over: Sequence[Job], cut: int) -> Sequence[Job]:
        return sorted(over, key=lambda job: (job.forget_at_us or 0, job.seq))[:cut]

    @rule(seq=st.integers(0, 50), boots=st.integers(-1, 2))
    def raise_numbers(self, seq: int, boots: int) -> None:
        epoch = min(self.epoch, 1_000) + boots  # There are stores whose epochs are large: a fence has 63 bits.
        self.store.raise_numbers(seq, (epoch << FENCE_COUNTER_BITS) + 1)

        self.epoch, self.top = max(self.epoch, epoch), max(self.top, seq)

    @rule()
    def restart(self) -> None:
        self.store, opened = self.suite.reopen(self.store)

        assert opened.epoch > self.epoch
        assert opened.last_seq >= self.top
        self.epoch = opened.epoch

    @rule()
    def tidy(self) -> None:
        self.store.tidy()

    @invariant()
    def the_store_says_what_the_dictionary_says(self) -> None:
        jobs, store = self.jobs, self.store
        every = list(jobs.values())
        past: dict[str, Job] = {}
        for job in sorted(every, key=lambda job: job.ended_at_us):
            if job.key is not None and not job.is_live:
                past[job.key] = job
        requests = {past.request: job for job in every for past in job.answered if past.request != job.id}
        asked = frozenset(request_id(number) for number in range(1, self.requests + 1))
        keys = frozenset(key for key in _KEYS if key is not None)
        found = store.find(Wanted(frozenset(job.id for job in every), keys, keys, asked), NOW)
        assert found.ids == {job.id: job for job in every}
        assert found.live == {job.key: job for job in every if job.key is not None and job.is_live}
        assert found.ended == past
        assert found.requests == requests
        assert store.counts() == Counter((job.module, job.state) for job in every)
        ready = [job for job in every if job.state is WAITING and job.is_due(NOW)]
        assert by_module(store.ready(NOW)) == Counter(job.module for job in ready)
        assert list(store.running()) == [jobs[seq] for seq in sorted(jobs) if jobs[seq].state is RUNNING]
        assert sorted(store.expired(NOW, 1_000)) == sorted(job for job in every if job.is_expired(NOW))
        assert sorted(self.suite.listed(store, limit=4)) == sorted(every)
        for route in _ROUTES:
            self._compare_spans(route)
        here = sorted({Route(job.module, job.target) for job in every if job.state is WAITING and job.specifier is not None})
        assert store.find(Wanted(variants=frozenset({ROUTE})), NOW).variants == ({ROUTE: here} if here else {})
        assert store.check() == []

    def _compare_spans(self, route: Route) -> None:
        here = [job for job in self.jobs.values() if job.state is WAITING and (job.module, job.target) == route]
        ready = [job for job in here if job.is_due(NOW)]
        ready.sort(key=lambda job: (job.rank, job.due_on_timer_us(NOW), job.seq))
        timers = sorted(Timer(job.due_on_timer_us(NOW), job.seq) for job in here if not job.is_due(NOW))
        for limit in (2, 100):
            (near,) = self.store.upcoming([Span(route, limit)], NOW)
            assert near == Near(bool(ready), timers[:limit], len(timers) > limit)
            assert claimed(self.store, limit, route) == ready[:limit]
