"""The common parts of the three programs: flags made from settings, the log, and the background."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_type_hints

from givalia_core import program
from givalia_core.cli import completion, endings
from givalia_core.errors import BadRequest, SettingsInvalid
from givalia_core.printable import printable
from givalia_core.setting_values import written
from givalia_core.settings import load, state_folder
from givalia_core.version import __version__

READY: Final = b"ready"
READY_FD: Final = "GIVALIA_READY_FD"
IN_BACKGROUND: Final = "GIVALIA_IN_BACKGROUND"
EXIT_CODES: Final = """
exit codes: 0 done; 1 the job failed or was cancelled (--wait); 64 usage or bad value; 65 too large, or a corrupt store;
66 no such job; 69 refused, or no server; 73 key is taken; 74 the store failed; 75 try again (busy, full, locked, timeout);
76 protocol versions differ; 77 not allowed; 78 settings cannot be used; 130 Ctrl+C. docs/errors.md has them all."""

# The flags of 2012, and short ones.
FLAGS: Final[dict[str, tuple[str, ...]]] = {
    "port": ("-p", "--mainport", "--port"),
    "worker_port": ("-w", "--workerport", "--worker-port"),
    "master": ("-m", "--master"),
    "name": ("-n", "--workername", "--name"),
    "concurrency": ("-c", "--concurrency"),
}

_NEGATIVE: Final = re.compile(r"-\.?\d")  # As Python 3.14 has it.

S = TypeVar("S")


class Parser(argparse.ArgumentParser):
    """The parser of argparse, but a usage error is one line with its code, and -10m is a value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._negative_number_matcher = _NEGATIVE

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Read values as argparse does, but accept the value `--` in `--key-prefix=--`, which Python 3.11 drops."""
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> Any:
        program, _, _ = self.prog.partition(" ")
        self.exit(BadRequest.exit_code, f"{program}: {BadRequest.code}: {printable(message)}; see {self.prog} -h\n")


class Once(argparse.Action):
    """Stores the value of an argument and refuses a second one; argparse would drop the first silently."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest, None) is not None:
            raise BadRequest(f"{option_string}: there is a {self.dest.replace('_', ' ')} already; give one")
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


def whole(name: str, limits: str) -> Callable[[str], int]:
    """Return a reader of whole numbers for `add_argument(type=...)`; a refusal names the limits.

    The reader raises `BadRequest` for other texts. The code that uses the number checks the limits.
    """

    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise BadRequest(f"{name} is {limits}, not {text!r:.64}") from None

    return read


def parser(prog: str, words: str, epilog: str = "") -> Parser:
    """Return a parser whose help keeps its line breaks, with `--version`."""
    made = Parser(
        prog=prog, description=words, epilog=epilog + EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return made


def add_settings(to: argparse.ArgumentParser, kind: type) -> None:
    """Add a flag for each setting, without a default: the value may come from the environment or the file."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        flags = FLAGS.get(each.name, ("--" + each.name.replace("_", "-"),))
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
    """Read the flags and settings of server or worker, and go to the background if asked to.

    Returns:
        The settings, a function that reads them again, and lines about them for the log. In the background the log is always a
        file, and each reading of the settings redirects standard output to the file of that name.
    """
    asked = parser(prog, words)
    asked.add_argument("-d", "--daemon", action="store_true", help=f"run in the background; print its PID when it {ready}")
    add_settings(asked, kind)
    completion.complete(asked)
    given = asked.parse_args(arguments)
    is_in_background = os.environ.pop(IN_BACKGROUND, "") != ""

    def read(notice: Callable[[str], object] = _ignore) -> S:
        settings: Any = read_settings(kind, given, notice)
        if not is_in_background:
            return cast("S", settings)
        path = log_path(settings.log_file, prog)
        program.point_output_to(str(path))
        return cast("S", replace(settings, log_file=str(path)))

    notices: list[str] = []
    settings = read(notices.append)
    if given.daemon and READY_FD not in os.environ:
        go_to_background(module, arguments, log_path(getattr(settings, "log_file", ""), prog), prog)
    return settings, read, notices


def _ignore(_: str) -> None:
    """Ignore a notice: the environment of a running program does not change, so the notice was logged before."""


def log_all(log: logging.Logger, notices: Iterable[str]) -> None:
    """Log the lines that `begin` returned."""
    for words in notices:
        log.warning("%s", words)


def read_settings(kind: type[S], given: argparse.Namespace, notice: Callable[[str], object]) -> S:
    """Return the settings of a program by flag, environment, file and default; `notice` is called with lines about them."""
    return load(kind, vars(given), file=given.config, notice=notice)


def say_read_again(log: logging.Logger, need_restart: Sequence[str]) -> str:
    """Log that the settings were read again, and which changes need a restart; return the line."""
    if not need_restart:
        line = "settings read again"
        log.info("%s", line)
    else:
        line = f"settings read again; changed, but only a restart takes them over: {', '.join(need_restart)}"
        log.warning("%s", line)
    return line


# The background.


def log_path(log_file: str, name: str) -> Path:
    """Return the log file of a program in the background: that of the settings, or one in the user's state folder."""
    return Path(log_file) if log_file else state_folder() / f"{name}.log"


def go_to_background(module: str, arguments: list[str], path: Path, name: str) -> None:
    """Start this program again without a terminal; print its PID once it is ready, and end.

    This makes a new process, not a fork, so that no thread and no open file goes with it. `READY_FD` in its environment tells
    it that it is in the background already.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        words = f"log_file is a file that can be opened, not '{path}': {error.strerror}; --log-file names another one"
        raise SettingsInvalid(words) from None
    readable, writable = os.pipe()
    with os.fdopen(opened, "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],  # -P: import nothing from the present folder.
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, READY_FD: str(writable), IN_BACKGROUND: "1"},
            pass_fds=(writable,),
            start_new_session=True,
        )
    os.close(writable)
    # The bytes count, not the end of the pipe: a process that the program starts may hold the pipe open.
    if os.read(readable, len(READY)) == READY:
        print(child.pid, flush=True)
        raise SystemExit(0)
    code = child.wait()
    endings.say(f"{name}: it did not start (exit code {code}); its log is {path}")
    raise SystemExit(code or 70)


def tell_ready() -> None:
    """Tell the process that started this program in the background that it serves now."""
    fd = os.environ.pop(READY_FD, None)
    if fd is not None:
        with contextlib.suppress(OSError):
            os.write(int(fd), READY)
            os.close(int(fd))
