"""Records as bytes: what is written comes back, what is cut or damaged does not, and rows are as full as a page allows."""

from __future__ import annotations

import msgpack
import pytest

from givalia_core.errors import StoreCorrupt
from givalia_core.model import DEAD, JOB_FIELDS, Answered, Job
from givalia_core.store.sqlite import records
from givalia_core.store.sqlite.places import ROW_RECORDS, base_at, change_at
from givalia_core.store.sqlite.records import (
    Forgotten,
    base_rows,
    change_rows,
    likely_seq,
    pack,
    pack_base,
    pack_forgotten,
    unpack,
)
from givalia_core.store.suite import job_id, request_id, waiting

FULL = waiting(
    1 << 40, key="ключ", state=DEAD, specifier=">=2", priority=-3, on_wall=True, expires_at_us=5, ended_at_us=6, forget_at_us=8,
    backoff_us=(16, 17), fence=1 << 62, worker="me", holder=b"h" * 16, stop_asked=True, reason="expired", error="Boom",
    keeper=22, started_at_us=23, result=b"\xff", answered=(Answered(job_id(7), "enq", 1, 2), Answered(request_id(1), "ext", 3)),
)  # fmt: skip


def test_a_job_comes_back_with_its_params_and_every_field_of_its_type() -> None:
    again = unpack(pack_base(FULL), FULL.params)

    assert again == FULL
    assert repr(again) == repr(FULL)


def test_a_later_state_comes_back_without_params() -> None:
    assert unpack(pack(FULL.front())) == FULL.changed(params=b"")


def test_that_a_job_is_forgotten_comes_back_as_such() -> None:
    assert unpack(pack_forgotten(Forgotten(5, 6, 7))) == Forgotten(5, 6, 7)


def test_a_record_that_is_cut_anywhere_is_not_believed() -> None:
    record = pack_base(FULL)

    for length in range(len(record)):
        with pytest.raises(StoreCorrupt):
            unpack(record[:length], FULL.params)


def test_a_byte_that_differs_in_the_record_or_in_the_params_is_noticed() -> None:
    record, params = pack_base(FULL), FULL.params

    for place in range(len(record)):
        with pytest.raises(StoreCorrupt):
            unpack(record[:place] + bytes([record[place] ^ 1]) + record[place + 1 :], params)
    for other in (b"Params", params[:-1], params + b"\x00", b"", None):
        with pytest.raises(StoreCorrupt):
            unpack(record, other)


@pytest.mark.parametrize(("record", "params"), [(None, None), (None, b""), ("text", None), (7, b""), (pack_base(FULL), "text")])
def test_what_is_no_bytes_is_no_record(record: bytes | None, params: bytes | None) -> None:
    with pytest.raises(StoreCorrupt, match="a record is none"):
        unpack(record, params)


@pytest.mark.parametrize("fewer", [1, 2, 3])
def test_a_record_of_an_earlier_version_gets_the_defaults_of_younger_fields(fewer: int) -> None:
    *front, result, specifier = FULL.front()
    younger = JOB_FIELDS[len(front) - fewer : len(front)]

    again = unpack(pack((*front[:-fewer], result, specifier), b"params"), b"params")

    assert isinstance(again, Job)
    assert again == FULL.changed(**{name: getattr(Job(*FULL.front()[:9]), name) for name in younger})


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (pack_base(FULL)[:9], None),  # Cut within the seq.
        (pack_base(FULL)[:12], FULL.seq),
        (pack_base(FULL)[:-1] + b"?", FULL.seq),
        (pack_forgotten(Forgotten(5, 6, 7))[:2], 5),
        (msgpack.packb(["text", 1]), None),
        (msgpack.packb([True]), None),
        (msgpack.packb([]), None),
        (b"", None),
        (b"\xc1\xff", None),
        (None, None),
        ("text", None),
    ],
)
def test_the_seq_of_a_damaged_record_is_guessed_if_it_can_be_read(record: object, expected: int | None) -> None:
    assert likely_seq(record) == expected


@pytest.mark.parametrize(("more", "counts"), [(0, [3, 1]), (1, [2, 2])])
def test_changes_that_fill_a_page_exactly_are_one_row_and_a_byte_more_begins_another(more: int, counts: list[int]) -> None:
    third = records._PAGE_BYTES // 3 - 4  # Four bytes of the row are counted for each record.
    packed = [bytes(third), bytes(third), bytes(records._PAGE_BYTES - 2 * (third + 4) - 4 + more), bytes(20)]

    rows, places = change_rows(packed, 8)

    assert [number for number, _ in rows] == [9, 10]
    assert [len(msgpack.unpackb(row)) for _, row in rows] == counts
    assert all(len(row) <= records._PAGE_BYTES for _, row in rows)
    assert places == [change_at(9 + row, number, count) for row, count in enumerate(counts) for number in range(count)]


@pytest.mark.parametrize(("more", "counts"), [(0, [2, 1]), (1, [1, 2])])
def test_jobs_that_fill_a_page_exactly_are_one_row_and_a_byte_more_begins_another(more: int, counts: list[int]) -> None:
    first = waiting(5, params=bytes(2_000))
    empty = waiting(6, params=b"")
    left = records._PAGE_BYTES - sum(len(pack_base(job)) + len(job.params) + 8 for job in (first, empty))  # Eight bytes each.

    rows, places = base_rows([first, empty.changed(params=bytes(left + more)), waiting(7)])

    firsts = [5, 5 + counts[0]]
    assert [number for number, _ in rows] == firsts
    assert [len(msgpack.unpackb(row)) // 2 for _, row in rows] == counts
    assert all(len(row) <= records._PAGE_BYTES for _, row in rows)
    assert places == [base_at(number, count) for number, count in zip(firsts, counts, strict=True) for _ in range(count)]


def test_a_row_has_as_many_records_as_a_byte_of_a_place_can_count_and_no_more() -> None:
    small = [pack((seq,)) for seq in range(ROW_RECORDS + 1)]
    for count, expected in ((ROW_RECORDS, [ROW_RECORDS]), (ROW_RECORDS + 1, [ROW_RECORDS, 1])):
        rows, _ = change_rows(small[:count], 0)

        assert [len(msgpack.unpackb(row)) for _, row in rows] == expected
