"""Jobs are found by each of their names."""

from __future__ import annotations

import random
from pathlib import Path

from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    REQUESTS_KEPT,
    REQUESTS_MOST,
    Answered,
)
from givalia_core.store.base import (
    Change,
    Commit,
    Found,
    Retention,
    Wanted,
)
from givalia_core.store.suite.kit import KEEP_ALL, MARK, NOW, Suite, changed, ended, inserts, job_id, request_id, waiting


class Finding(Suite):
    """Finding by ids and keys."""

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


class Remembering(Suite):
    """Finding by requests, whose answers a job keeps."""

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
