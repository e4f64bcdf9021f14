"""The tree of errors: codes, details, and the trip over the wire and back."""

from __future__ import annotations

import copy
import pickle

import pytest

from givalia_core import errors
from givalia_core.errors import (
    Busy,
    DuplicateKey,
    GivaliaError,
    PartlyRefused,
    ShuttingDown,
    StoreError,
    WaitTimeout,
    from_wire,
)

SPECIFIED = [
    "DuplicateKey",
    "NotFound",
    "WrongState",
    "BadRequest",
    "TooLarge",
    "PartlyRefused",
    "StoreFull",
    "Busy",
    "ShuttingDown",
    "Stale",
    "Unauthorized",
    "VersionMismatch",
    "ConnectionLost",
    "WaitTimeout",
    "JobFailed",
    "JobCancelled",
    "ResultLost",
]


@pytest.mark.parametrize("name", SPECIFIED)
def test_a_specified_error_is_in_the_tree_and_importable_from_the_package(name: str) -> None:
    import givalia_core

    cls = getattr(errors, name)

    assert issubclass(cls, GivaliaError)
    assert getattr(givalia_core, name) is cls


def test_a_code_is_the_class_name_in_capitals_and_belongs_to_one_class() -> None:
    codes = [cls.code for cls in errors.every()]

    assert DuplicateKey.code == "DUPLICATE_KEY"
    assert errors.StoreTooNew.code == "STORE_TOO_NEW"
    assert len(codes) == len(set(codes))


def test_every_error_says_what_to_do_and_has_an_exit_code() -> None:
    for cls in errors.every():
        assert cls.__doc__
        assert 1 <= cls.exit_code <= 78


@pytest.mark.parametrize("cls", errors.every())
def test_an_error_comes_back_from_the_wire_as_it_was(cls: type[GivaliaError]) -> None:
    error = cls("what happened", id="x", pid=4)

    again = from_wire(cls.code, str(error), error.details)

    assert type(again) is cls
    assert str(again) == "what happened"
    assert (again.id, again.pid) == ("x", 4)


@pytest.mark.parametrize("cls", errors.every())
def test_an_error_can_be_pickled_and_copied(cls: type[GivaliaError]) -> None:
    error = cls("what happened", state="running")

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert (str(again), again.details) == ("what happened", {"state": "running"})


def test_an_unknown_code_is_a_plain_error_that_names_it() -> None:
    error = from_wire("FROM_THE_FUTURE", "words", {"n": 1})

    assert type(error) is GivaliaError
    assert "FROM_THE_FUTURE" in str(error)
    assert error.n == 1


@pytest.mark.parametrize(
    "details", [{"message": "m"}, {"self": 1}, {"cls": 1}, {"code": 1}, {"args": 2}, {7: 8}, {"details": {}}]
)
def test_no_details_on_the_wire_can_break_their_reading(details: dict[str, object]) -> None:
    error = from_wire("BUSY", "words", details)

    assert isinstance(error, Busy)
    assert str(error) == "words"


def test_an_error_without_words_says_its_code() -> None:
    assert str(DuplicateKey()) == "DUPLICATE_KEY"


def test_a_detail_that_is_missing_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="retry_after"):
        _ = Busy("full").retry_after


def test_families_can_be_caught_at_once() -> None:
    assert issubclass(ShuttingDown, Busy)
    assert issubclass(WaitTimeout, TimeoutError)
    assert not issubclass(PartlyRefused, errors.Refused)
    assert {cls.__name__ for cls in StoreError.__subclasses__()} == {
        "StoreFailed", "StoreCorrupt", "StoreLocked", "StoreMissing", "StoreTooNew", "StoreAway", "StoreUnfit",
    }  # fmt: skip
