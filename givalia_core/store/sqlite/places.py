"""Places of records, packed into integers as the index and the records of forgotten jobs have them on disk.

A row of `jobs` is numbered by the first seq in it, a row of `changes` one after the other. A place also has the size of its
row: with it the sweeper knows when all of the row is past.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ROW_RECORDS: Final = 64  # The most records of a row: a byte counts them.
BASE_SHIFT: Final = 8  # Where rows are packed for each commit, `base_at` and `change_at` are inlined with these.
CHANGE_SHIFT: Final = 16
NUMBER_SHIFT: Final = 8
_BYTE: Final = 0xFF


class Damaged(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """The index is not what this program wrote. No conclusion from the index holds; the store rebuilds it."""


class Place(NamedTuple):
    """The places of a job's records: the one of its enq, and the newest change, 0 if there is none."""

    seq: int
    base: int
    at: int


def base_at(first_seq: int, size: int) -> int:
    """Pack the place of a record of an enq: the row, and how many jobs the row has."""
    return first_seq << BASE_SHIFT | size


def base_row(base: int) -> int:
    """Return the row of `jobs` that a record of an enq is in."""
    return base >> BASE_SHIFT


def base_size(base: int) -> int:
    """Return how many jobs the row of a record of an enq has."""
    return base & _BYTE


def change_at(row: int, number: int, size: int) -> int:
    """Pack the place of a change: the row, the number in it, and how many records the row has."""
    return row << CHANGE_SHIFT | number << NUMBER_SHIFT | size


def change_row(place: int) -> int:
    """Return the row of `changes` that a record is in; 0 if the place is 0."""
    return place >> CHANGE_SHIFT


def change_number(place: int) -> int:
    """Return the number of a change in its row."""
    return place >> NUMBER_SHIFT & _BYTE


def change_size(place: int) -> int:
    """Return how many records the row of a change has."""
    return place & _BYTE


def without_size(place: int) -> int:
    """Return the row and number of a change alone, as one integer."""
    return place >> NUMBER_SHIFT
