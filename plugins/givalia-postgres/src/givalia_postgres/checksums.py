"""Checksums of what this store writes: one over all columns of a job's row, one of what a server says about itself.

The checksum of a row stands at the end of its `record`, so no statement has to know of it. The checksum can cover every
column, since no statement changes a row in place: each change writes the record again. A checksum finds accidents; it does
not protect against somebody who writes to the tables on purpose.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

BYTES: Final = 4

_pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


def of_row(columns: Sequence[Any]) -> bytes:
    """Return the checksum of a row; `columns` are in their order, the record without its checksum.

    The columns are packed with their lengths: if bytes move from one column into the next, the checksum changes.

    Raises:
        ValueError: A text could not have been written.
    """
    return _bytes(zlib.crc32(_pack(columns)))


def seal(packed: bytes) -> bytes:
    """Return the bytes followed by their checksum; empty bytes stay empty."""
    return packed + _bytes(zlib.crc32(packed)) if packed else b""


def unsealed(sealed: bytes) -> bytes | None:
    """Return the bytes without their checksum; None if they are not what was written."""
    packed = sealed[:-BYTES]
    return packed if seal(packed) == sealed else None


def _bytes(checksum: int) -> bytes:
    return checksum.to_bytes(4, "little")
