"""The reasons that end attempts, and the words for them: each has words, and no error is longer than a server takes."""

from __future__ import annotations

import uuid

import pytest

from givalia_core.headline import LEFT_OUT
from givalia_core.protocol.messages import ERROR_BYTES_MAX, Dispatch
from givalia_core.worker.page import WHYS
from givalia_core.worker.reasons import WORDS, Reason, about, clipped, timed_out


def dispatch(timeout_us: int | None = None) -> Dispatch:
    return Dispatch(bytes(range(16)), 7, "Cart", 2, 0, "cart-7", timeout_us=timeout_us)


def test_each_reason_except_the_timeout_has_words() -> None:
    assert WORDS.keys() == set(Reason) - {Reason.TIMEOUT}
    assert all(WORDS.values())


def test_no_reason_is_false_and_any_other_is_true() -> None:
    assert [reason for reason in Reason if not reason] == [Reason.NONE]


def test_the_shared_page_can_hold_each_reason_except_the_kill_for_memory() -> None:
    assert set(WHYS) == set(Reason) - {Reason.OOM}


@pytest.mark.parametrize(
    ("timeout_us", "seconds"), [(60_000_000, "60"), (1_500_000, "1.5"), (86_400_000_000, "86400"), (None, "0")]
)
def test_a_timeout_is_told_in_seconds(timeout_us: int | None, seconds: str) -> None:
    assert timed_out(dispatch(timeout_us)) == f"timeout: it ran longer than {seconds} s"


@pytest.mark.parametrize("error", ["", "no such cart", "x" * ERROR_BYTES_MAX, "é" * (ERROR_BYTES_MAX // 2)])
def test_an_error_that_is_short_enough_is_told_whole(error: str) -> None:
    assert clipped(error) == error


@pytest.mark.parametrize("letter", ["x", "é", "\N{SHOPPING TROLLEY}"])
def test_a_longer_error_keeps_its_first_line_and_its_end(letter: str) -> None:
    error = f"no such cart\n{letter * ERROR_BYTES_MAX}\nthe end"

    short = clipped(error)

    assert ERROR_BYTES_MAX - 4 < len(short.encode()) <= ERROR_BYTES_MAX
    assert short.startswith(f"no such cart\n{LEFT_OUT}\n{letter}")
    assert short.endswith(f"{letter}\nthe end")


def test_an_error_that_is_no_unicode_can_be_told() -> None:
    assert clipped("no file \udcff").encode() == b"no file ?"


def test_a_line_about_an_attempt_names_the_job_its_module_its_key_and_the_attempt() -> None:
    assert about(dispatch()) == {
        "job_id": str(uuid.UUID(bytes=bytes(range(16)))),
        "job_module": "Cart",
        "key": "cart-7",
        "attempt": 2,
    }
