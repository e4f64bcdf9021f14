"""How a program begins and ends for whoever called it: one line for what went wrong, an exit code, and no traceback.

Whatever there is to show can be shown: in any locale, on a stream that is closed, to a reader that goes away.
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
    """Run a program with the arguments of the command line, or those given; return its exit code.

    Args:
        prog: Its name in messages.
        program: Takes the arguments.
        arguments: None: those of the command line.
        is_daemon: Its traceback goes to a log: raise what nobody expected.

    Raises:
        SystemExit: It went wrong; everything is said.
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
                sys.stdout.flush()  # Here, where what goes wrong is still said in a line.
                if was_left_to_system and not is_daemon:  # All is done, and what Python does at its end shows tracebacks.
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
    """Say what goes wrong in one line on standard error; the exit code says it again."""
    try:
        yield
    except GivaliaError as error:
        say(f"{prog}: {error.code}: {printable(error)}")
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of our output (`head`, say) has had enough; that is no error.
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
    """Say this on standard error, whatever it holds, if anybody is there to read it. What the program does goes on."""
    try:
        say_last(line)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _open_streams() -> None:
    """Let each stream exist and take any text: what its encoding lacks is written as `\\u00e9`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # The program was started without it.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - For as long as the program runs.
        elif mode == "w" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Drop what a stream still holds: Python would try again to write it, and complain, when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Ended(KeyboardInterrupt):
    """A signal asks the program to end: what it does is broken off as by Ctrl+C, and said."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _end_calls_at_signals() -> None:
    """Let SIGTERM and SIGHUP, unless somebody ignores them, break off what is done instead of the whole process."""

    def end(number: int, _: object) -> NoReturn:
        raise _Ended(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(number, end)


def _end_by(number: int) -> NoReturn:
    """End as a program does that leaves the signal to the system: a shell then ends the script or loop that called it, too."""
    _discard_output()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # Should it be blocked.
