"""What the three programs share: flags made from settings, the log, the background, and how errors end a program."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from givalia_core.errors import GivaliaError
from givalia_core.printable import printable
from givalia_core.setting_values import written
from givalia_core.settings import load, state_folder

EXIT_USAGE: Final = 64
READY: Final = b"ready"
READY_FD: Final = "GIVALIA_READY_FD"
EXIT_CODES: Final = """
exit codes: 0 done; 1 the job failed or was cancelled (--wait); 64 usage or bad value; 65 too large, or a corrupt store;
66 no such job; 69 refused, or no server; 73 key is taken; 74 the store failed; 75 try again (busy, full, locked, timeout);
76 protocol versions differ; 77 not allowed; 78 settings cannot be used. docs/errors.md has them all."""

# The flags of 2012, and short ones that people type often.
_FLAGS: Final[dict[str, tuple[str, ...]]] = {
    "port": ("-p", "--mainport", "--port"),
    "worker_port": ("-w", "--workerport", "--worker-port"),
    "master": ("-m", "--master"),
    "name": ("-n", "--workername", "--name"),
    "concurrency": ("-c", "--concurrency"),
}

_NEGATIVE: Final = re.compile(r"-\.?\d")  # As Python 3.14 has it.

S = TypeVar("S")


class Parser(argparse.ArgumentParser):
    """As argparse has it, but a wrong use ends with the exit code that sysexits has for it, and -10m is a value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = _NEGATIVE

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def parser(prog: str, words: str, epilog: str = "") -> Parser:
    """A parser whose help keeps its lines."""
    return Parser(
        prog=prog, description=words, epilog=epilog + EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_settings(to: argparse.ArgumentParser, kind: type) -> None:
    """A flag for each setting, with no default of its own: what is not given may come from elsewhere."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        flags = _FLAGS.get(each.name, ("--" + each.name.replace("_", "-"),))
        shown = f" [{written(each, hints[each.name])}]" if each.default not in ("", False) else ""
        words = each.metadata["help"].replace("%", "%%") + shown
        if hints[each.name] is bool:
            to.add_argument(*flags, dest=each.name, action="store_true", default=None, help=words)
        else:
            to.add_argument(*flags, dest=each.name, metavar=each.name.upper(), default=None, help=words)
    to.add_argument("--config", metavar="FILE", default=None, help="TOML file with settings (see docs/settings.md)")


def begin(
    prog: str, words: str, kind: type[S], module: str, arguments: list[str], ready: str
) -> tuple[S, Callable[[], S], list[str]]:
    """What server and worker begin with: their flags, and the background if that was asked for.

    Returns:
        The settings, how to read them again, and lines about them for the log, which the settings name.
    """
    asked = parser(prog, words)
    asked.add_argument("-d", "--daemon", action="store_true", help=f"run in the background; print its PID when it {ready}")
    add_settings(asked, kind)
    given = asked.parse_args(arguments)
    notices: list[str] = []
    settings = read_settings(kind, given, notices.append)
    if given.daemon and READY_FD not in os.environ:
        go_to_background(module, arguments, getattr(settings, "log_file", ""), prog)
    return settings, lambda: read_settings(kind, given, _ignore), notices


def _ignore(_: str) -> None:
    """The environment of a running program does not change, so what is to be said about it was said."""


def log_all(log: logging.Logger, notices: Iterable[str]) -> None:
    """Log the lines that `begin` has returned."""
    for words in notices:
        log.warning("%s", words)


def read_settings(kind: type[S], given: argparse.Namespace, notice: Callable[[str], object]) -> S:
    """The settings of a program by flag, environment, file and default; `notice` is called with lines about them."""
    return load(kind, vars(given), file=given.config, notice=notice)


def say(words: str) -> None:
    """A line on standard error, whatever it holds."""
    print(printable(words), file=sys.stderr)


@contextlib.contextmanager
def errors_end_the_program(prog: str) -> Iterator[None]:
    """What goes wrong is said in one line on standard error, and the exit code says it again."""
    try:
        yield
    except GivaliaError as error:
        print(f"{prog}: {error.code}: {printable(error)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        print(f"{prog}: {printable(error)}", file=sys.stderr)
        raise SystemExit(69) from None


# The background.


def go_to_background(module: str, arguments: list[str], log_file: str, name: str) -> None:
    """Start this program once more without a terminal; print its PID once it is ready, and end.

    A new process rather than a fork: nothing of this one, no thread and no open file, goes with it. It finds `READY_FD` in
    its environment, which tells it that it is in the background already.
    """
    path = Path(log_file) if log_file else state_folder() / f"{name}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    readable, writable = os.pipe()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],  # -P: whatever lies in this folder is not to be imported.
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, READY_FD: str(writable)},
            pass_fds=(writable,),
            start_new_session=True,
        )
    os.close(writable)
    # What it writes counts, not the end of the pipe: something it starts may hold that open.
    if os.read(readable, len(READY)) == READY:
        print(child.pid, flush=True)
        raise SystemExit(0)
    code = child.wait()
    print(f"{name}: it did not start (exit code {code}); its log is {path}", file=sys.stderr)
    raise SystemExit(code or 70)


def tell_ready() -> None:
    """Tell whoever started this program in the background that it serves now."""
    fd = os.environ.pop(READY_FD, None)
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(int(fd), READY)
            os.close(int(fd))


def run(prog: str, program: Callable[[list[str]], int], arguments: list[str] | None) -> int:
    """Run a program with the arguments of the command line, or those given."""
    with errors_end_the_program(prog):
        return program(sys.argv[1:] if arguments is None else arguments)
