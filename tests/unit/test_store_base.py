"""The seam of the stores: its words about holds, its answers without anything in them, and that our stores have all of it."""

from __future__ import annotations

import inspect
from types import FunctionType

import pytest

from givalia_core.store import base
from givalia_core.store.base import Commit, Found, Hold, Store, Wanted, hold_name_of_id, hold_name_of_key
from givalia_core.store.memory import Memory
from givalia_core.store.routes import Route
from givalia_core.store.sqlite import SQLite

METHODS = sorted(name for name, value in vars(Store).items() if isinstance(value, FunctionType) and name[0] != "_")


def test_a_hold_is_named_by_its_key_or_by_the_public_form_of_its_id() -> None:
    assert hold_name_of_key("cart-7") == "key cart-7"
    assert hold_name_of_id(bytes(range(16))) == "id 00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.mark.parametrize(
    ("since_us", "since"),
    [
        (0, "1970-01-01T00:00:00.000+00:00"),
        (999, "1970-01-01T00:00:00.000+00:00"),
        (1_750_000_000_999_999, "2025-06-15T15:06:40.999+00:00"),
    ],
)
def test_a_hold_says_in_a_sentence_what_is_held_why_and_since_when(since_us: int, since: str) -> None:
    assert (
        Hold("key cart-7", "in an open transaction", since_us).words == f"key cart-7 is in an open transaction, since {since}"
    )


def test_a_commit_that_says_nothing_refused_forgot_and_held_nothing() -> None:
    assert (Commit().refused, Commit().forgotten, dict(Commit().held)) == ((), 0, {})


def test_what_is_wanted_without_names_asks_for_nothing_and_has_room_for_every_claim() -> None:
    wanted = Wanted()

    assert not any((wanted.ids, wanted.keys, wanted.past_keys, wanted.requests, wanted.claims, wanted.numbers, wanted.variants))
    assert wanted.claimed_bytes >= 1 << 40


def test_what_only_a_shared_store_finds_is_empty_and_no_other_find_can_fill_it() -> None:
    found = Found({}, {}, {}, {}, {}, {})

    assert (found.floor, found.cut, found.learned) == (0, frozenset[Route](), None)
    assert dict(found.answers) == {}
    with pytest.raises(TypeError):
        found.answers[b"request"] = b"answer"  # type: ignore[index]


def test_epochs_and_the_counter_of_fences_fill_63_bits() -> None:
    assert 2 ** (63 - base.FENCE_COUNTER_BITS) >= 8_000_000, "eight million boots"
    assert 2**base.FENCE_COUNTER_BITS >= 10**12, "and a trillion leases in each"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [Memory, SQLite])
def test_our_stores_take_what_the_seam_says(kind: type[Store], name: str) -> None:
    asked, taken = (inspect.signature(getattr(each, name)).parameters.values() for each in (Store, kind))

    assert [(one.name, one.kind, one.default) for one in taken] == [(one.name, one.kind, one.default) for one in asked]


@pytest.mark.parametrize("name", base.__all__)
def test_the_seam_has_every_name_that_it_hands_out(name: str) -> None:
    assert hasattr(base, name)
