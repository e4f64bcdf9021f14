"""The memory of answers that changed no job: by request, for two minutes, within bounds."""

from __future__ import annotations

import msgpack
import pytest
from engine_rig import uid

from givalia_core.engine import remembered
from givalia_core.engine.remembered import ENTRY_BYTES, Remembered, pack, unpack
from givalia_core.errors import DuplicateKey, NotFound, StoreCorrupt
from givalia_core.model import REMEMBERED_AT_LEAST_US
from givalia_core.protocol.answers import Answer, Cancelled, Enqueued, Moved
from givalia_core.protocol.messages import Kind
from givalia_core.store.shared import Kept

ANSWERS = [
    (Kind.CANCEL, Cancelled("cancelled")),
    (Kind.EXT, Moved(uid(1), 5)),
    (Kind.ENQ, Enqueued(uid(1), 5, "fsync")),
]


def kept(number: int, answer: Answer | None = None) -> Kept:
    return Kept(uid(number), pack(answer or Cancelled("cancelled")), is_enq=False)


@pytest.mark.parametrize(("kind", "answer"), ANSWERS)
def test_an_answer_is_given_again_as_it_was(kind: Kind, answer: Answer) -> None:
    memory = Remembered()

    memory.add([kept(1, answer)], 0)

    assert memory.get(kind, uid(1)) == answer
    assert memory.get(kind, uid(2)) is None


def test_a_refusal_is_given_again_with_its_code_words_and_details() -> None:
    memory = Remembered()
    memory.add([kept(1, DuplicateKey("it is held", id="x"))], 0)

    again = memory.get(Kind.ENQ, uid(1))

    assert type(again) is DuplicateKey
    assert (str(again), again.details) == ("it is held", {"id": "x"})


def test_an_answer_that_cannot_be_read_is_an_error_and_no_success() -> None:
    assert isinstance(unpack(Kind.CANCEL, msgpack.packb(["OK", 7])), StoreCorrupt)


def test_the_first_answer_to_a_request_stands() -> None:
    memory = Remembered()
    memory.add([kept(1)], 0)
    before = memory.bytes
    memory.add([kept(1, NotFound("no"))], 5)

    assert memory.get(Kind.CANCEL, uid(1)) == Cancelled("cancelled")
    assert (len(memory), memory.bytes) == (1, before)


@pytest.mark.parametrize("held_up_us", [0, 7])
def test_an_answer_is_known_for_two_minutes_and_as_much_longer_as_the_process_stood_still(held_up_us: int) -> None:
    memory = Remembered()
    memory.add([kept(1)], 100)
    memory.add([kept(2)], 101)
    end_us = 100 + REMEMBERED_AT_LEAST_US + held_up_us

    memory.forget(end_us, held_up_us)
    assert len(memory) == 2
    memory.forget(end_us + 1, held_up_us)
    assert memory.get(Kind.CANCEL, uid(1)) is None
    assert memory.get(Kind.CANCEL, uid(2)) is not None
    memory.forget(end_us + 2, held_up_us)

    assert (len(memory), memory.bytes) == (0, 0)


def test_a_turn_forgets_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "FORGOTTEN_AT_ONCE", 2)
    memory = Remembered()
    memory.add([kept(number) for number in range(3)], 0)

    memory.forget(2 * REMEMBERED_AT_LEAST_US, 0)
    assert len(memory) == 1
    memory.forget(2 * REMEMBERED_AT_LEAST_US, 0)

    assert len(memory) == 0


def test_there_is_room_up_to_the_bound_with_those_that_are_about_to_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Remembered()
    memory.add([kept(1)], 0)
    monkeypatch.setattr(remembered, "BYTES_MAX", memory.bytes + 2 * ENTRY_BYTES)

    assert [memory.has_room(more) for more in (0, 1, 2, 3)] == [True, True, False, False]
