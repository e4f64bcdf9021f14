"""Prints the way of one job through `givalia_core`, room by room: every function that runs from the job's `enq` to its result.

    python docs/journey.py              print it
    python docs/journey.py --json       as JSON, for `tests/docs/test_journey.py`
    python docs/journey.py --page       its files, as docs/architecture.md has them

Server, worker and client are in this process, and the store is the embedded one. Another job runs before, and two seconds pass
without a job; functions that run in these seconds are listed apart. The script counts functions and methods with a `def`: when
a module is imported, each function gets a call at its beginning that notes it. It does all this three times, and shows the
shortest way: on a busy machine functions run besides that look after processes which seem to stand still.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib.machinery
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
HOUSE: Final = "givalia_core"
MARK: Final = "__journey__"
IDLE_S: Final = 2.0
IDLE: Final = "without a job"  # Functions that run then are listed apart.
DELAY_S: Final = 0.5  # The job's delay, so that its `enq` has ended before its claim.
ROUNDS: Final = 3
ATTEMPT: Final = ("givalia_core/worker/attempt/pipeline.py", "execute")
"""The function that begins and ends an attempt; lending the job comes before."""


class Function(NamedTuple):
    """A function of the source."""

    file: str
    name: str
    lines: int


class Notes:
    """The functions that have run, in order."""

    def __init__(self) -> None:
        self.functions: list[Function] = []
        self.visits: list[tuple[float, int]] = []

    def add(self, function: Function) -> int:
        """Give a function its number."""
        self.functions.append(function)
        return len(self.functions) - 1

    def note(self, number: int) -> None:
        """Note that the function with this number has begun; any thread may call this."""
        self.visits.append((time.perf_counter(), number))

    def take(self) -> list[tuple[float, Function]]:
        """Return the functions that have run since the last call."""
        visits, self.visits = self.visits, []
        return [(at, self.functions[number]) for at, number in visits]


class _Marking(ast.NodeTransformer):
    """A transformer that adds a call to the beginning of each function."""

    def __init__(self, file: str, notes: Notes) -> None:
        self._file, self._notes = file, notes
        self._names: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._marked(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._marked(node)

    def _inside(self, node: Any) -> Any:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        return node

    def _marked(self, node: Any) -> Any:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        number = self._notes.add(Function(self._file, ".".join([*self._names, node.name]), lines))
        self._inside(node)
        call = ast.parse(f"{MARK}({number})").body[0]
        has_words = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        node.body.insert(1 if has_words else 0, ast.copy_location(call, node.body[0]))
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    """A loader that compiles a module of the house with the marks in it, without writing a file."""

    notes: Notes

    def get_code(self, fullname: str) -> CodeType:
        path = Path(self.get_filename(fullname))
        tree = ast.parse(path.read_bytes(), path)
        marked = _Marking(path.relative_to(ROOT).as_posix(), self.notes).visit(tree)
        return compile(ast.fix_missing_locations(marked), path, "exec", dont_inherit=True)


class _Finder:
    """A finder of the modules of the house, and of no others."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Return the spec of a module of the house, for `sys.meta_path`."""
        if name.partition(".")[0] != HOUSE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, [str(ROOT)] if path is None else path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
            spec.loader.notes = self._notes
        return spec


def watch() -> Notes:
    """Note every function that runs from now on; call this before anything of the house is imported."""
    assert not any(name.partition(".")[0] == HOUSE for name in sys.modules), "the house is imported already"
    notes = Notes()
    setattr(builtins, MARK, notes.note)
    sys.meta_path.insert(0, _Finder(notes))
    return notes


class Way(NamedTuple):
    """The functions that ran without a job, and those for the job by leg; each once, in the order of its first visit."""

    idle: list[Function]
    legs: dict[str, list[Function]]


