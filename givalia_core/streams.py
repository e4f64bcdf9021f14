"""Standard output and error that take any text, and outlast their reader: a closed terminal or pipe never costs a job."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

_NO_FILE: Final = errno.EBADF


class _Lasting(FileIO):
    """A file descriptor whose bytes are dropped when nobody can take them: EIO, EPIPE, ENOSPC."""

    def write(self, data: Any) -> int:
        """Return the number of bytes that are dealt with, written or dropped."""
        try:
            return super().write(data)
        except OSError as error:
            # A descriptor that is closed, or put to another use, is a mistake in this process, which its code should see.
            if error.errno == _NO_FILE:
                raise
            return len(data)


def outlast_readers() -> None:
    """Replace `sys.stdout` and `sys.stderr` of this process by streams that drop a line if nobody can take it.

    Characters that their encoding lacks are written as `\\u00e9`.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):  # None if the process was started without.
            with suppress(OSError):
                stream.flush()
            raw = _Lasting(stream.fileno(), "wb", closefd=False)
            lasting = TextIOWrapper(BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)
