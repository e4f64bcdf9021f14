"""The jobs, changes and stores that the tests of the suite use."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from givalia_core.clock import Mark, Now
from givalia_core.model import (
    DONE,
    WAITING,
    Answered,
    Job,
    JobState,
)
from givalia_core.store.base import (
    Change,
    Claim,
    Commit,
    Filter,
    Opened,
    Retention,
    Route,
    Store,
    Wanted,
)

NOW = Now(timer_us=1_000_000_000, wall_us=1_000_400_000, mono_us=5_000)  # The wall clock is ahead, so that a mix-up shows.
MARK = Mark("boot", 17, NOW.timer_us, NOW.wall_us)
ROUTE = Route("Mail", "any")
KEEP_ALL = Retention(NOW.timer_us, NOW.timer_us, 1_000_000, 1_000_000, 1_000)


def job_id(number: int) -> bytes:
    """Return the id of the job of this number; like the ids of several clients, these are not in the order of seq."""
    return (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)).to_bytes(16, "big")


def request_id(number: int) -> bytes:
    """Return a request id that is no job's."""
    return b"request:" + number.to_bytes(8, "big")


def waiting(seq: int, **fields: Any) -> Job:
    """Return a job as `enq` makes it."""
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
    """Return the guarded change of a job that was read as `job`."""
    return Change(job, job.changed(version=job.version + 1, **fields))


def ended(job: Job, state: JobState = DONE, ago_us: int = 0, forget_in_us: int = 1_000_000) -> Change:
    """Return the change that ends a job, `ago_us` before now."""
    return changed(
        job,
        state=state,
        ended_at_us=NOW.timer_us - ago_us,
        forget_at_us=NOW.timer_us + forget_in_us,
        expires_at_us=None,
    )


def by_seq(store: Store, seqs: Iterable[int]) -> dict[int, Job]:
    """Return the jobs of these numbers that the store has, by seq."""
    found = store.find(Wanted(ids=frozenset(map(job_id, seqs))), NOW)
    return {job.seq: job for job in found.ids.values()}


def claimed(store: Store, limit: int = 100, route: Route = ROUTE) -> list[Job]:
    """Return the jobs that the store offers for lending on a route."""
    return store.find(Wanted(claims=(Claim(route, limit),)), NOW).ready.get(route, [])


def inserts(jobs: Iterable[Job]) -> list[Change]:
    """Return one insert for each job."""
    return [Change(None, job) for job in jobs]


class Suite:
    """The base of all parts of the suite, which makes stores, opens them, and reads them whole."""

    examples = 20  # Random histories to compare with a dictionary,
    steps = 25  # and how long each is.
    derandomize = False

    def make_store(self, folder: Path) -> Store:
        """Return an empty store that is not open yet; its files go into `folder`."""
        raise NotImplementedError

    def reopen(self, store: Store) -> tuple[Store, Opened]:
        """End this store, by a close or as a crash would, and open again what it left."""
        store.close()
        return store, store.open()

    # The tools of the tests.

    _open_stores: list[Store]

    def setup_method(self) -> None:
        self._open_stores = []

    def teardown_method(self) -> None:
        for store in self._open_stores:
            store.close()

    def opened(self, folder: Path, *jobs: Job) -> Store:
        """Return a new, open store with these jobs, which is closed when the test ends."""
        store = self.make_store(folder)
        self._open_stores.append(store)
        store.open()
        if jobs:
            assert store.commit(inserts(jobs), MARK) == Commit()
        return store

    def reopened(self, store: Store) -> tuple[Store, Opened]:
        """Do the same as `reopen`; the store is closed when the test ends."""
        store, opened = self.reopen(store)
        if store not in self._open_stores:
            self._open_stores.append(store)
        return store, opened

    @staticmethod
    def stored(store: Store, seq: int) -> Job | None:
        """Return the job of this seq as the store has it."""
        return by_seq(store, {seq}).get(seq)

    @staticmethod
    def listed(store: Store, wanted: Filter = Filter(), limit: int = 3, now: Now = NOW) -> list[Job]:  # noqa: B008
        """Return all jobs of a listing, which is read page by page."""
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
