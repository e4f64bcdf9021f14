"""Standard output and error that take any text and outlast their reader: a closed terminal or pipe never costs a job."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from os import O_CLOEXEC, O_WRONLY, close, devnull, dup2
from os import open as open_file
from select import POLLERR, POLLHUP, POLLNVAL
from typing import Any, Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

_NO_FILE: Final = errno.EBADF


class _Lasting(FileIO):
    """A file descriptor that drops bytes which cannot be written: EIO, EPIPE, ENOSPC."""

    def write(self, data: Any) -> int:
        """Return the number of bytes written or dropped."""
        try:
            return super().write(data)
        except OSError as error:
            # A closed or reused descriptor is a mistake in this process, so its code must see the error.
            if error.errno == _NO_FILE:
                raise
            return len(data)


def outlast_readers() -> None:
    """Replace `sys.stdout` and `sys.stderr` with streams that drop a line if it cannot be written.

    Characters that the encoding lacks are written as `\\u00e9`.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):  # None if the process was started without the stream.
            with suppress(OSError):
                stream.flush()
            raw = _Lasting(stream.fileno(), "wb", closefd=False)
            lasting = TextIOWrapper(BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)


def let_go_of_readers(make_poll: Callable[[], Any]) -> bool:
    """Redirect standard output and error to the null device if their reader is gone; return whether one was gone.

    `outlast_readers` covers what this process prints. Programs that it starts write to the descriptors directly, and a pipe
    without a reader would kill them.

    Args:
        make_poll: `select.poll` of the standard library, not gevent's: this function must not wait for a loop.
    """
    poll = make_poll()
    for fd in (1, 2):
        poll.register(fd, 0)
    gone = [fd for fd, what in poll.poll(0) if what & (POLLERR | POLLHUP) and not what & POLLNVAL]
    for fd in gone:
        nowhere = open_file(devnull, O_WRONLY | O_CLOEXEC)
        dup2(nowhere, fd)
        close(nowhere)
    return bool(gone)
