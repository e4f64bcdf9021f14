"""Jobs come in the order of their dues."""

from __future__ import annotations

from pathlib import Path

from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    ENDED,
    RUNNING,
    STORED_STATES,
)
from givalia_core.store.base import (
    VARIANTS_MAX,
    Filter,
    Near,
    Route,
    Span,
    Timer,
    Wanted,
)
from givalia_core.store.suite.kit import MARK, NOW, ROUTE, Suite, by_seq, changed, claimed, waiting


class Orders(Suite):
    """Jobs to lend, near timers, expired jobs."""

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