def walk(notes: Notes, folder: Path) -> Way:
    """Run a job, and return its way."""
    from givalia_core import Client, WorkModule
    from givalia_core.modules import describe
    from givalia_core.server import Server
    from givalia_core.settings import ServerSettings, WorkerSettings
    from givalia_core.worker.app import Worker

    class Journey(WorkModule):
        def process(self) -> Any:
            return self.params

    server = Server(ServerSettings(port=0, worker_port=0, store=f"sqlite://{folder / 'queue.db'}", plugins=""))
    server.start()
    settings = WorkerSettings(worker_port=server.worker_port, plugins="")
    worker = Worker(settings, modules={"Journey": describe("Journey", "journey", "1", Journey)})
    worker.start()
    idles: list[list[Function]] = []
    jobs: list[tuple[list[tuple[float, Function]], float]] = []

    def use() -> None:  # A client blocks its thread; the server and the worker have the loop of this one.
        with Client("127.0.0.1", server.client_port) as client:
            client.enq("Journey", params=0, key="first", time=DELAY_S).wait(30)
            for number in range(ROUNDS):
                time.sleep(DELAY_S)
                notes.take()
                time.sleep(IDLE_S)
                idles.append(_once(notes.take()))
                job = client.enq("Journey", params=1, key=f"job {number}", time=DELAY_S)
                enq_s = time.perf_counter()
                assert job.wait(30) == 1
                jobs.append((notes.take(), enq_s))

    thread = threading.Thread(target=use)
    thread.start()
    import gevent

    with gevent.Timeout(60):
        while thread.is_alive():
            gevent.sleep(0.01)
    worker.stop()
    server.stop()
    idle = min(idles, key=len)
    visits, enq_s = min(jobs, key=lambda each: len(_once(each[0])))
    return Way(idle, _legs(visits, enq_s, set(idle)))


def _once(visits: list[tuple[float, Function]]) -> list[Function]:
    return list(dict.fromkeys(function for _, function in visits))


def _legs(visits: list[tuple[float, Function]], enq_s: float, idle: set[Function]) -> dict[str, list[Function]]:
    inside = [at for at, function in visits if (function.file, function.name) == ATTEMPT]
    begins_s = inside[0]
    ends_s = max(at for at, function in visits if function.file == ATTEMPT[0])
    bounds = {
        "enq": (-math.inf, enq_s),
        "claim": (enq_s, begins_s),
        "attempt": (begins_s, ends_s),
        "settle": (ends_s, math.inf),
    }
    return {
        leg: [function for function in _once([visit for visit in visits if first < visit[0] <= last or visit[0] == first])
              if function not in idle]
        for leg, (first, last) in bounds.items()
    }  # fmt: skip


class Sizes(NamedTuple):
    """The length of the way: its rooms and functions, and their lines."""

    files: int
    functions: int
    lines: int
    lines_p90: int
    lines_most: int
    file_lines_most: int


def sizes(way: Way) -> Sizes:
    """Measure the way."""
    functions = {function for leg in (way.idle, *way.legs.values()) for function in leg}
    files = {function.file for function in functions}
    lines = sorted(function.lines for function in functions)
    file_lines = [len((ROOT / file).read_text().splitlines()) for file in files]
    p90 = lines[math.ceil(0.9 * len(lines)) - 1]
    return Sizes(len(files), len(functions), sum(lines), p90, lines[-1], max(file_lines))


def rooms(way: Way) -> dict[str, list[str]]:
    """Return the files of each leg in the order of their first visit; each file once, under the leg that visits it first."""
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    for leg, functions in {**way.legs, IDLE: way.idle}.items():
        files = [file for file in dict.fromkeys(function.file for function in functions) if file not in seen]
        seen.update(files)
        found[leg] = [file.removeprefix(f"{HOUSE}/") for file in files]
    return found


def page(way: Way) -> str:
    """Return the list of the architecture page, which `tests/docs/test_journey.py` compares with the way."""
    links = {leg: [f"[`{file}`](../{HOUSE}/{file})" for file in files] for leg, files in rooms(way).items()}
    return "\n".join(f"- **{leg}**: {', '.join(files) or 'no other'}." for leg, files in links.items())


def show(way: Way) -> None:
    """Print the way for people."""
    for leg, functions in {**way.legs, IDLE: way.idle}.items():
        print(f"{leg}\n")
        for file in dict.fromkeys(function.file for function in functions):
            names = [f"{each.name} ({each.lines})" for each in functions if each.file == file]
            print(f"  {file}: {', '.join(names)}")
        print()
    for name, value in sizes(way)._asdict().items():
        print(f"{name.replace('_', ' '):>16}  {value:,}")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--page", action="store_true", help="the list for docs/architecture.md")
    given = parser.parse_args()
    notes = watch()
    with tempfile.TemporaryDirectory() as folder:
        way = walk(notes, Path(folder))
    if given.json:
        print(json.dumps({"idle": way.idle, "legs": way.legs, "rooms": rooms(way), "sizes": sizes(way)._asdict()}))
    elif given.page:
        print(page(way))
    else:
        show(way)


if __name__ == "__main__":
    main()
