"""Short ways for common messages and answers: they give the same as the long ways, and take nothing that those refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from givalia_core.clock import Now
from givalia_core.engine.leases import dispatch_of
from givalia_core.errors import GivaliaError
from givalia_core.model import TEN_YEARS_US, WAITING, Job
from givalia_core.protocol import codec, frames
from givalia_core.protocol.answers import TAKEN, Enqueued
from givalia_core.protocol.frames import PARAMS_BYTES_MAX, RESULT_BYTES_MAX
from givalia_core.protocol.messages import Dispatch, Kind

ID = bytes(range(16))
NOW = Now(2_000_000, 1_000_000, 500)
IDS = st.sampled_from([ID, ID[:15], ID + b"x", "text", None, 7])
TEXTS = st.sampled_from(["Mail", "k", "", "a b", "\x00", "\x7f", "é", "k" * 255, "k" * 256, b"Mail", None, 3, [1]])
NUMBERS = st.sampled_from([0, 1, -1, TEN_YEARS_US, TEN_YEARS_US + 1, True, 1.0, None, "1", (1 << 63) - 1, 1 << 63])
PAYLOADS = st.sampled_from([b"", b"x", bytes(RESULT_BYTES_MAX), bytes(RESULT_BYTES_MAX + 1), bytes(PARAMS_BYTES_MAX + 1)])


@given(
    given=st.one_of(
        st.tuples(st.just(Kind.ENQ), st.tuples(IDS, TEXTS, NUMBERS, TEXTS)),
        st.tuples(st.just(Kind.SUCCEED), st.tuples(IDS, NUMBERS)),
    ),
    payload=PAYLOADS,
)
def test_message_that_takes_the_short_way_is_that_of_the_long_one(given: tuple[Kind, tuple[Any, ...]], payload: bytes) -> None:
    kind, fields = given

    short = codec._plain(kind, list(fields), payload)

    if short is not None:
        assert short == codec._check(codec.TABLE[kind], fields, payload)
        assert type(short) is codec.TABLE[kind].record


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(Kind.ENQ, [ID, "Mail", 0, "k"]), (Kind.ENQ, [ID, "Mail", TEN_YEARS_US, None]), (Kind.SUCCEED, [ID, 7])],
)
def test_usual_messages_take_the_short_way(kind: Kind, fields: list[Any]) -> None:
    assert codec._plain(kind, fields, b"x") is not None


def test_items_that_cannot_be_taken_spoil_no_other() -> None:
    good = (frames._pack([ID, "Mail", 0, "k"]), b"x")
    bad = (frames._pack([ID, "no name", 0, "k"]), b"x")

    taken, refused, again = codec.decoded_items(Kind.ENQ, [good, bad, good])

    assert taken == again
    assert taken.payload == b"x"
    assert isinstance(refused, GivaliaError)


def test_usual_answers_are_items_as_all_others_are() -> None:
    assert codec.answer_item(Enqueued(ID, 5, "fsync")) == (("OK", ID, 5, "fsync"), b"")
    assert codec.answer_item(TAKEN) == (("OK",), b"")
    assert frames._packed([codec.answer_item(TAKEN)] * 3) == [frames._packed([(("OK",), b"")])[0]] * 3


@pytest.mark.parametrize(
    "change",
    [
        {}, {"key": None}, {"priority": 3}, {"target_worker": "w1"}, {"timeout_us": 1_000_000}, {"specifier": ">=2"},
        {"on_wall": True}, {"params": b""}, {"key": None, "priority": -9, "specifier": "==1"},
    ],
)  # fmt: skip
def test_dispatch_is_the_item_of_its_record(change: dict[str, Any]) -> None:
    job = Job(3, ID, "k", WAITING, "Mail", "any", 0, False, 1_500_000)
    job.fence, job.attempt, job.params = 9, 2, b"p"
    for name, value in change.items():
        setattr(job, name, value)
    due_us = 1_500_000 if job.on_wall else 500_000

    told = Dispatch(
        ID, 9, "Mail", 2, due_us, job.key, job.target_worker, job.priority, job.timeout_us, job.specifier, job.params
    )  # fmt: skip

    fields, payload = dispatch_of(job, NOW)
    assert (tuple(fields), payload) == (tuple(codec.item(told)[0]), codec.item(told)[1])
