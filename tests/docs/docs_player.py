"""Plays a page: takes its blocks in order, does with each what a reader would do, and compares the result.

- `console`: a line that begins with `$` is run, and the lines below it are compared with its output. Ids, times and fractions
  may differ; a line `...` stands for any lines. `givalia-server` and `givalia-worker` are started (the worker stays until the
  page ends, or starts another); `pip install ./folder` installs a package that the page itself has written.
- `python`: run as a program of its own, with warnings as errors. `continue` on the fence: after the previous block. Functions
  named `test_*` are called, and every WorkModule is checked as by a worker. `file=` writes, `append=` appends a file.
- `toml`: parsed; tables of settings are loaded as settings. `file=` and `append=` as above.
- `jsonl`: a line to the client port, and its answer.
- `text worker`: output of the page's own worker.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import socket
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Any

from docs_pages import ROOT, Block, blocks
from docs_stage import PATIENCE_S, Program, Stage
from waits import await_true

from givalia_core import errors
from givalia_core.settings import TABLES, load

PROGRAMS = {
    "givalia": "givalia_core.cli.main",
    "givalia-server": "givalia_core.cli.server",
    "givalia-worker": "givalia_core.cli.worker",
}
NOT_RUN = {"python", "python3", ".", "cd", "git", "curl", "kill"}
EPILOGUE = """

from givalia_core import WorkModule as _WorkModule
from givalia_core.modules import describe as _describe
for _name, _value in list(globals().items()):
    if isinstance(_value, type) and issubclass(_value, _WorkModule) and _value is not _WorkModule:
        assert _describe(_name, "docs", "0", _value).broken is None
    if _name.startswith("test_"):
        _value()
