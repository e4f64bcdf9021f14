"""The words of the store seam for listings: which jobs a listing shows, and its pages."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from givalia_core.clock import Now
from givalia_core.model import ENDED, Job, JobState

SCAN_MAX: Final = 5_000  # Rows that one page may scan.
ROW_BYTES: Final = 16 << 10  # Params and result that count as another row.


def _has_ended_since(ended_us: int | None, since_us: int) -> bool:
    return ended_us is not None and ended_us >= since_us


class Filter(NamedTuple):
    """The jobs that a listing shows; None means any. `state` is a stored state, or `READY` (waiting and due).

    Instants are those of the wall clock that people are told, and a lower bound belongs to what it admits.
    """

    state: JobState | None = None
    module: str | None = None
    target_worker: str | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None  # A part of what the last failed attempt raised, its case folded.
    by_enq: bool = False  # In the order of enq, in which no job ever moves, whatever the state.

    def admits(self, job: Job, now: Now) -> bool:
        """Return whether the listing shows this job."""
        return (
            self.admits_head(job, now)
            and (self.key_prefix is None or (job.key is not None and job.key.startswith(self.key_prefix)))
            and (self.error is None or (job.error is not None and self.error in job.error.casefold()))
        )

    def admits_head(self, job: Job, now: Now) -> bool:
        """Return whether the listing shows this job as far as state, route and instants tell."""
        return (
            (self.state is None or job.shown_state(now) is self.state)
            and (self.module is None or job.module == self.module)
            and (self.target_worker is None or job.target_worker == self.target_worker)
            and (self.due_before_us is None or job.due_on_wall_us(now) < self.due_before_us)
            and (self.due_after_us is None or job.due_on_wall_us(now) >= self.due_after_us)
            and (self.ended_after_us is None or _has_ended_since(job.ended_on_wall_us(now), self.ended_after_us))
        )

    @property
    def is_by_due(self) -> bool:
        """Return whether the listing is in the order of the dues."""
        return not self.by_enq and self.state in (JobState.WAITING, JobState.READY)

    @property
    def is_by_end(self) -> bool:
        """Return whether the listing begins with the job that ended last."""
        return not self.by_enq and self.state in ENDED

    def has_ended_before(self, ended_at_us: int, now: Now) -> bool:
        """Return whether a listing by end is over at a job that ended then, on the timer clock."""
        return self.ended_after_us is not None and ended_at_us - now.told_ahead_us < self.ended_after_us


def rows_of(params_bytes: int, result_bytes: int) -> int:
    """Return how many rows a job counts as in a page."""
    return 1 + (params_bytes + result_bytes) // ROW_BYTES


Cursor: TypeAlias = tuple[int, int]
"""A place in a listing, behind a job: its seq, and before that what the listing is in the order of: for jobs that have ended
`ended_at_us`, for those that wait the due on the timer clock and one, else 0."""


class Page(NamedTuple):
    """A page of a listing; `after` continues it and is None at the end. A page may be short, even empty, before that.

    `cursors` has for each job the place behind it, from which the listing goes on if the page is cut there.
    """

    jobs: list[Job]
    after: Cursor | None
    cursors: list[Cursor] = []  # noqa: RUF012 - A default of a named tuple, which nobody changes.
