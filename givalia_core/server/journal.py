"""The server's log lines about workers, leases, dead jobs and connections.

A storm of lines of one kind is counted instead. Nothing here waits: a handler of the log may block, and the callers are the
queue loop and its turn, so each line leaves in a greenlet of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import gevent

from givalia_core.engine.records import JournalEntry
from givalia_core.headline import headline
from givalia_core.model import Job
from givalia_core.repeats import PERIOD_S, Repeats
from givalia_core.takers import WorkerSession
from givalia_core.views import text_id

log = logging.getLogger("givalia.server")


class Line(NamedTuple):
    """One line; `kind` names many such lines in words."""

    level: int
    kind: str
    words: str
    extra: dict[str, Any] | None = None


class Journal:
    """Writes the lines.

    Args:
        peer_of: Returns the address of a connection by its number; empty if it is gone.
        lines: The logger that takes the lines.
    """

    def __init__(self, peer_of: Callable[[int], str], lines: logging.Logger = log) -> None:
        self._peer_of = peer_of
        self._lines = lines
        self._repeats = Repeats()
        self.due_s = math.inf
        """The time at which `look` has something to log, in monotonic seconds."""

    def tell(self, news: JournalEntry) -> None:
        """Log an entry of the engine."""
        self._say(_LINES[news.act](self, news))

    def refuse(self, peer: str, port: str, why: str) -> None:
        """Log that a connection was refused."""
        words = f"a connection from {peer} to the port for {port}s was refused: {why}"
        self._say(Line(logging.WARNING, f"connections from {peer} that were refused", words))

    def end(self, peer: str, why: str) -> None:
        """Log that a connection was closed, and why."""
        self._say(Line(logging.INFO, f"connections that were closed ({why})", f"connection {peer} closed: {why}"))

    def look(self) -> None:
        """Log how many lines were left out."""
        now_s = time.monotonic()
        for words in self._repeats.left_out(now_s):
            gevent.spawn(self._lines.warning, "%s", words)
        self.due_s = now_s + 1.0 if self._repeats.counts else math.inf

    def close(self) -> None:
        """Log the remaining counts at once."""
        for words in self._repeats.rest():
            self._lines.warning("%s", words)

    def _say(self, line: Line) -> None:
        if self.due_s == math.inf:
            self.due_s = time.monotonic() + PERIOD_S
        if self._repeats.may_say(line.kind, time.monotonic()):
            gevent.spawn(self._lines.log, line.level, "%s", line.words, extra=line.extra)

    # A line for each kind of news.

    def _joined(self, news: JournalEntry) -> Line:
        peer = self._peer_of(news.subject.conn)
        return Line(logging.INFO, "workers that joined", f"worker {_worker(news.subject, peer)} has joined")

    def _left(self, news: JournalEntry) -> Line:
        return Line(logging.INFO, "workers that left", f"worker {_worker(news.subject)} has left")

    def _gone(self, news: JournalEntry) -> Line:
        holds = "no job"
        if news.jobs:
            holds = "one job" if news.jobs == 1 else f"{news.jobs} jobs"
            holds += ", which it loses when the lease ends unless it comes back before"
        words = f"worker {_worker(news.subject)} is lost: {news.why}; it holds {holds}"
        return Line(logging.WARNING, "workers that were lost", words)

    def _unreported(self, news: JournalEntry) -> Line:
        job: Job = news.subject
        words = f"the lease of worker {job.worker} has ended with no report of attempt {job.attempt}"
        return Line(logging.WARNING, f"leases of {job.module} that ended with no report", words, _about(job))

    def _dead(self, news: JournalEntry) -> Line:
        job: Job = news.subject
        kind = f"jobs of {job.module} that are dead ({job.reason})"
        if job.reason == "expired":
            return Line(logging.WARNING, kind, "the job is dead: it has expired before it could start", _about(job))
        error = headline(job.error)
        words = f"the job is dead ({job.reason}) after attempt {job.attempt} of {job.max_attempts}: {error}"
        return Line(logging.ERROR, kind, words, {**_about(job), "error": error})

    def _resumed(self, news: JournalEntry) -> Line:
        words = f"{self._peer_of(news.subject)} has ended the hold: jobs are lent now"
        return Line(logging.INFO, "holds that were ended", words)


_LINES: Final[dict[str, Callable[[Journal, JournalEntry], Line]]] = {
    "joined": Journal._joined,  # noqa: SLF001 - Its own table.
    "left": Journal._left,  # noqa: SLF001 - Its own table.
    "gone": Journal._gone,  # noqa: SLF001 - Its own table.
    "unreported": Journal._unreported,  # noqa: SLF001 - Its own table.
    "dead": Journal._dead,  # noqa: SLF001 - Its own table.
    "resumed": Journal._resumed,  # noqa: SLF001 - Its own table.
}


def _worker(session: WorkerSession, peer: str = "") -> str:
    join = session.join
    return f"{join.name} (pid {join.pid}, {peer})" if peer else f"{join.name} (pid {join.pid})"


def _about(job: Job) -> dict[str, Any]:
    return {"job_id": text_id(job.id), "job_module": job.module, "key": job.key, "attempt": job.attempt}
