"""Random histories: a store and a dictionary get the same changes, and must say the same."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from givalia_core.model import (
    DEAD,
    ENDED,
    REQUESTS_KEPT,
    RUNNING,
    STORED_STATES,
    WAITING,
    Answered,
    Job,
)
from givalia_core.store.base import (
    FENCE_COUNTER_BITS,
    Change,
    Commit,
    Near,
    Retention,
    Route,
    Span,
    Timer,
    Wanted,
    by_module,
)
from givalia_core.store.suite.kit import MARK, NOW, ROUTE, Suite, claimed, request_id, waiting


class Histories(Suite):
    """The whole store against a dictionary."""

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
    """A store and a dictionary that get the same changes; after each step they must agree on everything."""

    def __init__(self, suite: Suite, folder: Path) -> None:
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
        """Commit some updates, then some inserts; some of them with stale versions, ids that exist and keys that are held."""
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
            # Among jobs with one time of forgetting, those with the lowest seq go first.
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
        epoch = min(self.epoch, 1_000) + boots  # Some stores have large epochs: a fence has 63 bits.
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
