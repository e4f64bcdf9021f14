"""Bytes to frames and back, in any pieces from the network."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from givalia_core.errors import BadRequest, TooLarge
from givalia_core.protocol import frames
from givalia_core.protocol.frames import (
    DISCARD_BYTES_MAX,
    FIELDS_BYTES_MAX,
    FRAME_BYTES_MAX,
    ITEMS_MAX,
    VALUES_MAX,
    Frame,
    FrameReader,
    Unreadable,
    encode,
    encode_split,
    unpack_fields,
)


def head(length: int, kind: int = 2, request: int = 7) -> bytes:
    return struct.pack(">IBI", length, kind, request)


def unpacked(frame: Any) -> list[tuple[list[Any], bytes]]:
    assert isinstance(frame, Frame), frame
    return [(unpack_fields(fields), payload) for fields, payload in frame.items]


ITEMS = [((1, "two", b"\x00", None, True, 2.5), b"payload"), ((), b""), (("ü",), bytes(3))]


def test_a_frame_has_the_bytes_that_the_protocol_page_shows() -> None:
    assert encode(2, 7, [((1, "a"), b"xy")]).hex(" ") == "00 00 00 11 02 00 00 00 07 00 04 00 00 00 02 92 01 a1 61 78 79"
    assert encode(8, 1, []).hex(" ") == "00 00 00 05 08 00 00 00 01"


def test_what_is_encoded_is_read_as_it_was() -> None:
    (frame,) = FrameReader().feed(encode(200, (1 << 32) - 1, ITEMS))

    assert (frame.kind, frame.request) == (200, (1 << 32) - 1)
    assert unpacked(frame) == [(list(fields), payload) for fields, payload in ITEMS]


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    sent = b"".join(encode(2, number, ITEMS) for number in range(3))
    reader = FrameReader()

    one_by_one = [frame for byte in sent for frame in reader.feed(bytes([byte]))]

    assert one_by_one == FrameReader().feed(sent)
    assert not reader.is_mid_frame


def test_a_thousand_frames_in_one_packet_are_a_thousand_frames() -> None:
    sent = b"".join(encode(2, number, [((number,), b"")]) for number in range(1_000))

    read = FrameReader().feed(sent)

    assert [frame.request for frame in read] == list(range(1_000))
    assert [unpacked(frame)[0][0] for frame in read] == [[number] for number in range(1_000)]


def test_a_frame_that_has_begun_is_mid_frame_until_its_last_byte() -> None:
    sent, reader = encode(2, 1, ITEMS), FrameReader()
    states = []
    for byte in sent:
        reader.feed(bytes([byte]))
        states.append(reader.is_mid_frame)

    assert states == [True] * (len(sent) - 1) + [False]


def test_nothing_fed_gives_nothing() -> None:
    reader = FrameReader()

    assert reader.feed(b"") == []
    assert not reader.is_mid_frame


@pytest.mark.parametrize("cut", [1, 9, 10, 4_096, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 500])
@pytest.mark.parametrize("over", [1, 4_000])
def test_a_frame_that_is_too_large_is_skipped_to_its_exact_end(cut: int, over: int) -> None:
    large = head(FRAME_BYTES_MAX + over, request=5) + bytes([0x93]) * (FRAME_BYTES_MAX + over - 5)
    sent = encode(2, 4, ITEMS) + large + encode(2, 6, ITEMS) + encode(2, 7, [])
    step = max(cut, 4_096) if cut > 1 else len(sent) // 3
    reader = FrameReader()

    read = [frame for at in range(0, len(sent), step) for frame in reader.feed(sent[at : at + step])]

    assert [frame.request for frame in read] == [4, 5, 6, 7]
    assert isinstance(read[1], Unreadable)
    assert isinstance(read[1].error, TooLarge)
    assert unpacked(read[2]) == unpacked(read[0])
    assert not reader.is_mid_frame


def test_a_skipped_frame_costs_no_memory() -> None:
    reader = FrameReader()
    reader.feed(head(DISCARD_BYTES_MAX))

    for _ in range(100):
        reader.feed(bytes(100_000))

    assert len(reader._buffer) == 0
    assert reader.is_mid_frame


def test_a_frame_of_exactly_the_limit_is_taken() -> None:
    payload = bytes(FRAME_BYTES_MAX - 5 - 6 - 1)

    (frame,) = FrameReader().feed(encode(2, 1, [((), payload)]))

    assert unpacked(frame) == [([], payload)]


@pytest.mark.parametrize("length", [0, 1, 4, DISCARD_BYTES_MAX + 1, (1 << 32) - 1])
def test_a_length_not_worth_skipping_ends_the_connection(length: int) -> None:
    with pytest.raises(TooLarge):
        FrameReader().feed(head(length))


@pytest.mark.parametrize(
    "body",
    [
        b"\x00",
        b"\x00\x01\x00\x00\x00",
        struct.pack(">HI", 5, 0) + b"\x90",
        struct.pack(">HI", 1, 9) + b"\x90",
        struct.pack(">HI", 1, 0xFFFFFFFF) + b"\x90",
        struct.pack(">HI", 1, 0) + b"\x90" + b"\x00",
    ],
)
def test_an_item_that_does_not_fit_its_frame_spoils_that_frame_only(body: bytes) -> None:
    bad = head(5 + len(body), request=3) + body

    refused, good = FrameReader().feed(bad + encode(2, 4, ITEMS))

    assert isinstance(refused, Unreadable)
    assert isinstance(refused.error, BadRequest)
    assert refused.request == 3
    assert good.request == 4


def test_ten_thousand_items_are_taken_and_one_more_is_not() -> None:
    item = ((), b"")

    full, over = FrameReader().feed(encode(2, 1, [item] * ITEMS_MAX) + encode(2, 2, [item] * (ITEMS_MAX + 1)))

    assert len(full.items) == ITEMS_MAX
    assert isinstance(over, Unreadable)
    assert isinstance(over.error, TooLarge)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_garbage_gives_frames_or_refusals_and_the_same_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    def read(pieces: list[bytes]) -> tuple[list[Any], bool]:
        reader, out = FrameReader(), []
        for piece in pieces:
            try:
                out += reader.feed(piece)
            except TooLarge:
                return [], True
        return [repr(frame) for frame in out], reader.is_mid_frame

    pieces, at = [], 0
    while at < len(data):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(data[at : at + size])
        at += size

    assert read(pieces) == read([data])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_one_flipped_bit_never_raises_anything_undocumented(seed: int) -> None:
    dice = random.Random(seed)
    sent = bytearray(encode(2, 4, ITEMS) * 2)
    sent[dice.randrange(len(sent))] ^= 1 << dice.randrange(8)

    try:
        for frame in FrameReader().feed(bytes(sent)):
            for fields, _ in getattr(frame, "items", ()):
                unpack_fields(fields)
    except (BadRequest, TooLarge):
        pass


# Fields.


@pytest.mark.parametrize(
    "packed",
    [
        b"", b"\x90\x90", b"\x80", b"\xc0", b"\x01", b"\xa1a", b"\xc1", b"\x92\x01", b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff", b"\x91\xdb\xff\xff\xff\xff", b"\x91\xc6\xff\xff\xff\xff", b"\x91\xa1\xff",
        b"\x91\xa3\xed\xa0\x80", b"\x91" * 60_000, b"\x91\xd4\x05\x00", b"\x91\xd6\xff\x00\x00\x00\x00",
        b"\x91\xc7\x04\x05abcd",
        b"\xdc" + struct.pack(">H", VALUES_MAX + 1) + b"\xc0" * (VALUES_MAX + 1),
    ],
)  # fmt: skip
def test_fields_that_are_no_plain_array_are_refused(packed: bytes) -> None:
    with pytest.raises(BadRequest):
        unpack_fields(packed)


def test_as_many_values_as_the_limit_are_taken() -> None:
    assert len(unpack_fields(msgpack.packb([None] * VALUES_MAX))) == VALUES_MAX


@settings(max_examples=300, deadline=None)
@given(packed=st.binary(max_size=64))
def test_any_bytes_are_fields_or_a_bad_request(packed: bytes) -> None:
    try:
        fields = unpack_fields(packed)
    except BadRequest:
        return
    assert type(fields) is list


# Encoding.


def test_fields_over_their_limit_are_not_sent() -> None:
    with pytest.raises(TooLarge):
        encode(2, 1, [(("x" * FIELDS_BYTES_MAX,), b"")])


@pytest.mark.parametrize("first", [None, ((9, 30_000_000), b"")])
@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 10), (25_000, 0), (9, 300_000), (4, 512 << 10), (3, 1_000_000)])
def test_a_long_list_becomes_frames_within_the_limits_and_in_order(first: Any, count: int, size: int) -> None:
    items = [((number,), bytes(size)) for number in range(count)]

    encoded = encode_split(64, 5, items, first=first)

    numbers: list[int] = []
    for each in encoded:
        (frame,) = FrameReader().feed(each)
        fields = [fields for fields, _ in unpacked(frame)]
        if first is not None:
            assert fields.pop(0) == list(first[0])
        assert len(frame.items) <= ITEMS_MAX
        numbers += [number for (number,) in fields]
    assert numbers == list(range(count))


def test_the_magic_can_be_no_line_and_no_text() -> None:
    assert frames.MAGIC == b"\x93GV1"
    with pytest.raises(UnicodeDecodeError):
        frames.MAGIC.decode()
