"""A frame of thousands of commands needs little more memory than its bytes until it is decided, whatever is in it."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import pytest

from givalia_core.errors import BadRequest, GivaliaError, TooLarge
from givalia_core.protocol import codec, frames
from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked, decoded
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import PARAMS_BYTES_MAX, Item
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.session import Port, Session
from givalia_core.server.inbox import Inbox

COUNT = 10_000
ITEMS: dict[str, tuple[Kind, list[Item]]] = {
    "nothing in them": (Kind.CANCEL, [((), b"")] * COUNT),
    "each wrong in its own way": (Kind.CANCEL, [((number,), b"") for number in range(COUNT)]),
    "of the wrong type": (Kind.ENQ, [(("x",), b"")] * COUNT),
    "well made": (Kind.EXT, [item(m.Ext(number.to_bytes(16), "k", delta_us=5)) for number in range(COUNT)]),
}


def open_session() -> Session:
    made = Session(Port.CLIENT)
    made.feed(frames.MAGIC + frames.encode(Kind.HELLO, 1, [item(m.Hello(1, 1))]))
    made.take_out()
    return made


def ask_of(kind: Kind, items: list[Item]) -> Asked:
    (ask,) = open_session().feed(frames.encode(kind, 2, items))
    return ask


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("is_decided", [False, True])
def test_a_large_frame_holds_little_more_than_was_sent(name: str, is_decided: bool) -> None:
    kind, items = ITEMS[name]
    data, talk = frames.encode(kind, 2, items), open_session()

    tracemalloc.start()
    try:
        held: Any = talk.feed(data)
        if is_decided:
            held = decoded(held[0].messages)
        bytes_held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(held) == (COUNT if is_decided else 1)
    assert bytes_held < 12 * len(data)


def test_items_of_a_large_frame_are_decoded_when_it_is_their_turn() -> None:
    kind, items = Kind.ENQ, [item(m.Enq(os.urandom(16), "Mail", 5, payload=b"p")) for _ in range(COUNT)]
    items[COUNT // 2] = ((b"", "Mail"), b"")
    inbox = Inbox()
    ask = ask_of(kind, items)
    inbox.put(ask._replace(conn=1))

    (taken,) = inbox.take()

    assert isinstance(taken, Asked)
    assert len(ask.messages) == len(taken.messages) == COUNT
    assert isinstance(taken.messages.pop(COUNT // 2), BadRequest)
    del items[COUNT // 2]
    assert taken.messages == [m.Enq(fields[0], "Mail", 5, payload=b"p") for fields, _ in items]


def test_errors_of_a_frame_keep_their_words_up_to_a_number_and_their_codes_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "ERRORS_MAX", 3)
    items: list[Item] = [((number,), b"") for number in range(8)]
    items[5] = item(m.Enq(bytes(16), "Mail", payload=bytes(PARAMS_BYTES_MAX + 1)))

    errors: list[GivaliaError] = decoded(ask_of(Kind.ENQ, items).messages)

    assert [type(each) for each in errors] == [BadRequest] * 5 + [TooLarge] + [BadRequest] * 2
    assert len({str(each) for each in errors[:3]}) <= 3
    assert all(each.__traceback__ is None for each in errors)
