"""Jobs as rows of stores that keep a row for each job: what is packed comes back, and a page is chosen from the heads."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from givalia_core.model import CANCELLED, DEAD, JOB_FIELDS, RUNNING, STORED_STATES, WAITING, Answered, Job, JobState
from givalia_core.store.base import ROW_BYTES, Filter
from givalia_core.store.packing import HEAD, NUMBER, PageHead, choose, has_state, pack_body, to_job
from givalia_core.store.suite import NOW, job_id, request_id, waiting

FULL = waiting(
    7, key="ключ", state=DEAD, target_worker="w1", specifier=">=2", priority=-3, on_wall=True, expires_at_us=5, ended_at_us=6,
    forget_at_us=8, version=9, enq_at_us=10, attempt=11, max_attempts=12, timeout_us=13, expires_us=14, retain_us=15,
    backoff_us=(16, 17), fence=18, worker="me", holder=b"h" * 16, stop_asked=True, releases=19, replacements=20, deaths=21,
    reason="expired", error="Boom", result_error="too large", keeper=22, started_at_us=23, result=b"", params=b"\x00",
    answered=(Answered(job_id(7), "enq", 1, 2), Answered(request_id(1), "ext", 3, 4)),
)  # fmt: skip


def head_of(job: Job) -> list[Any]:
    """Return the columns before the body, as a store of rows has them: truth is a number, and the first to run sorts first."""
    head = dict(zip(JOB_FIELDS[:HEAD], job.front(), strict=False))
    head |= {"state": NUMBER[job.state], "target_worker": job.target, "priority": -job.priority, "on_wall": int(job.on_wall)}
    return list(head.values())


def page_head(
    seq: int,
    state: JobState | int = WAITING,
    module: str = "Mail",
    ended_at_us: int = 0,
    count: int = 0,
    key: str | None = None,
) -> PageHead:
    number = NUMBER[state] if isinstance(state, JobState) else state
    return seq, key, number, module, "any >=2", False, NOW.timer_us + 1, ended_at_us, count


@pytest.mark.parametrize("job", [FULL, waiting(1), waiting(2, state=RUNNING, on_wall=True, result=None, params=b"")])
def test_a_job_comes_back_from_its_row_with_every_field_of_its_type(job: Job) -> None:
    again = to_job(head_of(job), pack_body(job), job.params, job.result)

    assert again == job
    assert repr(again) == repr(job)


def test_every_field_before_the_result_has_a_column_or_a_place_in_the_body() -> None:
    assert (JOB_FIELDS[:HEAD][-1], JOB_FIELDS[HEAD]) == ("version", "enq_at_us")

    assert len(msgpack.unpackb(pack_body(FULL))) == JOB_FIELDS.index("result") - HEAD


def test_fields_that_are_younger_than_the_row_get_their_defaults() -> None:
    fields = msgpack.unpackb(pack_body(FULL))
    older = msgpack.packb(fields[: fields.index(22)])  # As before `keeper`, with an answer as before its instant was kept.

    again = to_job(head_of(FULL), older, FULL.params, FULL.result)

    assert again == FULL.changed(keeper=0, started_at_us=0)


@pytest.mark.parametrize("number", [-1, len(STORED_STATES), 99])
def test_a_number_of_no_state_is_none_and_makes_no_job(number: int) -> None:
    head = head_of(FULL)
    head[JOB_FIELDS.index("state")] = number

    assert not has_state(number)
    with pytest.raises(LookupError):
        to_job(head, pack_body(FULL), b"", None)


def test_every_stored_state_has_a_number_and_is_found_by_it() -> None:
    assert [NUMBER[state] for state in STORED_STATES] == [0, 1, 2, 3, 4]
    assert all(has_state(NUMBER[state]) for state in STORED_STATES)


@pytest.mark.parametrize("body", [b"", b"\x07", b"\x91", msgpack.packb([1] * 21), msgpack.packb("text")])
def test_a_body_that_is_not_what_was_written_makes_no_job(body: bytes) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        to_job(head_of(FULL), body, b"", None)


def test_a_page_shows_what_the_filter_admits_and_goes_on_behind_the_last_row_of_a_full_page() -> None:
    heads = [page_head(1, module="Fax"), page_head(2), page_head(3, key="k"), page_head(4)]

    assert choose(heads, Filter(module="Mail"), 2, NOW, 100) == ([(0, 2), (0, 3)], (0, 3))
    assert choose(heads, Filter(module="Mail"), 9, NOW, 100) == ([(0, 2), (0, 3), (0, 4)], None)
    assert choose(heads, Filter(key_prefix="k", error="boom"), 9, NOW, 100) == ([(0, 3)], None)
    assert choose(heads, Filter(target_worker="any"), 1, NOW, 100) == ([(0, 1)], (0, 1))
    assert choose([], Filter(), 9, NOW, 100) == ([], None)


def test_rows_that_are_not_shown_are_scanned_too() -> None:
    heads = [page_head(seq, module="Fax", count=9 * ROW_BYTES) for seq in (1, 2, 3)]

    assert choose(heads, Filter(module="Mail"), 9, NOW, 2) == ([], (0, 2))


@pytest.mark.parametrize(
    ("count", "shown"), [(0, 3), (ROW_BYTES - 1, 3), (ROW_BYTES, 2), (2 * ROW_BYTES, 1), (99 * ROW_BYTES, 1)]
)
def test_a_large_job_that_is_shown_counts_as_several_rows(count: int, shown: int) -> None:
    heads = [page_head(1, count=count), page_head(2), page_head(3), page_head(4)]

    chosen, after = choose(heads, Filter(), 9, NOW, 3)

    assert chosen == [(0, 1), (0, 2), (0, 3)][:shown]
    assert after == (0, shown)


@pytest.mark.parametrize("number", [-1, len(STORED_STATES)])
def test_a_row_of_an_impossible_state_is_left_out_but_scanned(number: int) -> None:
    heads = [page_head(1, number), page_head(2)]

    assert choose(heads, Filter(), 9, NOW, 9) == ([(0, 2)], None)
    assert choose(heads, Filter(), 9, NOW, 1) == ([], (0, 1))


def test_a_listing_by_end_goes_on_from_the_end_and_stops_at_the_first_job_that_ended_too_early() -> None:
    shift_us = NOW.wall_us - NOW.timer_us  # People are told ends on the wall clock.
    heads = [
        page_head(seq, CANCELLED, ended_at_us=ended_at_us) for seq, ended_at_us in ((5, 900), (9, 800), (2, 799), (1, 800))
    ]
    wanted = Filter(state=CANCELLED, ended_after_us=800 + shift_us)

    assert choose(heads, wanted, 9, NOW, 9) == ([(900, 5), (800, 9)], None)
    assert choose(heads, wanted, 1, NOW, 9) == ([(900, 5)], (900, 5))
    assert choose(heads, wanted._replace(by_enq=True), 9, NOW, 9) == ([(0, 5), (0, 9), (0, 1)], None)
