"""The suite that every store passes, ours and other people's: every promise of `base`, each as one test.

Derive a class from `StoreSuite` in a test file of yours, say in `make_store` how a store is made, and run it with pytest.
The last test compares a whole store with a dictionary over random histories; it prints the seed that replays it, and
`GIVALIA_SEED` sets one. Only tests import this package: it needs hypothesis, which the package itself does not.
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
    """Derive, override `make_store` (and `reopen`, if a restart of this store is anything else), run with pytest."""
