"""The records of the link, and the tables by which the fields of a dispatch are filled in and judged."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from givalia_core.protocol import codec
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.messages import Dispatch, Kind, Progress
from givalia_core.worker.link.records import DISPATCH_REST, DISPATCH_TYPES, KIND_OF, Connected, Loan, Report

NEEDED = (bytes(16), 7, "Cart", 1, 0)
WHOLE = (*NEEDED, "cart-7", "any", 3, 60_000_000, ">=2")
NONE_OF = {5: "key", 8: "timeout_us", 9: "version"}  # The fields that may be None, by place.


def test_each_report_and_a_hint_has_its_kind_of_frame() -> None:
    assert KIND_OF.keys() == {*get_args(Report), Progress}
    assert sorted(KIND_OF.values()) == [Kind.SUCCEED, Kind.FAIL, Kind.RELEASE, Kind.PROGRESS]


def test_a_new_loan_is_renewed_and_has_no_report() -> None:
    loan = Loan(7, 1_000)

    assert (loan.report, loan.is_given_up) == (None, False)


def test_loans_of_the_same_fence_are_not_the_same() -> None:
    assert Loan(7, 1_000) != Loan(7, 1_000)


def test_a_server_need_not_know_of_others() -> None:
    assert Connected(Address("there", 1), 30_000_000).clients == ()


@pytest.mark.parametrize("count", range(len(NEEDED), len(WHOLE) + 1))
def test_the_fields_that_a_server_has_left_out_have_their_defaults(count: int) -> None:
    filled = Dispatch._make([*WHOLE[:count], *DISPATCH_REST[count], b"x"])

    assert filled == codec.told(Dispatch, list(WHOLE[:count]), b"x")


def test_a_field_that_has_no_default_cannot_be_left_out() -> None:
    assert min(DISPATCH_REST) == len(NEEDED)
    assert max(DISPATCH_REST) == len(WHOLE)


@pytest.mark.parametrize("place", range(len(WHOLE)))
def test_a_field_may_be_none_where_the_protocol_says_so(place: int) -> None:
    types: list[type] = [type(value) for value in WHOLE]
    assert tuple(types) in DISPATCH_TYPES

    types[place] = type(None)

    assert (tuple(types) in DISPATCH_TYPES) is (place in NONE_OF)


@pytest.mark.parametrize("place", range(len(WHOLE)))
@pytest.mark.parametrize("value", [b"y" * 16, 1, True, 0.5, "any", None, []], ids=lambda value: type(value).__name__)
def test_a_field_has_the_types_that_the_codec_takes(place: int, value: Any) -> None:
    fields: list[Any] = list(WHOLE)
    if type(value) is not type(fields[place]):  # Else it is one of the right type, and allowed.
        fields[place] = value
    try:
        codec.told(Dispatch, list(fields), b"")
    except Exception:
        is_taken = False
    else:
        is_taken = True

    assert (tuple(map(type, fields)) in DISPATCH_TYPES) is is_taken
