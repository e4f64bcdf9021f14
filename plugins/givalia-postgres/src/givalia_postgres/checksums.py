"""Checksums of what this store writes: of a job's row, over every column, and of what servers say about themselves.

The checksum of a row stands at the end of its `record`, so that no statement has to know of it. No column is left out: no
statement changes a row in place, each change writes the record again. It finds accidents, and is no protection against somebody
who writes to the tables on purpose.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

BYTES: Final = 4

_pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


def of_row(columns: Sequence[Any]) -> bytes:
    """The checksum of a row, whose columns are given in their order, with the record as it is without its checksum.

    Packed together with their lengths: bytes that move from one column into the next are another row.

    Raises:
        ValueError: A text is none that could have been written.
    """
    return _bytes(zlib.crc32(_pack(columns)))


def seal(packed: bytes) -> bytes:
    """The same bytes with their checksum behind them; nothing stays nothing."""
    return packed + _bytes(zlib.crc32(packed)) if packed else b""


def unsealed(sealed: bytes) -> bytes | None:
    """Return the sealed bytes; None if these are not what was written."""
    packed = sealed[:-BYTES]
    return packed if seal(packed) == sealed else None


def _bytes(checksum: int) -> bytes:
    return checksum.to_bytes(4, "little")
