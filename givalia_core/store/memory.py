"""The reference store: plain dictionaries, nothing on disk.

This is the shortest code that passes the store suite: read it before you write another store. A commit is atomic because
nothing can interrupt it; to reopen the same object is a restart that lost nothing, and the simulation uses it so. Nothing
survives the process, and every answer says so (`memory`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import Any, Final

from givalia_core.clock import Mark, Now
from givalia_core.model import DEAD, RUNNING, WAITING, Job, JobState
from givalia_core.store.base import (
    FENCE_COUNTER_BITS,
    SCAN_MAX,
    VARIANTS_MAX,
    Change,
    Claim,
    Commit,
    Cursor,
    Filter,
    Found,
    Near,
    Opened,
    Page,
    Ready,
    ReadyBudget,
    Retention,
    Route,
    Share,
    Span,
    Timer,
    Wanted,
    rows_of,
)

_FAR = float("inf")
PASSED_OVER: Final = 10_000  # Jobs that ended too recently to be forgotten: a commit passes over at most so many.


class Memory:
    """A store in this process; `givalia_core.store.base.Store` says what each method promises."""

    durability = "memory"
    is_shared = False
    way_to_back_up = "the store is the memory of the server's process: there is nothing that could be backed up"
    is_full = False

    def __init__(self, url: str = "memory:") -> None:  # noqa: ARG002 - As of every store.
        self._epoch = 0
        self._mark: Mark | None = None
        self._last_seq = 0
        self._jobs: dict[int, Job] = {}
        self._seqs: list[int] = []  # Of all jobs in order, and of some that are forgotten.
        self._by_id: dict[bytes, int] = {}
        self._live: dict[str, int] = {}
        self._ended: dict[str, list[tuple[int, int]]] = defaultdict(list)  # key -> sorted (ended_at_us, seq)
        self._by_request: dict[bytes, int] = {}
        self._due: dict[tuple[Route, bool], dict[int, list[tuple[int, int]]]] = {}  # -> rank -> sorted (due, seq)
        self._expiring: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        self._forget: dict[bool, list[tuple[int, int]]] = {False: [], True: []}  # is it dead -> sorted (forget_at, seq)
        self._newest: dict[JobState, list[tuple[int, int]]] = defaultdict(list)  # -> sorted (-ended_at_us, seq)
        self._running: set[int] = set()
        self._counts: Counter[tuple[str, JobState]] = Counter()

    def open(self, *, unsafe: bool = False) -> Opened:  # noqa: ARG002 - As of every store.
        self._epoch += 1
        return Opened(self._epoch, self._mark, self._last_seq)

    def upgrade(self) -> tuple[int, int]:
        return 1, 1

    def commit(
        self,
        changes: Sequence[Change],
        mark: Mark,
        retention: Retention | None = None,
        learned: object = None,  # noqa: ARG002 - As of every store.
    ) -> Commit:
        refused = tuple(place for place, change in enumerate(changes) if not self._apply(change))
        self._mark = mark
        forgotten = self._retire(retention) if retention else 0
        if len(self._seqs) > 2 * len(self._jobs) + SCAN_MAX:
            self._seqs = sorted(self._jobs)
        return Commit(refused, forgotten)

    def _apply(self, change: Change) -> bool:
        was, job = change
        holder = self._live.get(job.key) if job.key is not None and job.is_live else None
        if was is None:
            if job.id in self._by_id or holder is not None:
                return False
            self._last_seq = max(self._last_seq, job.seq)
            insort(self._seqs, job.seq)
        else:
            stored = self._jobs.get(was.seq)
            if stored is None or stored.version != was.version or holder not in (None, was.seq):
                return False
            self._remove(stored)
        self._insert(job)
        return True

    def _insert(self, job: Job) -> None:
        seq = job.seq
        self._jobs[seq] = job
        self._by_id[job.id] = seq
        self._counts[job.module, job.state] += 1
        self._by_request.update((past.request, seq) for past in job.answered if past.request != job.id)
        if job.key is not None:
            if job.is_live:
                self._live[job.key] = seq
            else:
                insort(self._ended[job.key], (job.ended_at_us, seq))
        if job.state is WAITING:
            insort(self._dues(job).setdefault(job.rank, []), (job.due_at_us, seq))
            if job.expires_at_us is not None:
                insort(self._expiring[job.on_wall], (job.expires_at_us, seq))
        elif job.state is RUNNING:
            self._running.add(seq)
        else:
            insort(self._newest[job.state], (-job.ended_at_us, seq))
            if job.forget_at_us is not None:
                insort(self._forget[job.state is DEAD], (job.forget_at_us, seq))

    def _remove(self, job: Job) -> None:
        seq = job.seq
        del self._jobs[seq], self._by_id[job.id]
        self._counts[job.module, job.state] -= 1
        if not self._counts[job.module, job.state]:
            del self._counts[job.module, job.state]
        for past in job.answered:
            self._by_request.pop(past.request, None)
        if job.key is not None:
            if job.is_live:
                del self._live[job.key]
            else:
                _take(self._ended[job.key], (job.ended_at_us, seq))
                if not self._ended[job.key]:
                    del self._ended[job.key]
        if job.state is WAITING:
            ranks = self._dues(job)
            _take(ranks[job.rank], (job.due_at_us, seq))
            if not ranks[job.rank]:
                del ranks[job.rank]
                if not ranks:
                    del self._due[Route(job.module, job.target), job.on_wall]
            if job.expires_at_us is not None:
                _take(self._expiring[job.on_wall], (job.expires_at_us, seq))
        elif job.state is RUNNING:
            self._running.discard(seq)
        else:
            _take(self._newest[job.state], (-job.ended_at_us, seq))
            if job.forget_at_us is not None:
                _take(self._forget[job.state is DEAD], (job.forget_at_us, seq))

    def _dues(self, job: Job) -> dict[int, list[tuple[int, int]]]:
        return self._due.setdefault((Route(job.module, job.target), job.on_wall), {})

    def _retire(self, retention: Retention) -> int:
        forgotten = 0
        for is_dead, queue in self._forget.items():
            beyond = len(queue) - (retention.keep_dead if is_dead else retention.keep_ended)
            for forget_at_us, seq in queue[: retention.limit + PASSED_OVER]:
                if forgotten == retention.limit or (forget_at_us > retention.now_us and beyond <= 0):
                    break
                if forget_at_us > retention.now_us and self._jobs[seq].ended_at_us > retention.ended_before_us:
                    continue
                self._remove(self._jobs[seq])
                beyond -= 1
                forgotten += 1
        return forgotten

    def forgettable(self, retention: Retention) -> bool:
        for is_dead, queue in self._forget.items():
            if not queue:
                continue
            forget_at_us, seq = queue[0]
            over = len(queue) > (retention.keep_dead if is_dead else retention.keep_ended)
            if forget_at_us <= retention.now_us:
                return True
            if over and self._jobs[seq].ended_at_us <= retention.ended_before_us:
                return True
        return False

    def find(self, wanted: Wanted, now: Now) -> Found:
        def jobs(index: dict[Any, int], names: Iterable[Any]) -> dict[Any, Job]:
            return {name: self._jobs[index[name]] for name in names if name in index}

        ended = {key: past[-1][1] for key in wanted.past_keys if (past := self._ended.get(key))}
        share = Share(wanted.claimed_bytes)
        return Found(
            ids=jobs(self._by_id, wanted.ids),
            live=jobs(self._live, wanted.keys),
            ended=jobs(ended, ended),
            requests=jobs(self._by_request, wanted.requests),
            ready={claim.route: ready for claim in wanted.claims if (ready := self._claimable(claim, now, share))},
            variants={plain: variants for plain in wanted.variants if (variants := self._variants(plain))},
            cut=frozenset(share.cut),
        )

    def _variants(self, plain: Route) -> list[Route]:
        start = f"{plain.target} "
        routes = {route for route, _ in self._due if route.module == plain.module and route.target.startswith(start)}
        return sorted(routes)[:VARIANTS_MAX]

    def _claimable(self, claim: Claim, now: Now, share: Share) -> list[Job]:
        ready: list[tuple[int, int, int]] = []
        for on_wall, now_us, shift_us in _clocks(now):
            for rank, dues in self._due.get((claim.route, on_wall), {}).items():
                cut = bisect_right(dues, (now_us, _FAR))
                ready += [(rank, due_us + shift_us, seq) for due_us, seq in dues[: min(cut, claim.limit)]]
        jobs: list[Job] = []
        share.take(claim.route, jobs, (self._jobs[seq] for _, _, seq in sorted(ready)[: claim.limit]))
        return jobs

    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        return [self._near(span, now) for span in spans]

    def _near(self, span: Span, now: Now) -> Near:
        is_ready = False
        parts: list[list[Timer]] = []
        for on_wall, now_us, shift_us in _clocks(now):
            for dues in self._due.get((span.route, on_wall), {}).values():
                cut = bisect_right(dues, (now_us, _FAR))
                is_ready = is_ready or cut > 0
                parts.append([Timer(due_us + shift_us, seq) for due_us, seq in dues[cut : cut + span.limit + 1]])
        timers = list(islice(merge(*parts), span.limit + 1))
        return Near(is_ready, timers[: span.limit], len(timers) > span.limit)

    def running(self) -> Iterable[Job]:
        return [self._jobs[seq] for seq in sorted(self._running)]

    def expired(self, now: Now, limit: int) -> list[Job]:
        found: list[Job] = []
        for on_wall, now_us in ((False, now.timer_us), (True, now.wall_us)):
            queue = self._expiring[on_wall]
            found += [self._jobs[seq] for _, seq in queue[: bisect_right(queue, (now_us, _FAR))][:limit]]
        return found[:limit]

    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int = SCAN_MAX) -> Page:
        jobs: list[Job] = []
        cursors: list[Cursor] = []
        left = rows
        for cursor in self._cursors(wanted, after or (0, 0), now):
            job = self._jobs.get(cursor[1])
            if wanted.is_by_end and wanted.has_ended_before(cursor[0], now):
                break
            if job is not None and wanted.admits(job, now):
                jobs.append(job)
                cursors.append(cursor)
            left -= 1 if job is None else rows_of(len(job.params), len(job.result or b""))
            if len(jobs) == limit or left <= 0:
                return Page(jobs, cursor, cursors)
        return Page(jobs, None, cursors)

    def _cursors(self, wanted: Filter, after: Cursor, now: Now) -> Iterator[Cursor]:
        """Yield the cursors that follow this one, in the order of the listing."""
        if wanted.is_by_end:
            assert wanted.state is not None
            newest = self._newest[wanted.state]
            start = bisect_right(newest, (-after[0], after[1])) if after[0] else 0
            yield from ((-ended_at, seq) for ended_at, seq in newest[start:])
        elif wanted.is_by_due and (after == (0, 0) or after[0]):
            dues = [
                (due_us + shift_us + 1, seq)
                for on_wall, _, shift_us in _clocks(now)
                for (_, is_on_wall), ranks in self._due.items()
                if is_on_wall == on_wall
                for rank in ranks.values()
                for due_us, seq in rank
            ]
            yield from sorted(cursor for cursor in dues if cursor > after)
        else:
            yield from ((0, self._seqs[place]) for place in range(bisect_right(self._seqs, after[1]), len(self._seqs)))

    def counts(self) -> dict[tuple[str, JobState], int]:
        return dict(self._counts)

    def ready(self, now: Now) -> Iterator[Ready]:
        budget = ReadyBudget()
        for route in dict.fromkeys(route for route, _ in self._due):
            left = budget.limit
            firsts: list[int] = []
            for on_wall, now_us, shift_us in _clocks(now):
                dues = self._due.get((route, on_wall), {}).values()
                firsts += [due[0][0] + shift_us for due in dues if due[0][0] <= now_us]
                left -= min(sum(bisect_right(due, (now_us, _FAR)) for due in dues), left)
            count = budget.limit - left
            budget.count(count)
            yield Ready(route, count, min(firsts, default=None))
            if budget.is_spent:
                return

    def raise_numbers(self, seq: int, fence: int) -> None:
        self._last_seq = max(self._last_seq, seq)
        self._epoch = max(self._epoch, fence >> FENCE_COUNTER_BITS)

    def has_room(self) -> bool:
        return True

    def rest(self) -> None:
        """Do nothing."""

    def tidy(self) -> None:
        """Do nothing."""

    def check(self) -> list[str]:
        wrong = [f"seq {seq} is filed under {job.seq}" for seq, job in self._jobs.items() if job.seq != seq]
        counted = Counter((job.module, job.state) for job in self._jobs.values())
        if counted != +self._counts:
            wrong.append(f"the counts say {+self._counts}, the jobs {counted}")
        live = {job.key: seq for seq, job in self._jobs.items() if job.key is not None and job.is_live}
        if live != self._live:
            wrong.append("the index of live keys differs from the jobs")
        return wrong

    def describe(self) -> dict[str, Any]:
        return {"url": "memory:", "jobs": len(self._jobs)}

    def close(self) -> None:
        """Do nothing: the jobs stay in this object."""


def _clocks(now: Now) -> Iterable[tuple[bool, int, int]]:
    """Return for each clock: whether it is the wall clock, its time now, and the shift from its times to timer times."""
    return (False, now.timer_us, 0), (True, now.wall_us, now.timer_ahead_us)


def _take(queue: list[tuple[int, int]], item: tuple[int, int]) -> None:
    del queue[bisect_left(queue, item)]
