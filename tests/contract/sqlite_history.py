"""Random histories of a store, and the final state of each store, to compare with the reference store."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from givalia_core.clock import Mark, Now
from givalia_core.model import CANCELLED, DEAD, DONE, ENDED, RUNNING, WAITING, Answered, split_target
from givalia_core.store.base import Change, Claim, Filter, Retention, Route, Span, Store, Wanted, by_module
from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite, commits, disk
from givalia_core.store.sqlite.index import lanes, runs, sealing
from givalia_core.store.sqlite.index.upkeep import sweeper
from givalia_core.store.suite import NOW, job_id, request_id, waiting

SEED = int(os.environ.get("GIVALIA_SEED", random.randrange(1 << 30)))
KEYS = ("a", "b", "ключ", None, None)
ROUTES = (Route("Mail", "any"), Route("Mail", "any >=2"), Route("Mail", "w1"), Route("Fax", "any"))
ENDS = (DONE, DEAD, CANCELLED)


def make_small(set_to: Callable[[Any, str, Any], None], run: int = 16, front: int = 4) -> None:
    set_to(disk, "BALLAST_BYTES", 1 << 16)
    set_to(sweeper, "ROWS_AT_ONCE", 2)
    set_to(commits, "UNCOUNTED_MOST", 3)
    set_to(runs, "RUN_ENTRIES", run)
    set_to(sealing, "SEAL_ENTRIES", run)
    set_to(lanes, "_FRONT", front)
    set_to(lanes, "_FRONT_MOST", 3 * front)
    set_to(lanes, "_LEAST_OF_A_RUN", 2)


class Step(NamedTuple):
    """A commit, as the reference store does it: its changes, then what is forgotten."""

    changes: list[Change]
    mark: Mark
    retention: Retention | None

    def do(self, store: Store) -> list[Any]:
        answers: list[Any] = [store.commit(self.changes, self.mark)]
        if self.retention is not None:
            answers.append(store.commit([], self.mark, self.retention))
        return answers


class Script:
    """Commits chosen by chance, decided on what the reference holds."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.reference = Memory()
        self.last = 0
        self.requests = itertools.count(1)  # Of two jobs with one request the reference would know one.
        self.now_us = NOW.timer_us
        self.end_us = NOW.timer_us - 1_000_000
        self.reference.open()

    @property
    def now(self) -> Now:
        return Now(self.now_us, self.now_us + 400_000, 5)

    def step(self) -> Step:
        chance = self.chance
        self.now_us += chance.choice((0, 0, chance.randrange(1_500)))
        jobs = list(self.reference._jobs.values())
        chance.shuffle(jobs)
        changes = []
        for _ in range(chance.choice((0, 1, 1, 2, 8, 30))):
            if jobs and chance.random() < 0.6:
                was = jobs.pop()
                fields = self._fields()
                if chance.random() < 0.7:
                    fields["params"] = was.params
                if fields["params"] != was.params or chance.random() < 0.7:
                    fields["key"] = was.key
                if chance.random() < 0.2:
                    fields["answered"] = (*was.answered, Answered(request_id(next(self.requests)), "x", 1))[-3:]
                stale = chance.random() < 0.05
                changes.append(Change(was.changed(version=was.version + stale), was.changed(version=was.version + 1, **fields)))
            else:
                self.last += chance.choice((1, 1, 1, 1, 2))
                changes.append(Change(None, waiting(self.last, **self._fields())))
        retention = None
        if chance.random() < 0.4:
            keep = chance.choice((0, 3, 1_000)), chance.choice((0, 3, 1_000))
            retention = Retention(self.now_us, self.end_us - chance.randrange(3_000), *keep, 1_000)
        return Step(changes, Mark("b", 1, self.now_us, self.now_us), retention)

    def _fields(self) -> dict[str, Any]:
        chance = self.chance
        module, target = chance.choice(ROUTES)
        target_worker, specifier = split_target(target)
        state = chance.choice((WAITING, WAITING, WAITING, WAITING, RUNNING, RUNNING, *ENDS))
        fields = {
            "key": chance.choice(KEYS), "module": module, "target_worker": target_worker, "specifier": specifier,
            "state": state, "priority": chance.choice((0, 0, 1, -3)), "on_wall": chance.random() < 0.3,
            "due_at_us": self.now_us + chance.randrange(-1_000, 3_000), "params": bytes(chance.randrange(300)),
            "expires_at_us": None, "ended_at_us": 0, "forget_at_us": None,
        }  # fmt: skip
        if state in ENDED:
            self.end_us += chance.randrange(1, 50)
            fields |= {"ended_at_us": self.end_us, "forget_at_us": self.now_us + chance.randrange(-500, 2_000)}
        elif state is WAITING and chance.random() < 0.1:
            fields["expires_at_us"] = self.now_us + chance.randrange(-1_000, 1_000)
        return fields

    def seen(self, store: Store) -> dict[str, Any]:
        """All that a store says, in words that are the same for every store."""
        now = self.now
        numbers = range(1, self.last + 2)
        keys = frozenset(key for key in KEYS if key)
        claims = tuple(Claim(route, 100) for route in ROUTES)
        requests = frozenset(past.request for job in self.reference._jobs.values() for past in job.answered)
        wanted = Wanted(frozenset(map(job_id, numbers)), keys, keys, requests, claims, variants=frozenset(ROUTES[:1]))
        seen: dict[str, Any] = {
            "found": store.find(wanted, now)._replace(learned=None),
            "counts": store.counts(),
            "ready": by_module(store.ready(now)),
            "running": list(store.running()),
            "expired": sorted(store.expired(now, 1_000)),
            "upcoming": [store.upcoming([Span(route, limit) for route in ROUTES], now) for limit in (1, 3, 1_000)],
        }
        for state in (None, RUNNING, WAITING, DONE, DEAD):
            jobs, after = [], None
            while True:
                page = store.page(Filter(state=state), after, 7, now)
                jobs += page.jobs
                if (after := page.after) is None:
                    break
            # The reference also lists ended jobs that are never forgotten; others list them among all jobs only.
            seen[f"page {state}"] = sorted(job for job in jobs if state not in ENDED or job.forget_at_us is not None)
        return seen


def power_cut(store: SQLite, name: str) -> SQLite:
    """The store as it is after a restart of the machine: its file and its log, and no index."""
    folder = store.path.parent
    new = folder.with_name(name)
    new.mkdir()
    for file in (store.path, Path(f"{store.path}-wal")):
        if file.exists():
            shutil.copy(file, new / file.name)
    store.abandon()
    shutil.rmtree(folder)
    return SQLite(f"sqlite://{new / store.path.name}")


def killed(store: SQLite) -> SQLite:
    """The store as it is after a kill: what is in its files, and nothing of what was in memory."""
    store.abandon()
    return SQLite(f"sqlite://{store.path}")
