"""Sifting of a commit that one of its changes blocks: the other changes are stored, and the hold gets a name.

A change can meet a key or an id that another session's open transaction has taken, a lock on a table, a deadlock, a statement
timeout, or a disk without room. None of these may delay other changes for longer than it takes to find the blocked one. So the
changes are halved until each part either is stored, in its own transaction, or is one blocked change. Once few changes are
left, a probe asks PostgreSQL which of their keys and ids are held.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

from givalia_core.errors import StoreFailed, StoreFull, StoreUnfit
from givalia_core.model import RUNNING
from givalia_core.store.base import Change, Hold, hold_name_of_id, hold_name_of_key
from givalia_core.store.shared import AlreadyDecided

from givalia_postgres import statements as sql
from givalia_postgres import writes
from givalia_postgres.connection import SHORT_MS, Again, Connection, Held
from givalia_postgres.doubts import TABLES, Doubts, names_of
from givalia_postgres.rows import int8s

SIFT_S: Final = 0.2  # The limit for one commit; changes that were not tried by then go with the next one.
PROBED_MAX: Final = 64  # Changes whose keys and ids one probe covers; more are halved first.
BYTES_A_MS: Final = 10_000  # Bytes of params and results that the slowest database writes per millisecond.
HELD: Final = "held by another transaction that is still open"
FULL: Final = "kept back, for the disk of the database has no room for the change"


class Sifter:
    """A writer that stores what it can of some changes, and tells what holds the others."""

    def __init__(self, connection: Connection, doubts: Doubts) -> None:
        self._connection = connection
        self._doubts = doubts

    def write(
        self, changes: Sequence[Change], error: Exception | None, wall_us: int, until_us: int
    ) -> tuple[set[int], dict[int, Hold]]:
        """Store what is possible; return the seqs of the changes that are durable, and by seq the holds of the held ones.

        Args:
            changes: The changes to store, as far as possible.
            error: The error of a commit of all of them together; None if that was not tried.
            wall_us: The start of holds that begin now.
            until_us: See `writes.statements`.

        Raises:
            StoreAway, StoreFailed: Some of the changes may be stored.
        """
        applied: set[int] = set()
        held: dict[int, Hold] = {}
        if (isinstance(error, Held) or self._doubts.knows((TABLES,))) and self._are_tables_locked():
            hold = self._doubts.blame(Hold(TABLES, HELD, wall_us), time.monotonic(), has_holder=True)
            return applied, {change.job.seq: hold for change in changes}
        self._doubts.clear((TABLES,))
        # Workers' reports first: they free keys that others may take, and leases do not wait.
        settled = [change for change in changes if change.was is not None and change.was.state is RUNNING]
        others = [change for change in changes if change.was is None or change.was.state is not RUNNING]
        parts = [part for part in (others, settled) if part]
        if error is not None and len(parts) == 1:
            parts = self._split(parts[0], error, held, wall_us)
        end = time.monotonic() + SIFT_S
        while parts and (time.monotonic() < end or not (applied or held)):
            part = parts.pop()
            try:
                applied |= self._apart(part, until_us)
            except (Again, StoreFull, AlreadyDecided) as met:
                parts += self._split(part, met, held, wall_us)
        return applied, held

    def _apart(self, changes: list[Change], until_us: int) -> set[int]:
        most_ms = SHORT_MS + sum(len(job.params) + len(job.result or b"") for _, job in changes) // BYTES_A_MS
        answers = self._connection.alone(*writes.statements(changes, until_us), most_ms=most_ms)
        seqs = {seq for rows in answers for (seq,) in rows}
        for change in changes:
            if change.job.seq in seqs:
                names = names_of(change.job, is_new=change.was is None)
                if FULL in self._doubts.clear(names):
                    self._doubts.open(FULL)
        return seqs

    def _are_tables_locked(self) -> bool:
        """Return whether another session has locked the tables against every write; then no change is to blame."""
        try:
            self._connection.alone((sql.CAN_WRITE, ()), keep=False)
        except Held:
            return True
        except (Again, StoreFull):
            pass
        return False

    def _split(self, part: list[Change], error: Exception, held: dict[int, Hold], wall_us: int) -> list[list[Change]]:
        """Return the parts to try instead of one that failed, in reverse order, without the changes to blame."""
        if isinstance(error, Held) and len(part) <= PROBED_MAX:
            names = self._held_names(part)
            for change in part:
                if (name := names.get(change.job.seq)) is not None:
                    held[change.job.seq] = self._blame(name, error, wall_us)
            if names:
                return [rest] if (rest := [change for change in part if change.job.seq not in names]) else []
        if len(part) == 1 and isinstance(error, AlreadyDecided):
            return []  # Refused: the engine decides the command again, and finds the answer of the other server.
        if len(part) == 1:
            ((was, job),) = part
            held[job.seq] = self._blame(names_of(job, is_new=was is None)[0], error, wall_us)
            return []
        middle = len(part) // 2
        return [part[middle:], part[:middle]]

    def _blame(self, name: str, error: Exception, wall_us: int) -> Hold:
        has_holder = isinstance(error, Held)
        why = HELD if has_holder else FULL if isinstance(error, StoreFull) else f"kept back by {error}"
        return self._doubts.blame(Hold(name, why, wall_us), time.monotonic(), has_holder=has_holder)

    def _held_names(self, changes: list[Change]) -> dict[int, str]:
        """Return, by seq, the key or id that a change takes and that another session is about to take.

        The probe is one trip for any number of changes; each held name costs a millisecond.
        """
        taking = [(job, was is None) for was, job in changes if not job.ended_at_us and (was is None or job.key != was.key)]
        taking += [(job, False) for was, job in changes if was is not None and was.ended_at_us and not job.ended_at_us]
        if not taking:
            return {}
        asked = json.dumps([[str(job.seq), str(UUID(bytes=job.id)) if is_new else None, job.key] for job, is_new in taking])
        try:
            answers = self._connection.alone((sql.PROBE_WHAT, [asked]), (sql.PROBE, ()), (sql.PROBED, ()), keep=False)
        except (Again, StoreFull, StoreFailed, StoreUnfit):
            return {}  # For example, in a database without plpgsql: halving finds them, too.
        found: dict[str, list[str]] = json.loads(answers[-1][0][0])
        jobs = {str(job.seq): job for job, _ in taking}
        names = {seq: hold_name_of_key(jobs[seq].key or "") for seq in found["keys"]}
        names |= {seq: hold_name_of_id(jobs[seq].id) for seq in found["ids"]}
        return {int(seq): name for seq, name in names.items()}

    def locked(self, changes: Iterable[Change], wall_us: int) -> dict[int, Hold]:
        """Return, by seq, the holds of these refused changes whose row another session has locked."""
        by_seq = {change.job.seq: change for change in changes if change.was is not None}
        if not by_seq:
            return {}
        seqs = [seq for (seq,) in self._connection.ask((sql.LOCKED, [int8s(list(by_seq))]))[0]]
        now = time.monotonic()
        holds = {seq: Hold(names_of(by_seq[seq].job)[0], HELD, wall_us) for seq in seqs}
        return {seq: self._doubts.blame(hold, now, has_holder=True) for seq, hold in holds.items()}

    def look(self) -> None:
        """Find the names in doubt that may be free by now."""
        if self._doubts:
            with suppress(Again):
                ((running,),) = self._connection.ask((sql.IN_PROGRESS, ()))[0]
                self._doubts.look(frozenset(running), time.monotonic())
