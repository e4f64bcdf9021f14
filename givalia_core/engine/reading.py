"""Reads from the store what a turn must know."""

from __future__ import annotations

from givalia_core.engine.steps import Arrived, Read
from givalia_core.store.base import Store, Wanted


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
    return Read(arrived, found, expired, forgettable=forgettable)
