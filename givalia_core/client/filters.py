"""The acts on all jobs that a filter admits: `cancel_all`, `ext_all` and `requeue_all`.

The server answers a page at a time. A run of pages acts on each job at most once, even if the act moves the job behind the
cursor, and an interrupted run continues from its cursor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, TypeAlias
from zlib import crc32

from givalia_core.client import commands, readings
from givalia_core.client.listing import JobFilter, filter_of
from givalia_core.client.pending import Pending
from givalia_core.clock import new_id
from givalia_core.errors import BadRequest
from givalia_core.model import CANCELLED, DEAD, JobState
from givalia_core.protocol import answers
from givalia_core.protocol.codec import checked
from givalia_core.protocol.messages import Act, Kind
from givalia_core.times import Instant, Length

OnPage: TypeAlias = "Callable[[Acted], object]"
_NO_STATE: Final = "-"  # In a cursor.
_SUM_BYTES: Final = 4  # Of filter and options: they begin the mark at a cursor's end, and the id of the run follows.
_MARK_BYTES: Final = _SUM_BYTES + 16


@dataclass(frozen=True, slots=True)
class Acted:
    """The outcome of a run so far: how many jobs by outcome, and the cursor from which to continue; None at its end.

    Outcomes are `cancelled`, `stop_requested`, `moved` and `requeued`; the state of a job that forbids the act (`running`); or
    the code of another refusal (`DUPLICATE_KEY`).
    """

    counts: dict[str, int] = field(default_factory=dict)
    cursor: str | None = None


class PagedAct:
    """An act by filter, a page at a time: send `ask`, give the answer to `take`, and repeat until it `is_over`.

    Args:
        act: `cancel`, `ext` or `requeue`.
        states: The states that it goes through one after the other; None among them: all live jobs.
        wanted: The filter, apart from the state.
        options: Further fields of the messages.
        cursor: The place to continue from, as an earlier run told it.
        on_page: Called by `tell`.

    Raises:
        BadRequest: The cursor belongs to another act, other states or another filter.
    """

    def __init__(
        self,
        act: str,
        states: list[str | None],
        wanted: JobFilter,
        options: dict[str, Any],
        cursor: str | None,
        on_page: OnPage | None,
    ) -> None:
        self._act, self._wanted, self._options = act, wanted, options
        self._run = new_id()
        self._states = states
        self._on_page = on_page
        self._counts: Counter[str] = Counter()
        self._end_seq: int | None = None
        self._after: tuple[int, ...] = ()
        if cursor is not None:
            self._go_on_from(cursor)

    def _go_on_from(self, cursor: str) -> None:
        try:
            act, state, end_seq, *after = str(cursor).split(":")
            mark = bytes.fromhex(after.pop()) if len(after) % 2 else b""  # Cursors of earlier versions have none.
            place = self._states.index(None if state == _NO_STATE else state)
            self._end_seq, self._after = int(end_seq) if end_seq else None, tuple(int(number) for number in after)
            if act != self._act or len(after) not in (0, 2) or len(mark) not in (0, _MARK_BYTES):
                raise ValueError
        except ValueError:
            raise BadRequest(f"{cursor!r:.80} is no cursor of such a run") from None
        if mark:
            if not mark.startswith(self._sum()):
                raise BadRequest(f"{cursor!r:.80} is the cursor of a run with other arguments")
            self._run = mark[_SUM_BYTES:]
        self._states = self._states[place:]

    def _sum(self) -> bytes:
        wanted = [None if value is None else str(value) for value in self._wanted._replace(state=None)]
        asked = [self._act, *wanted, sorted(self._options.items())]
        return crc32(repr(asked).encode("utf-8", "surrogatepass")).to_bytes(_SUM_BYTES)

    @property
    def is_over(self) -> bool:
        """Return whether the run has ended, so that no page follows."""
        return not self._states

    def ask(self) -> Pending[answers.ActedPage]:
        """Return the request for the next page; one that is sent again acts on no job twice."""
        after_a, after_b = self._after or (None, None)
        fields = {**self._wanted._asdict(), "state": self._states[0], **self._options}
        # The same page is the same request, so that a continued run gets the counts of a page it has already acted on.
        page = repr((self._states[0], self._after, self._options)).encode()
        request = blake2b(self._run + page, digest_size=16).digest()
        message = Act(request, self._act, end_seq=self._end_seq, after_a=after_a, after_b=after_b, run=self._run, **fields)
        return Pending(Kind.ACT, [checked(Kind.ACT, message)], readings.record(answers.ActedPage))

    def take(self, answer: answers.ActedPage) -> Acted:
        """Take the answer to a page; return the outcome of the run so far."""
        self._counts.update(answer.counts)
        self._end_seq, self._after = answer.end_seq, readings.next_page(answer.after_a, answer.after_b)
        if not self._after:
            self._states, self._end_seq = self._states[1:], None
        return self._acted()

    def tell(self) -> object:
        """Call `on_page` with the outcome so far, and return its answer.

        Call this before the first page, so that there is a cursor even if the page fails, and after each page.
        """
        return None if self._on_page is None else self._on_page(self._acted())

    def _acted(self) -> Acted:
        return Acted(dict(self._counts), self._cursor())

    def _cursor(self) -> str | None:
        if self.is_over:
            return None
        end_seq = "" if self._end_seq is None else self._end_seq
        mark = (self._sum() + self._run).hex()
        return ":".join(map(str, (self._act, self._states[0] or _NO_STATE, end_seq, *self._after, mark)))


def cancel_all(
    state: JobState | str | None = None,
    *,
    module: str | None = None,
    target_worker: str | None = None,
    key_prefix: str | None = None,
    due_before: Instant | None = None,
    due_after: Instant | None = None,
    ended_after: Instant | None = None,
    error: str | None = None,
    all: bool = False,
    running: bool = False,
    dry_run: bool = False,
    cursor: str | None = None,
    on_page: OnPage | None = None,
) -> PagedAct:
    """Cancel all jobs that a filter admits, a page of up to 500 at a time; jobs that come during the run are left alone.

    The counts are of the answers that `cancel` would give for each job. On return all changes are durable. A run that raises
    has done a part, perhaps one page more than it counted: continue with the last `cursor` that `on_page` was given, and no job
    is acted on twice.

    Args:
        state: `waiting`, `ready` or `running`; None for all three.
        module: As in `list`, like the filters that follow. Give at least one filter, or `all`.
        target_worker: Only jobs for this worker.
        key_prefix: Only jobs whose key begins so.
        due_before: Only jobs due before this instant, given as `at` in `enq`.
        due_after: Only jobs due then or later.
        ended_after: Only jobs that ended then or later.
        error: Only jobs whose last error has this text in it, whatever its case.
        all: Every job, without a filter.
        running: Also ask those that have started to stop.
        dry_run: Change nothing, and count what would be done.
        cursor: The last cursor of an interrupted run with the same arguments, to continue it.
        on_page: Called with the outcome so far (`counts`, `cursor`) before the first page and after each.

    Raises:
        BadRequest: Neither a filter nor `all` is given, or a value is invalid. Nothing was done.
    """
    wanted = filter_of(state, module, target_worker, key_prefix, due_before, due_after, ended_after, error)
    options = {"running": running, "dry_run": dry_run}
    return PagedAct("cancel", [wanted.state], _given(wanted, everything=all), options, cursor, on_page)


def ext_all(
    time: Length | None = None,
    *,
    at: Instant | None = None,
    state: JobState | str | None = None,
    module: str | None = None,
    target_worker: str | None = None,
    key_prefix: str | None = None,
    due_before: Instant | None = None,
    due_after: Instant | None = None,
    ended_after: Instant | None = None,
    error: str | None = None,
    all: bool = False,
    dry_run: bool = False,
    cursor: str | None = None,
    on_page: OnPage | None = None,
) -> PagedAct:
    """Move the dues of all jobs that a filter admits, each job once, wherever its new due is; otherwise as `cancel_all`.

    Args:
        time: Seconds to add to each due, as in `ext`.
        at: The new due of all instead.
        state: `waiting`, `ready` or `running` (which only counts them); None for all three.
        module: As in `list`, like the filters that follow.
        target_worker: Only jobs for this worker.
        key_prefix: Only jobs whose key begins so.
        due_before: Only jobs due before this instant.
        due_after: Only jobs due then or later.
        ended_after: Only jobs that ended then or later.
        error: Only jobs whose last error has this text in it.
        all: Every job, without a filter.
        dry_run: Change nothing, and count what would be done.
        cursor: The last cursor of an interrupted run with the same arguments, to continue it.
        on_page: Called with the outcome so far (`counts`, `cursor`) before the first page and after each.

    Raises:
        BadRequest: As `cancel_all`.
    """
    wanted = filter_of(state, module, target_worker, key_prefix, due_before, due_after, ended_after, error)
    delta_us, at_us = commands.move(time, at)
    options = {"delta_us": delta_us, "at_us": at_us, "dry_run": dry_run}
    return PagedAct("ext", [wanted.state], _given(wanted, everything=all), options, cursor, on_page)


def requeue_all(
    state: JobState | str | None = None,
    *,
    time: Length = 0,
    at: Instant | None = None,
    module: str | None = None,
    target_worker: str | None = None,
    key_prefix: str | None = None,
    due_before: Instant | None = None,
    due_after: Instant | None = None,
    ended_after: Instant | None = None,
    error: str | None = None,
    all: bool = False,
    dry_run: bool = False,
    cursor: str | None = None,
    on_page: OnPage | None = None,
) -> PagedAct:
    """Give all dead and cancelled jobs that a filter admits another life; otherwise as `cancel_all`.

    A job that ends again during the run is not requeued again.

    Args:
        state: `dead` or `cancelled`; None for both.
        time: Seconds from now until they are due.
        at: The instant at which they are due instead.
        module: As in `list`, like the filters that follow.
        target_worker: Only jobs for this worker.
        key_prefix: Only jobs whose key begins so.
        due_before: Only jobs that were due before this instant.
        due_after: Only jobs that were due then or later.
        ended_after: Only jobs that ended then or later.
        error: Only jobs whose last error has this text in it.
        all: Every dead and cancelled job, without a filter.
        dry_run: Change nothing, and count what would be done.
        cursor: The last cursor of an interrupted run with the same arguments, to continue it.
        on_page: Called with the outcome so far (`counts`, `cursor`) before the first page and after each.

    Raises:
        BadRequest: As `cancel_all`.
    """
    wanted = filter_of(state, module, target_worker, key_prefix, due_before, due_after, ended_after, error)
    delay_us, at_us = commands.when(time, at)
    states: list[str | None] = [str(DEAD), str(CANCELLED)] if wanted.state is None else [wanted.state]
    options = {"delta_us": delay_us, "at_us": at_us, "dry_run": dry_run}
    return PagedAct("requeue", states, _given(wanted, everything=all), options, cursor, on_page)


def _given(wanted: JobFilter, *, everything: bool) -> JobFilter:
    """Return the filter.

    Raises:
        BadRequest: The filter is empty and `all` was not given, or both were given.
    """
    if type(everything) is not bool:
        raise BadRequest(f"all is True or False, not {everything!r:.80}")
    has_filter = any(value is not None for value in wanted)
    if has_filter == everything:
        words = "all and a filter exclude each other" if everything else "give a filter, or all=True for all jobs"
        raise BadRequest(words)
    return wanted
