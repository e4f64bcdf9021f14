"""The beginning and end of a program: one line and an exit code for an error, and no traceback.

Output never fails: in any locale, on a closed stream, with a reader that goes away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from typing import Final, NoReturn, TextIO

from givalia_core.errors import GivaliaError
from givalia_core.printable import printable
from givalia_core.program import say_last

EXIT_BUG: Final = 70
EXIT_IO: Final = 74
_OF_STREAMS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EISDIR})
TRACEBACK: Final = "GIVALIA_TRACEBACK"


def run(prog: str, program: Callable[[list[str]], int], arguments: list[str] | None, *, is_daemon: bool = False) -> int:
    """Run a program; return its exit code.

    Args:
        prog: The program's name in messages.
        program: Takes the arguments.
        arguments: The arguments; None: those of the command line.
        is_daemon: True for a program whose tracebacks go to a log: unexpected errors are raised.

    Raises:
        SystemExit: The program failed; a line says so.
    """
    _open_streams()
    if not is_daemon:
        _end_calls_at_signals()
    was_left_to_system = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # See `entry`.
    try:
        if was_left_to_system:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with errors_end_the_program(prog):
            try:
                return program(sys.argv[1:] if arguments is None else arguments)
            finally:
                sys.stdout.flush()  # Here, where an error is still reported as a line.
                if was_left_to_system and not is_daemon:  # All is done, and an interrupt at Python's end shows tracebacks.
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
    except _Ended as ended:
        _end_by(ended.number)
    except KeyboardInterrupt:
        _end_by(signal.SIGINT)
    except Exception as error:
        if is_daemon or TRACEBACK in os.environ:
            raise
        say(f"{prog}: this is a bug: {type(error).__name__}: {printable(error)} ({TRACEBACK}=1 shows where)")
        raise SystemExit(EXIT_BUG) from None


@contextlib.contextmanager
def errors_end_the_program(prog: str) -> Iterator[None]:
    """Report an error as one line on standard error and as the exit code."""
    try:
        yield
    except GivaliaError as error:
        say(f"{prog}: {error.code}: {printable(error)}")
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of the output, for example `head`, has stopped reading; that is no error.
        _discard_output()
        raise SystemExit(0) from None
    except OSError as error:
        _discard_output()
        if error.filename is None and error.errno in _OF_STREAMS:  # Files are opened by their names.
            say(f"{prog}: standard input or output: {printable(error.strerror or error)}")
            raise SystemExit(EXIT_IO) from None
        say(f"{prog}: {printable(error)}")
        raise SystemExit(69) from None


def say(line: str) -> None:
    """Write a line to standard error; a missing reader or an odd character never stops the program."""
    try:
        say_last(line)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _open_streams() -> None:
    """Make each stream exist and take any text; characters that its encoding lacks are written as `\\u00e9`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # The program was started without this stream.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - For as long as the program runs.
        elif mode == "w" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Drop the buffered text of a stream; otherwise Python would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Ended(KeyboardInterrupt):
    """A signal ends the program as Ctrl+C does: the work is interrupted, and a line says so."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _end_calls_at_signals() -> None:
    """Let SIGTERM and SIGHUP, unless ignored, interrupt the work instead of killing the process."""

    def end(number: int, _: object) -> NoReturn:
        raise _Ended(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(number, end)


def _end_by(number: int) -> NoReturn:
    """End by the signal's default action; a shell then also ends the script or loop that called the program."""
    _discard_output()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # Only if the signal is blocked.
