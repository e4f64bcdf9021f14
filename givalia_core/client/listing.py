"""The verb `list`, its pages, and the filter that it shares with the acts on many jobs."""

from __future__ import annotations

from typing import Any, NamedTuple

from givalia_core.client import readings
from givalia_core.client.pending import Pending
from givalia_core.errors import BadRequest
from givalia_core.model import JobState
from givalia_core.protocol.codec import checked
from givalia_core.protocol.messages import LIST_LIMIT_MAX, Kind, List
from givalia_core.times import Instant, at_to_us
from givalia_core.views import Status


class JobFilter(NamedTuple):
    """The jobs that a listing shows or that an act is for, as fields of messages; None: any."""

    state: str | None = None
    module: str | None = None
    target_worker: str | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None


def filter_of(
    state: Any, module: Any, target_worker: Any, key_prefix: Any, due_before: Any, due_after: Any, ended_after: Any, error: Any
) -> JobFilter:
    """Return the filter of a caller's arguments.

    Raises:
        BadRequest: A value is not an instant; or is an empty text, which a caller who computes it does not mean as "all jobs".
    """
    texts = {"module": module, "target_worker": target_worker, "key_prefix": key_prefix, "error": error}
    for name, text in texts.items():
        if text is not None and (type(text) is not str or not text or not _is_utf8(text)):
            raise BadRequest(f"{name} is text of one character or more, not {text!r:.80}")
    instants = {"due_before": due_before, "due_after": due_after, "ended_after": ended_after}
    before, after, ended = (None if at is None else at_to_us(at, name) for name, at in instants.items())
    named = None if state is None else str(state)
    return JobFilter(named, module, target_worker, key_prefix, before, after, ended, error)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_(
    state: JobState | str | None = None,
    *,
    module: str | None = None,
    target_worker: str | None = None,
    key_prefix: str | None = None,
    due_before: Instant | None = None,
    due_after: Instant | None = None,
    ended_after: Instant | None = None,
    error: str | None = None,
    params: bool = False,
) -> PagedList:
    """List jobs, a page at a time as you iterate; jobs that change meanwhile may be missed or shown as they were.

    With `state`, jobs that wait come in the order of their dues, and jobs that have ended come with the last one first. All
    others come in the order of `enq`. No status has a result.

    Args:
        state: `waiting`, `ready`, `running`, `done`, `dead` or `cancelled`; None for any, as with the filters that follow.
        module: Only jobs of this module.
        target_worker: Only jobs for this worker.
        key_prefix: Only jobs whose key begins so.
        due_before: Only jobs due before this instant, given as `at` in `enq`.
        due_after: Only jobs due then or later.
        ended_after: Only jobs that ended then or later.
        error: Only jobs whose last error has this text in it, whatever its case; at most 255 characters.
        params: Also return the params of each job.
    """
    wanted = filter_of(state, module, target_worker, key_prefix, due_before, due_after, ended_after, error)
    return PagedList(wanted, params=params)


class PagedList:
    """A listing, a page at a time: send `ask`, give the answer to `take`, and repeat until it `is_over`."""

    def __init__(self, wanted: JobFilter, *, params: bool) -> None:
        self._filter = wanted
        self._params = params
        self._after: tuple[int, ...] = ()
        self.is_over = False

    def ask(self) -> Pending[tuple[list[Status], tuple[int, ...]]]:
        """Return the request for the next page."""
        after_a, after_b = self._after or (None, None)
        message = List(limit=LIST_LIMIT_MAX, after_a=after_a, after_b=after_b, params=self._params, **self._filter._asdict())
        return Pending(Kind.LIST, [checked(Kind.LIST, message)], readings.page)

    def take(self, answer: tuple[list[Status], tuple[int, ...]]) -> list[Status]:
        """Return the jobs of a page, and remember where the next one begins."""
        page, self._after = answer
        self.is_over = not self._after
        return page
