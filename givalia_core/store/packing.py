"""Jobs as rows, for stores that keep a row for each job: the packed part that no statement reads, and pages of listings.

A row has a column for each field of a job before `enq_at_us`, one that packs the fields from there up to `result`, and one
each for `params` and `result`. The column of the target worker holds the whole `Job.target`, so that one index finds the
jobs of every route.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from givalia_core.clock import Now
from givalia_core.model import JOB_DEFAULTS, JOB_FIELDS, STORED_STATES, Answered, Job, split_target
from givalia_core.store.base import Cursor, Filter, rows_of

HEAD: Final = JOB_FIELDS.index("enq_at_us")  # The number of fields that have a column of their own.
_BODY: Final = slice(HEAD, JOB_FIELDS.index("result"))
_ANSWERED: Final = JOB_FIELDS.index("answered") - HEAD
_DEFAULTS: Final = JOB_DEFAULTS[_BODY]
NUMBER: Final = {state: number for number, state in enumerate(STORED_STATES)}
"""The numbers by which states are written."""
_STATES: Final = dict(enumerate(STORED_STATES))  # Not a tuple, in which -1 would be the last state.

_packer: Any = msgpack.Packer(autoreset=True)

PageHead = tuple[int, str | None, int, str, str, bool, int, int, int]
"""The head of a row: seq, key, state's number, module, target, on_wall, due_at_us, ended_at_us, bytes of params and result."""


def pack_body(job: Job) -> bytes:
    """Pack the fields that no statement reads, as one value."""
    packed: bytes = _packer.pack(job.front()[_BODY])
    return packed


def to_job(head: Sequence[Any], body: bytes, params: bytes, result: bytes | None) -> Job:
    """Return the job of a row; `head` holds the fields before the body, with the state's number and the rank as written.

    Raises:
        ValueError, TypeError, LookupError: The row is not what was written.
    """
    unpacked = msgpack.unpackb(body, use_list=False)
    if not isinstance(unpacked, tuple):
        raise TypeError(f"the body of a row is of type {type(unpacked).__name__}")
    cold = [*unpacked]
    if len(cold) < len(_DEFAULTS):
        cold += _DEFAULTS[len(cold) :]  # Defaults of fields that are younger than the row.
    cold[_ANSWERED] = tuple([Answered(*past) for past in cold[_ANSWERED]])
    seq, job_id, key, state, module, target, rank, on_wall, *rest = head
    target_worker, specifier = split_target(target) if " " in target else (target, None)
    known = (seq, job_id, key, _STATES[state], module, target_worker, -rank, bool(on_wall), *rest)
    values = (*known, *cold, result, specifier, params)
    return Job(*values)


def choose(heads: Sequence[PageHead], wanted: Filter, limit: int, now: Now, rows: int) -> tuple[list[Cursor], Cursor | None]:
    """Scan at most `rows` rows; return the cursors behind those that a page may show, and where to go on (None: the end).

    `heads` are in one index's order, and lack errors: `wanted.error` is ignored. Rows with an impossible state are left out.
    """
    chosen: list[Cursor] = []
    wanted = wanted._replace(error=None)
    left, cursor = rows, None
    for seq, key, state, module, target, on_wall, due_at_us, ended_at_us, count in heads:
        left -= 1
        cursor = (ended_at_us if wanted.is_by_end else 0, seq)
        if has_state(state):
            target_worker, _ = split_target(target)
            head = Job(seq, b"", key, _STATES[state], module, target_worker, 0, bool(on_wall), due_at_us, None, ended_at_us)
            if wanted.is_by_end and wanted.has_ended_before(ended_at_us, now):
                return chosen, None
            if wanted.admits(head, now):
                chosen.append(cursor)
                left -= rows_of(count, 0) - 1  # The whole row is read only for a job that is shown.
        if len(chosen) == limit or left <= 0:
            return chosen, cursor
    return chosen, None


def has_state(number: int) -> bool:
    """Return whether this number stands for a state."""
    return number in _STATES
