"""Housekeeping of a SQLite store: no chore delays an answer, and each has its period or its threshold.

Most turns have nothing to do here; `SQLite.tidy` checks that before it calls anything.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from givalia_core.model import STORED_STATES
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index import trim_if_large
from givalia_core.store.sqlite.mending import mend, mending, set_bad_aside
from givalia_core.store.sqlite.places import Damaged

TRIM_TOUCHED: Final = 1_000  # After so many changes of jobs and searches, the mapped part of the index is measured.
CHECKPOINT_PAGES: Final = 1_000  # Few enough that no commit waits long behind one.
VACUUM_PAGES: Final = 500
_EMPTY_COUNTS_MOST: Final = 1_000


class Duty(NamedTuple):
    """A chore that is done once a period, beside the work."""

    every_s: float
    do: Callable[[Core], None]


def _look_at_files(core: Core) -> None:
    """Check that the files still have their names; a commit checks too, once the system reports a change."""
    core.files.look()
    if core.lock is not None:
        core.lock.look()


def _look_at_copies(core: Core) -> None:
    core.copies.poll()


def _scrub_beside_work(core: Core) -> None:
    core.scrub.step(is_quiet=False)


CHORES: Final = (Duty(5.0, _look_at_files), Duty(5.0, _look_at_copies), Duty(5.0, _scrub_beside_work))


def begin(core: Core, due_s: float | None = None) -> None:
    """Make each chore due once its period has passed, or at `due_s` on the monotonic clock."""
    now_s = time.monotonic()
    core.chores_due_s = [now_s + chore.every_s if due_s is None else due_s for chore in CHORES]
    core.chore_due_s = min(core.chores_due_s)


def do(core: Core) -> None:
    """Do the chores that are due, and those whose threshold is reached.

    Raises:
        StoreFailed: Another file has the name of the store.
        And errors of SQLite and of the system.
    """
    try:
        try:
            if time.monotonic() >= core.chore_due_s:
                _do_due(core)
            sweep(core)
        except (Damaged, IndexError) as error:
            mend(core, error)
        if core.index.jobs.bad:
            mending(core, lambda: set_bad_aside(core))
        if core.index.touched >= TRIM_TOUCHED:
            core.index.touched = 0
            trim_if_large(core.index)
        if core.rows_since_checkpoint * core.pages_per_row >= CHECKPOINT_PAGES:
            checkpoint(core)
            _vacuum(core)
            _drop_empty_counts(core)
    except sqlite3.Error as error:
        if not core.is_full(error):
            raise
        # The log keeps what could not be copied back; the reserve makes room to go on settling.
        core.room.note_full()


def _do_due(core: Core) -> None:
    for place, chore in enumerate(CHORES):
        now_s = time.monotonic()
        if now_s >= core.chores_due_s[place]:
            core.chores_due_s[place] = now_s + chore.every_s
            core.chore_due_s = min(core.chores_due_s)
            chore.do(core)


def sweep(core: Core) -> None:
    """Remove past records, if there are enough of them, and search for more that were past before the opening."""
    sweeper = core.sweeper
    sweeper.is_behind = True  # Stays so if a full disk ends this call.
    if sweeper.has_work():
        with core.transaction():
            swept = sweeper.write()
        sweeper.drop(swept)
        core.rows_since_checkpoint += swept.rows
    has_more = sweeper.look_back()
    sweeper.is_behind = sweeper.has_work() or has_more


def checkpoint(core: Core) -> None:
    """Copy the log back into the file; the log is then written again from its start, not truncated."""
    _, pages, _ = core.one("PRAGMA wal_checkpoint(PASSIVE)")
    if core.rows_since_checkpoint and pages > 0:
        core.pages_per_row = max(pages / core.rows_since_checkpoint, 0.05)
    core.rows_since_checkpoint = 0


def _vacuum(core: Core) -> None:
    (free,) = core.one("PRAGMA freelist_count")
    (pages,) = core.one("PRAGMA page_count")
    if free > 10 * VACUUM_PAGES and free * 4 > pages:
        # Not `execute`, which would stop at the first page.
        core.connection().executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")


def _drop_empty_counts(core: Core) -> None:
    """Drop the counts of modules that have no job any more, if they are many."""
    if len(core.counted) - _EMPTY_COUNTS_MOST > len(core.index.targets) * len(STORED_STATES):
        with core.transaction():
            core.connection().execute("DELETE FROM counts WHERE jobs = 0")
        core.counted = {name: jobs for name, jobs in core.counted.items() if jobs}
