"""Damaged rows: no reader returns one, one server moves each to `givalia.quarantine` and logs it, and the other jobs go on.

A reader that meets a damaged row leaves it out of its answer and notes it. When no transaction is open, the store locks the
row, reads it again, and moves it unchanged. The row may name a wrong module or state, so a background greenlet then counts
all jobs again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

import gevent
from givalia_core.errors import StoreCorrupt, StoreError
from givalia_core.model import Job
from givalia_core.views import text_id

from givalia_postgres import schema
from givalia_postgres import statements as sql
from givalia_postgres.connection import Again, Connection, Statement
from givalia_postgres.rows import int8s, texts, to_job

TRIES: Final = 10  # Attempts at a recount while another server counts.
TRY_S: Final = 1.0
COUNTING_S: Final = 600.0  # The longest that a recount may take.
CLOSE_S: Final = 5.0

log = logging.getLogger("givalia.server")


class Quarantine:
    """Damaged rows that one server has met and not set aside yet."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._met: set[int] = set()
        self._left: set[int] = set()  # Rows that could not be moved: they stay in place, and readers leave them out.
        self._recount: gevent.Greenlet[..., None] | None = None

    @property
    def is_due(self) -> bool:
        """True if there are rows to set aside."""
        return bool(self._met)

    def sound(self, rows: Iterable[Sequence[Any]]) -> list[Job]:
        """Return the jobs of the undamaged rows; note the other rows."""
        jobs: list[Job] = []
        for row in rows:
            try:
                jobs.append(to_job(row))
            except StoreCorrupt:
                self.note(row[0])
        return jobs

    def note(self, seq: int) -> None:
        """Note that the row with this seq is damaged."""
        if seq not in self._left:
            self._met.add(seq)

    def set_aside(self, connection: Connection) -> None:
        """Move the noted rows, durably, and log each; call this while no transaction is open.

        Raises:
            Again, StoreError: Which rows were moved is unknown; another call goes on.
        """
        begin: Statement = ("BEGIN", ())
        _, rows = connection.ask(begin, (sql.LOCK_ROWS, [int8s(sorted(self._met))]))
        why: dict[int, str] = {}
        for row in rows:
            try:
                to_job(row)
            except StoreCorrupt as error:
                why[row[0]] = str(error)
        move: Statement = (sql.SET_ASIDE, [int8s(list(why)), texts(list(why.values()))])
        moved = connection.ask(move, ("COMMIT", ()))[0]
        self._left |= why.keys() - {seq for seq, *_ in moved}
        self._met.clear()
        for seq, job_id, key, words in moved:
            log.error("job %s (key %r, seq %d) is set aside in givalia.quarantine: %s", text_id(job_id), key, seq, words)
        if moved and (self._recount is None or self._recount.ready()):
            self._recount = gevent.spawn(_count_anew, self._url)

    def close(self) -> None:
        """Wait a moment for the recount to end."""
        if self._recount is not None:
            self._recount.join(CLOSE_S)
            self._recount.kill()
            self._recount = None


def _count_anew(url: str) -> None:
    """Correct the stored counts to those of the rows."""
    connection = Connection(url, "givalia recount", answer_s=COUNTING_S)
    try:
        for _ in range(TRIES):
            # One server at a time, each in its own transaction, so that the next server sees the corrected counts.
            ((is_ours,),) = connection.ask(("BEGIN", ()), (sql.COUNT_ALONE, [schema.LOCK + 1]))[1]
            if is_ours:
                connection.ask((sql.COUNT_FREELY, ()), (sql.COUNT_ANEW, ()), ("COMMIT", ()))
                return
            connection.close()
            gevent.sleep(TRY_S)
    except (Again, StoreError) as error:
        log.warning("the jobs could not be counted anew (%s); givalia store check shows by how much the counts are off", error)
    finally:
        connection.close()
