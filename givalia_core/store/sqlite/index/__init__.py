"""The index of the SQLite store finds the jobs of the records: by name, by due, by end. Slots are internal to it.

The index is derived from the records, never synced, and rebuilt when in doubt. Code outside imports only from this file.
"""

from givalia_core.store.sqlite.index import questions
from givalia_core.store.sqlite.index.index import Index, Learned, Update
from givalia_core.store.sqlite.index.jobs import Known
from givalia_core.store.sqlite.index.lane import Lane
from givalia_core.store.sqlite.index.listing import Listing
from givalia_core.store.sqlite.index.opening import DAMAGED, Sealed, begin, close_index, open_index, remake, trim_if_large
from givalia_core.store.sqlite.index.sealing import seal
from givalia_core.store.sqlite.index.upkeep.check import Check
from givalia_core.store.sqlite.index.upkeep.forgetting import drop_bad, forget, take_bad, to_forget
from givalia_core.store.sqlite.index.upkeep.recovery import Rebuild, replay
from givalia_core.store.sqlite.index.upkeep.scrub import Scrub
from givalia_core.store.sqlite.index.upkeep.sweeper import Sweeper
from givalia_core.store.sqlite.index.words import FULL_ERRNOS, allocate

__all__ = [
    "DAMAGED", "FULL_ERRNOS", "Check", "Index", "Known", "Lane", "Learned", "Listing", "Rebuild", "Scrub", "Sealed", "Sweeper",
    "Update", "allocate", "begin", "close_index", "drop_bad", "forget", "open_index", "questions", "remake", "replay", "seal",
    "take_bad", "to_forget", "trim_if_large",
]  # fmt: skip
