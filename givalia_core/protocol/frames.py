"""Bytes to frames and back, with every limit enforced before memory is spent.

    connection := magic frame*                    magic is the four bytes "\\x93GV1", sent by the side that connects
    frame      := length:u32 kind:u8 request:u32 item*       length counts what follows it; all integers big-endian
    item       := fields_bytes:u16 payload_bytes:u32 fields payload

`fields` is one msgpack array of plain values, `payload` bytes that no server decodes (params, results). One frame carries
from none to 10,000 items of one kind: a batch is nothing special. Nothing here touches a socket: bytes go in, frames
come out, and a frame that is too large is skipped to its exact end, never resynchronised inside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.errors import BadRequest, TooLarge

MAGIC: Final = b"\x93GV1"
FRAME_BYTES_MAX: Final = 1 << 20
DISCARD_BYTES_MAX: Final = 16 * FRAME_BYTES_MAX
ANSWER_BYTES_MAX: Final = 16 * FRAME_BYTES_MAX  # The most that a client takes: ten thousand refusals, each with its reason.
FIELDS_BYTES_MAX: Final = (1 << 16) - 1
ITEMS_MAX: Final = 10_000
FIRST_BYTES: Final = 64  # Room for an item that each of several frames begins with.
VALUES_MAX: Final = 4_096
PARAMS_BYTES_MAX: Final = 512 << 10
RESULT_BYTES_MAX: Final = 256 << 10

_HEAD: Final = struct.Struct(">IBI")
_ITEM: Final = struct.Struct(">HI")
_HEAD_BODY_BYTES: Final = 5  # kind and request, counted by length

Item = tuple[Sequence[Any], bytes]
_pack = msgpack.Packer(autoreset=True).pack


class Frame(NamedTuple):
    """One frame as received: the items' fields are still packed, so that one bad item spoils no other."""

    kind: int
    request: int
    items: list[tuple[bytes, bytes]]


class Unreadable(NamedTuple):
    """A frame that was skipped whole; its sender is told why under its request number."""

    request: int
    error: BadRequest | TooLarge


class FrameReader:
    """Turns bytes into frames; holds at most one frame of bytes."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._skip_bytes = 0
        self.is_mid_frame = False
        """True while a frame has begun and not ended."""

    def feed(self, data: bytes | memoryview) -> list[Frame | Unreadable]:
        """Take the bytes that arrived; return the complete frames. Raise TooLarge for a frame that is too long to skip."""
        buffer = self._buffer
        buffer += self._skip(data) if self._skip_bytes else data
        frames: list[Frame | Unreadable] = []
        start, end = 0, len(buffer)
        while end - start >= _HEAD.size:
            length, kind, request = _HEAD.unpack_from(buffer, start)
            if length > self._frame_bytes_max or length < _HEAD_BODY_BYTES:
                frames.append(self._refuse_length(length, request))
                start += _HEAD.size
                skipped = min(length - _HEAD_BODY_BYTES, end - start)
                self._skip_bytes, start = length - _HEAD_BODY_BYTES - skipped, start + skipped
                continue
            stop = start + 4 + length
            if stop > end:
                break
            frames.append(_cut(kind, request, bytes(memoryview(buffer)[start + _HEAD.size : stop])))
            start = stop
        if start:
            del buffer[:start]
        self.is_mid_frame = bool(buffer) or self._skip_bytes > 0
        return frames

    def _skip(self, data: bytes | memoryview) -> bytes | memoryview:
        skipped = min(self._skip_bytes, len(data))
        self._skip_bytes -= skipped
        return data[skipped:]

    def _refuse_length(self, length: int, request: int) -> Unreadable:
        if length < _HEAD_BODY_BYTES:
            raise TooLarge(f"a frame says it has {length} bytes, less than its own head")
        error = TooLarge(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX} are taken")
        if length > DISCARD_BYTES_MAX:
            raise error
        return Unreadable(request, error)


def _cut(kind: int, request: int, body: bytes) -> Frame | Unreadable:
    items: list[tuple[bytes, bytes]] = []
    at, end = 0, len(body)
    unpack = _ITEM.unpack_from
    while at < end:
        if end - at < _ITEM.size:
            return Unreadable(request, BadRequest(f"an item is cut off at byte {at} of the frame"))
        fields_bytes, payload_bytes = unpack(body, at)
        middle = at + _ITEM.size + fields_bytes
        stop = middle + payload_bytes
        if stop > end:
            return Unreadable(request, BadRequest(f"the item at byte {at} says it is longer than the frame"))
        if len(items) == ITEMS_MAX:
            return Unreadable(request, TooLarge(f"more than {ITEMS_MAX} items in one frame"))
        items.append((body[at + _ITEM.size : middle], body[middle:stop]))
        at = stop
    return Frame(kind, request, items)


def unpack_fields(packed: bytes) -> list[Any]:
    """Return the fields of one item, as a list; the message defines what each may hold.

    Raises:
        BadRequest: The bytes are not one msgpack array within the limits. At most 64 KiB are read, whatever the array claims.
    """
    try:
        fields = msgpack.unpackb(packed, max_array_len=VALUES_MAX, max_map_len=VALUES_MAX, max_ext_len=0, strict_map_key=False)
    except Exception as error:  # msgpack raises many types, which mean the same to the sender.
        raise BadRequest(f"an item's fields are not a msgpack array: {type(error).__name__}: {error}") from None
    if type(fields) is not list:
        raise BadRequest("an item's fields must be a msgpack array")
    return fields


def encode(kind: int, request: int, items: Iterable[Item]) -> bytes:
    """Return one frame of these items, each with its fields and its payload."""
    body = b"".join(_packed(items))
    return _HEAD.pack(len(body) + _HEAD_BODY_BYTES, kind, request) + body


def encode_split(kind: int, request: int, items: Iterable[Item], first: Item | None = None) -> list[bytes]:
    """Return as many frames as the limits require, in order, each with `first` before its own items."""
    head = [] if first is None else _packed([first])
    bodies, size = [[*head]], 0
    for packed in _packed(items):
        body = bodies[-1]
        if len(body) > len(head) and (size + len(packed) > _SPLIT_BYTES or len(body) == ITEMS_MAX):
            bodies.append(body := [*head])
            size = 0
        body.append(packed)
        size += len(packed)
    return [_HEAD.pack(len(joined) + _HEAD_BODY_BYTES, kind, request) + joined for joined in map(b"".join, bodies)]


def _packed(items: Iterable[Item]) -> list[bytes]:
    parts: list[bytes] = []
    last: Item | None = None
    for each in items:
        if each is last:  # The one answer to most reports.
            parts.append(parts[-1])
            continue
        fields, payload = last = each
        packed = _pack(fields)
        if len(packed) > FIELDS_BYTES_MAX:
            raise TooLarge(f"the fields of an item need {len(packed)} bytes; at most {FIELDS_BYTES_MAX} are taken")
        parts.append(_ITEM.pack(len(packed), len(payload)) + packed + payload)
    return parts


_SPLIT_BYTES: Final = FRAME_BYTES_MAX - _HEAD.size - FIRST_BYTES
