"""What stores that keep jobs as rows have in common: the part of a job that no statement looks at, and pages of listings.

A row has a column for each field of a job before `enq_at_us`, one for the fields from there to `result` packed together, and
one each for `params` and `result`. The column of the target worker holds the whole `Job.target`, so that one index finds the
jobs of every route.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from givalia_core.clock import Now
from givalia_core.model import ENDED, STORED_STATES, Answered, Job, JobState, split_target
from givalia_core.store.base import Filter, rows_of

HEAD: Final = Job._fields.index("enq_at_us")  # So many fields are columns of their own.
_BODY: Final = slice(HEAD, Job._fields.index("result"))
_ANSWERED: Final = Job._fields.index("answered") - HEAD
_DEFAULTS: Final = [Job._field_defaults[name] for name in Job._fields[_BODY]]
NUMBER: Final = {state: number for number, state in enumerate(STORED_STATES)}
"""How a state is written."""
_STATES: Final = dict(enumerate(STORED_STATES))  # A tuple would take -1 for its last.

_packer: Any = msgpack.Packer(autoreset=True)

PageHead = tuple[int, int | None, int, str, str, bool, int, int]
"""Of a row: seq, forget_at_us, state's number, module, target, on_wall, due_at_us, bytes of params and result."""


def pack_body(job: Job) -> bytes:
    """The fields that no statement looks at, as one value."""
    packed: bytes = _packer.pack(job[_BODY])
    return packed


def to_job(head: Sequence[Any], body: bytes, params: bytes, result: bytes | None) -> Job:
    """The job of a row; `head` holds the fields before the body, with the state's number and the rank as they are written.

    Raises:
        ValueError, TypeError, LookupError: The row is none that was written.
    """
    cold = [*msgpack.unpackb(body, use_list=False)]
    if len(cold) < len(_DEFAULTS):
        cold += _DEFAULTS[len(cold) :]  # What fields are for that are younger than the row.
    cold[_ANSWERED] = tuple(map(Answered._make, cold[_ANSWERED]))
    seq, job_id, key, state, module, target, rank, on_wall, *rest = head
    target_worker, specifier = split_target(target) if " " in target else (target, None)
    return Job._make(
        (seq, job_id, key, _STATES[state], module, target_worker, -rank, bool(on_wall), *rest, *cold, result, specifier, params)
    )


def choose(
    heads: Sequence[PageHead], wanted: Filter, limit: int, now: Now, rows: int
) -> tuple[list[int], tuple[int, int] | None]:
    """Of rows in the order of one index, at most `rows`: the seqs that a page shows, and the cursor behind them.

    No page shows a row whose state no job can have.
    """
    seqs: list[int] = []
    left, place = rows, 0
    for place, (seq, _, state, module, target, on_wall, due_at_us, count) in enumerate(heads, 1):  # noqa: B007
        left -= 1
        if not has_state(state):
            continue
        target_worker, _ = split_target(target)
        head = Job(seq, b"", None, _STATES[state], module, target_worker, 0, bool(on_wall), due_at_us)
        if wanted.admits(head, now):
            seqs.append(seq)
            left -= rows_of(count, 0) - 1  # Only of a job that is shown the whole row is read.
        if len(seqs) == limit or left <= 0:
            break
    if not heads or (place == len(heads) and len(heads) < rows):
        return seqs, None
    seq, forget_at_us, *_ = heads[place - 1]
    return seqs, (forget_at_us or 0 if is_ended(wanted.state) else 0, seq)


def has_state(number: int) -> bool:
    """Whether a state is written as this number."""
    return number in _STATES


def is_ended(state: JobState | None) -> bool:
    """Whether a listing of this state goes through the ended jobs, which it does in the order in which they are forgotten."""
    return state in ENDED
