"""The types of the store seam for listings: which jobs a listing shows, and its pages."""

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

    Instants are on the wall clock that people are told; a lower bound is inclusive.
    """

    state: JobState | None = None
    module: str | None = None
    target_worker: str | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None  # A part of the error of the last failed attempt, case-folded.
    by_enq: bool = False  # In the order of enq, in which no job ever moves, whatever the state.

    def admits(self, job: Job, now: Now) -> bool:
        """Return whether the listing shows this job."""
        return (
            self.admits_head(job, now)
            and (self.key_prefix is None or (job.key is not None and job.key.startswith(self.key_prefix)))
            and (self.error is None or (job.error is not None and self.error in job.error.casefold()))
        )

    def admits_head(self, job: Job, now: Now) -> bool:
        """Return whether state, route and instants admit this job."""
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
        """Return whether a listing by end stops at a job that ended at this time, on the timer clock."""
        return self.ended_after_us is not None and ended_at_us - now.told_ahead_us < self.ended_after_us


def rows_of(params_bytes: int, result_bytes: int) -> int:
    """Return how many rows a job counts as in a page."""
    return 1 + (params_bytes + result_bytes) // ROW_BYTES


Cursor: TypeAlias = tuple[int, int]
"""The place behind a job in a listing: the value that orders the listing, then the seq. The value is `ended_at_us` for ended
jobs, the due on the timer clock plus 1 for waiting jobs, else 0."""


class Page(NamedTuple):
    """A page of a listing; `after` continues the listing, None at the end. Before the end, a page may be short, even empty.

    `cursors` has the place behind each job: the listing goes on from there if the page is cut.
    """

    jobs: list[Job]
    after: Cursor | None
    cursors: list[Cursor] = []  # noqa: RUF012 - A default of a named tuple, which nobody changes.
