"""The end of a program of the command line: one line, an exit code, and never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import givalia_core
from givalia_core import __version__

RUN = """
import os, signal, sys, time
from givalia_core.cli import endings
from givalia_core.errors import NotFound
def program(arguments):
    {body}
    return 0
raise SystemExit(endings.run("givalia", program, ["x"]))
"""


def ended(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program with this body to its end."""
    environ = {**os.environ, **options.pop("environ", {})}  # type: ignore[dict-item]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = [sys.executable, "-c", RUN.format(body=body)]
    return subprocess.run(command, env=environ, text=True, timeout=60, stdin=subprocess.DEVNULL, **streams)  # type: ignore[call-overload, no-any-return]


def test_an_error_of_ours_is_one_line_and_its_exit_code() -> None:
    done = ended("raise NotFound('no job')")

    assert (done.returncode, done.stdout, done.stderr) == (66, "", "givalia: NOT_FOUND: no job\n")


def test_a_bug_is_one_line_and_shows_where_on_demand() -> None:
    done = ended("{}['a\\n']")
    told = ended("{}['a\\n']", environ={"GIVALIA_TRACEBACK": "1"})

    assert done.returncode == 70
    assert done.stderr == "givalia: this is a bug: KeyError: 'a\\n' (GIVALIA_TRACEBACK=1 shows where)\n"
    assert "Traceback" in told.stderr


def test_ctrl_c_ends_as_the_system_ends_a_program_and_without_a_word() -> None:
    done = ended("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")

    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_error(lines: int) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    try:
        done = ended(f"for n in range({lines}): sys.stdout.write('a line\\n')", stdout=writable)
    finally:
        os.close(writable)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk at hand")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = ended("print('a line')", stdout=full)

    assert (done.returncode, done.stderr) == (74, "givalia: standard input or output: No space left on device\n")


@pytest.mark.parametrize("environ", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                     {"PYTHONIOENCODING": "ascii"}])  # fmt: skip
def test_any_text_is_shown_in_any_locale(environ: dict[str, str]) -> None:
    done = ended(r"print('\u00e9 \U0001f600 \udcff'); print('\u00e9 \udcff', file=sys.stderr)", environ=environ)

    assert done.returncode == 0
    assert done.stdout.rstrip() in ("\\xe9 \\U0001f600 \\udcff", "é 😀 \\udcff")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_stream_that_is_closed_is_no_error(fd: int) -> None:
    shell = f'exec {fd}{"<" if fd == 0 else ">"}&- "$0" -c "$1"'
    body = "sys.stdin.buffer.read(); print('a'); print('b', file=sys.stderr)"
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable, RUN.format(body=body)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0
    assert "Traceback" not in done.stderr


ENTRY = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv[1:] = ["--version"]
from givalia_core.cli.entry import givalia
raise SystemExit(givalia())
"""


def entered(module: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENTRY.format(module=module)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("module", ["givalia_core.cli.main", "givalia_core.client", "msgpack", "gevent", "sqlite3"])
def test_ctrl_c_shows_nothing_while_a_program_is_still_imported(module: str) -> None:
    done = entered(module)

    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_console_script_imports_next_to_nothing_before_it_sees_to_ctrl_c() -> None:
    code = "import sys, givalia_core.cli.entry; print(*sorted(name for name in sys.modules if name.startswith('givalia')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ["givalia_core", "givalia_core.cli", "givalia_core.cli.entry", "givalia_core.version"]
    assert entered("").stdout == f"givalia {__version__}\n"


def test_every_public_name_is_there() -> None:
    assert all(getattr(givalia_core, name) is not None for name in givalia_core.__all__)
    assert givalia_core.errors.GivaliaError is givalia_core.GivaliaError
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = givalia_core.Nothing
