"""What a client says: as few frames as the limits allow, and none that a server would refuse as a whole."""

from __future__ import annotations

import pytest

from givalia_core.client import talk
from givalia_core.protocol import frames

COUNT = 5_000


@pytest.mark.parametrize("letter", ["k", "é", "鍵", "😀"])
def test_no_frame_is_too_large_whatever_letters_the_keys_are_made_of(letter: str) -> None:
    longest = 250 // len(letter.encode())
    jobs = [{"module": "M", "key": letter * longest + f"{number:05}"} for number in range(COUNT)]

    calls, _ = talk.enq_many(jobs)
    made = [(len(call.items), len(frames.encode(call.kind, 1, call.items)) - 4) for call in calls]

    assert sum(items for items, _ in made) == COUNT
    assert all(size <= frames.FRAME_BYTES_MAX for _, size in made)
