"""Messages are cut into few frames, and no frame is larger than a server takes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

from givalia_core.protocol import frames
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import FRAME_BYTES_MAX, ITEMS_MAX, RESULT_BYTES_MAX
from givalia_core.protocol.messages import ERROR_BYTES_MAX, FailReport, NamedLease, Progress, Succeed
from givalia_core.worker.link.parts import parts_of
from givalia_core.worker.link.records import KIND_OF

ROOM = FRAME_BYTES_MAX // 2
FIELDS = 48  # The bytes that the fields of a message count for.


def success(fence: int, result_bytes: int = 1) -> Succeed:
    return Succeed(fence.to_bytes(16), fence, None, bytes(result_bytes))


def failure(fence: int, error: str) -> FailReport:
    return FailReport(fence.to_bytes(16), (1 << 63) - 1, "stopped", error, 1 << 62, True, True)


def hint(fence: int, text: str) -> Progress:
    return Progress(fence.to_bytes(16), (1 << 63) - 1, 0.5, text)


def test_no_messages_are_one_empty_frame() -> None:
    assert parts_of([]) == [[]]


def test_small_messages_go_together() -> None:
    said = [success(number) for number in range(1_000)]

    assert parts_of(said) == [said]


def test_a_frame_has_no_more_items_than_a_server_takes() -> None:
    said = [NamedLease(number.to_bytes(16), number) for number in range(2 * ITEMS_MAX + 1)]

    parts = parts_of(said)

    assert [len(part) for part in parts] == [ITEMS_MAX, ITEMS_MAX, 1]
    assert list(chain.from_iterable(parts)) == said


def test_messages_that_just_fit_stay_together_and_a_byte_more_is_another_frame() -> None:
    half = ROOM // 2 - FIELDS
    fits, too_many = [success(1, half), success(2, half)], [success(1, half), success(2, half + 1)]

    assert parts_of(fits) == [fits]
    assert parts_of(too_many) == [[message] for message in too_many]


def test_each_frame_has_the_whole_room_again() -> None:
    half = ROOM // 2 - FIELDS
    said = [success(number, half) for number in range(6)]

    assert parts_of(said) == [said[:2], said[2:4], said[4:]]


def test_a_message_that_is_larger_than_the_room_has_a_frame_for_itself() -> None:
    small, large, last = success(1), success(2, ROOM), success(3)

    assert parts_of([small, large, last]) == [[small], [large], [last]]
    assert parts_of([large]) == [[large]]


@pytest.mark.parametrize(
    "said",
    [
        [success(number, RESULT_BYTES_MAX) for number in range(9)],
        [failure(number, "\N{SHOPPING TROLLEY}" * (ERROR_BYTES_MAX // 4)) for number in range(200)],
        [failure(number, "x" * ERROR_BYTES_MAX) for number in range(200)],
        [failure(number, "") for number in range(ITEMS_MAX)],
        [hint(number, "é" * 127) for number in range(ITEMS_MAX)],
    ],
    ids=["results", "errors of four bytes a letter", "errors of one byte a letter", "no errors", "hints"],
)
def test_what_is_sent_is_all_in_order_in_frames_that_a_server_takes(said: list[Any]) -> None:
    parts = parts_of(said)

    assert list(chain.from_iterable(parts)) == said
    reader = frames.FrameReader()
    for part in parts:
        (frame,) = reader.feed(frames.encode(KIND_OF[type(part[0])], 1, map(item, part)))
        assert isinstance(frame, frames.Frame)
        assert len(frame.items) == len(part)
