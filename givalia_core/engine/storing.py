"""Reads from the store what a turn must know, and stores what it has decided."""

from __future__ import annotations

from typing import Final

from givalia_core.clock import Timekeeper
from givalia_core.engine.steps import Arrived, Decided, Read
from givalia_core.store.base import Commit, Store, Wanted

NOTHING: Final = Commit()


def read(arrived: Arrived, store: Store) -> Read:
    """Ask the store at once for all that the turn needs."""
    asks, now = arrived.asks(), arrived.now
    found = store.find(asks.wanted, now)
    if asks.requeued:
        # A requeue by id may meet a live job of the same key, and only the job itself says what its key is.
        keys = frozenset(key for job_id in asks.requeued if job_id in found.ids and (key := found.ids[job_id].key))
        if keys:
            found.live.update(store.find(Wanted(keys=keys), now).live)
    expired = store.expired(now, asks.expired) if asks.expired else ()
    forgettable = asks.retention is not None and store.forgettable(asks.retention)
    return Read(arrived, found, expired, forgettable)


def stored(decided: Decided, store: Store, timer: Timekeeper) -> Commit:
    """Commit a turn, if there is anything to commit.

    Raises:
        StoreFull: Nothing of it is stored.
    """
    if not decided.must_commit:
        return NOTHING
    mark = timer.mark(decided.arrived.now, decided.batch.desk.policy.lease_us)
    learned = decided.batch.found.learned
    if learned is None:  # A store of somebody else may not take it.
        return store.commit(decided.changes, mark, decided.retention)
    return store.commit(decided.changes, mark, decided.retention, learned)
