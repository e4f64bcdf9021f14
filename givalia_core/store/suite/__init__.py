"""The suite that every store passes, ours and third-party ones: each promise of `base` as one test.

Derive a class from `StoreSuite` in a test file of yours, override `make_store` to make a store, and run it with pytest.
The last test compares a whole store with a dictionary over random histories. It prints the seed that replays the run, and
`GIVALIA_SEED` sets the seed. Only tests import this package: it needs hypothesis, which `givalia_core` itself does not.
"""

from givalia_core.store.suite.changing import Committing, Inserting, Updating
from givalia_core.store.suite.finding import Finding, Remembering
from givalia_core.store.suite.history import Histories, History
from givalia_core.store.suite.kit import (
    KEEP_ALL,
    MARK,
    NOW,
    ROUTE,
    by_seq,
    changed,
    claimed,
    ended,
    inserts,
    job_id,
    request_id,
    waiting,
)
from givalia_core.store.suite.lasting import Forgetting, Restarting
from givalia_core.store.suite.listing import Listings
from givalia_core.store.suite.orders import Orders

__all__ = [
    "KEEP_ALL",
    "MARK",
    "NOW",
    "ROUTE",
    "History",
    "StoreSuite",
    "by_seq",
    "changed",
    "claimed",
    "ended",
    "inserts",
    "job_id",
    "request_id",
    "waiting",
]


class StoreSuite(Inserting, Updating, Committing, Finding, Remembering, Orders, Listings, Forgetting, Restarting, Histories):
    """All tests: derive, override `make_store` (and `reopen`, if this store restarts differently), run with pytest."""