"""
_VARIES = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?"), "<time>"),
    (re.compile(r"\b\d+ (min|h|d)\b( \d+ (s|min|h)\b)?"), "<length>"),
    (re.compile(r"\d+\.\d+|\d+(?= s\b)"), "<number>"),
    (re.compile(r" {2,}"), "  "),
)


def alike(line: str) -> str:
    """A line of output without what differs from run to run."""
    for pattern, stands_for in _VARIES:
        line = pattern.sub(stands_for, line)
    return line.rstrip()


class Player:
    """Plays one page in a folder of its own."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.environ = {**stage.environ, "XDG_STATE_HOME": str(folder / "state")}
        self._site = folder / "site"
        self._worker: Program | None = None
        self._before = ""  # The Python block before, for one that continues it.

    def __enter__(self) -> Player:
        self.stage.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._worker is not None:
            self._worker.stop()

    def play(self, page: Path) -> int:
        """Play every block; how many that were."""
        count = 0
        for block in blocks(page):
            act = getattr(self, f"_{block.language}", None)
            if act is not None:
                count += 1
                act(block)
        return count

    # Files.

    def _kept(self, block: Block) -> bool:
        """Write what a block says is a file; whether it was one."""
        for word in block.info.split():
            how, is_file, name = word.partition("=")
            if is_file:
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("w" if how == "file" else "a", encoding="utf-8") as file:
                    file.write(("\n\n" if how == "append" else "") + block.code)
                if path.suffix == ".toml":
                    tomllib.loads(path.read_text(encoding="utf-8"))
                return True
        return False

    def _toml(self, block: Block) -> None:
        content = tomllib.loads(block.code)
        self._kept(block)
        if content.keys() <= TABLES.keys():
            path = self.folder / "settings.toml"
            path.write_text(block.code, encoding="utf-8")
            for kind in TABLES.values():
                load(kind, {}, environ={}, file=path)

    def _python(self, block: Block) -> None:
        ast.parse(block.code)
        if self._kept(block):
            return
        code = self._before + block.code if "continue" in block.info.split() else block.code
        self._before = code
        done = self.stage.run("-W", "error", "-c", self.stage.local(code) + EPILOGUE, environ=self.environ, folder=self.folder)
        assert done.returncode == 0, f"{block.place} ends with {done.returncode}\n{done.stdout}\n{done.stderr}"

    # Lines.

    def _jsonl(self, block: Block) -> None:
        lines = block.code.splitlines()
        assert len(lines) % 2 == 0, f"{block.place}: each line needs its answer"
        with (
            socket.create_connection(("127.0.0.1", self.stage.port), timeout=PATIENCE_S) as line,
            line.makefile("r", encoding="utf-8") as answers,
        ):
            for asked, answer in zip(lines[::2], lines[1::2], strict=True):
                line.sendall(asked.encode() + b"\n")
                _compare(json.loads(answers.readline()), json.loads(answer), f"{block.place}: {asked}")

    def _text(self, block: Block) -> None:
        if block.info != "worker":
            return
        assert self._worker is not None, f"{block.place}: the page has started no worker"
        wanted = [alike(line) for line in block.code.splitlines()]

        def printed() -> list[str]:
            return [alike(line) for line in self._worker.log.read_text().splitlines()] if self._worker else []

        try:
            await_true(lambda: set(wanted) <= set(printed()), block.place, PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: the worker printed\n" + "\n".join(printed())) from None

    # The console.

    def _console(self, block: Block) -> None:
        for command, expected in _commands(block):
            place = f"{block.place}: $ {command}"
            environ, words = self._words(command)
            if words[0] in NOT_RUN:
                continue
            if words[0] == "make":
                _check_target(words[1:], place)
            elif words[0] == "pip":
                self._pip(words[1:], place)
            elif words[0] == "givalia":
                self._givalia(words[1:], environ, expected, place)
            elif words[0] in PROGRAMS:
                self._start(words[0], words[1:], environ)
            else:
                raise AssertionError(f"{place}: nobody knows how to run this")

    def _words(self, command: str) -> tuple[dict[str, str], list[str]]:
        """A command's words, and the environment with the variables that it begins with."""
        words = shlex.split(self.stage.local(command), comments=True)
        environ = dict(self.environ)
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            environ[name] = value
        return environ, [word for word in words if word != "&"]

    def _givalia(self, words: list[str], environ: dict[str, str], expected: list[str], place: str) -> None:
        done = self.stage.run("-m", PROGRAMS["givalia"], *words, environ=environ, folder=self.folder)
        printed = [alike(line) for line in (done.stdout + done.stderr).splitlines()]
        refused = next((line.split(": ")[1] for line in expected if line.startswith("givalia: ")), None)
        exit_code = 0 if refused is None else next(cls.exit_code for cls in errors.every() if cls.code == refused)
        assert done.returncode == exit_code, f"{place} ends with {done.returncode}\n" + "\n".join(printed)
        if expected:
            pattern = "\n".join(".*" if line == "..." else re.escape(alike(line)) for line in expected)
            assert re.fullmatch(pattern, "\n".join(printed), re.DOTALL), f"{place} printed\n" + "\n".join(printed)

    def _start(self, program: str, words: list[str], environ: dict[str, str]) -> None:
        if program == "givalia-server":
            # The stage has one already, so this one listens elsewhere, shows that it can start, and goes.
            server = self.stage.start(PROGRAMS[program], [*words, "-p", "0", "-w", "0"], environ, self.folder)
            assert server.stop() == 0
            return
        if self._worker is not None:
            self._worker.stop()
        self._worker = self.stage.start(PROGRAMS[program], words, environ, self.folder)

    def _pip(self, words: list[str], place: str) -> None:
        verb, *what = words
        assert verb == "install", place
        for each in what:
            folder = self.folder / each
            if not each.startswith("./") or not folder.is_dir():
                assert (ROOT / each).is_dir() or not each.startswith("."), f"{place}: there is no {each}"
                continue
            done = self.stage.run(
                "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--upgrade",
                "--target", str(self._site), str(folder), folder=self.folder,
            )  # fmt: skip
            assert done.returncode == 0, f"{place}\n{done.stdout}\n{done.stderr}"
        paths = [str(self._site), self.stage.environ.get("PYTHONPATH", "")]
        self.environ["PYTHONPATH"] = ":".join(path for path in paths if path)

    def install_written(self) -> None:
        """Install every package that the page has written, as it stands at the page's end."""
        for project in sorted(self.folder.glob("*/pyproject.toml")):
            self._pip(["install", f"./{project.parent.name}"], str(project))

    def ask(self, *words: str) -> Any:
        """Return the answer of a verb with `--json`."""
        done = self.stage.run("-m", PROGRAMS["givalia"], *words, "--json", environ=self.environ, folder=self.folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the output that is shown below it."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            assert commands, f"{block.place}: output before a command"
            commands[-1][1].append(line)
    return commands


def _check_target(words: list[str], place: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{place}: the Makefile has no {target}"


def _compare(answered: Any, expected: Any, place: str) -> None:
    """Compare with the page: the same names, and the same values except those that differ from run to run.

    `timeleft` may be smaller by the time that a slow machine takes.
    """
    assert type(answered) is type(expected), f"{place}: {answered!r}"
    if isinstance(expected, dict):
        assert list(answered) == list(expected), f"{place}: {answered!r}"
        for name in expected:
            if name == "timeleft":
                assert expected[name] - 2 * PATIENCE_S <= answered[name] <= expected[name] + 1, place
            else:
                _compare(answered[name], expected[name], place)
    elif isinstance(expected, str):
        assert alike(answered) == alike(expected), place
    else:
        assert answered == expected, place
