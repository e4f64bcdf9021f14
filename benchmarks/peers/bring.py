"""Installation of the peers: from the PATH, else from the system's packages and Python's, into `build/peers`, without root.

Nothing outside that folder is changed. If the folder is removed, the next run brings everything again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, ParamSpec, TypeVar

_HERE: Final = Path(__file__).resolve().parent
_BUILD: Final = _HERE.parents[1] / "build" / "peers"
_LOCK: Final = _HERE / "requirements.lock"
_BRING_S: Final = 300


class Absent(Exception):
    """A peer is not available here; the text says why."""


P = ParamSpec("P")
T = TypeVar("T")


def _once(bring: Callable[P, T]) -> Callable[P, T]:
    """Bring the same thing once in a run; a failure is not tried again, either."""
    found: dict[object, T | Absent] = {}

    @functools.wraps(bring)
    def call(*args: P.args, **options: P.kwargs) -> T:
        if args not in found:
            try:
                found[args] = bring(*args, **options)
            except Absent as absent:
                found[args] = absent
        known = found[args]
        if isinstance(known, Absent):
            raise known
        return known

    return call


class Program(NamedTuple):
    """A native server that can be started."""

    path: Path
    environ: dict[str, str]
    """The variables that the program needs beside ours: the place of its libraries."""
    version: str


@_once
def program(package: str, name: str) -> Program:
    """Return the program of that name, from the PATH or from that package of the system.

    Raises:
        Absent: Neither has the program.
    """
    if found := shutil.which(name):
        return Program(Path(found), {}, _version(Path(found), {}))
    root = _BUILD / package
    mark = root / ".brought"
    if not mark.exists():
        _bring(package, root)
        mark.touch()
    path = next(root.glob(f"usr/*bin/{name}"), None)
    if path is None:
        raise Absent(f"the package {package} has no program {name}")
    folders = sorted({str(library.parent) for library in (root / "usr" / "lib").rglob("*.so*")})
    environ = {"LD_LIBRARY_PATH": os.pathsep.join(folders)}
    return Program(path, environ, _version(path, environ))


def _bring(package: str, root: Path) -> None:
    """Unpack a package, and its dependencies that this system lacks; apt keeps its lists in our folder."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Absent(f"{package} is not installed, and there is no apt-get and dpkg-deb to bring it")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    apt = _BUILD / "apt"
    for folder in (apt / "lists" / "partial", apt / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    command = ("apt-get", "-o", f"Dir::State::Lists={apt / 'lists'}", "-o", f"Dir::Cache={apt / 'cache'}")
    _update_once(command)
    plan = _run(*command, "--simulate", "install", "--no-install-recommends", package)
    missing = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    _run(*command, "download", *missing, folder=root)
    for archive in root.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(root))
        archive.unlink()


@_once
def _update_once(command: tuple[str, ...]) -> None:
    _run(*command, "update")


def _version(path: Path, environ: dict[str, str]) -> str:
    """Return the program's version: the first word with a digit that it prints."""
    flag = "-v" if path.name == "beanstalkd" else "--version"
    said = _run(str(path), flag, environ=environ).split()
    return next((word.removeprefix("v=") for word in said if any(map(str.isdigit, word))), "?")


def _run(*command: str, folder: Path | None = None, environ: dict[str, str] | None = None) -> str:
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | (environ or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BRING_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(str(error)) from None
    if ended.returncode:
        raise Absent(f"{Path(command[0]).name} ended with {ended.returncode}: {ended.stderr.strip()[-300:]}")
    return ended.stdout


@_once
def python() -> Path:
    """Return the interpreter of an environment with the Python peers, as the lock pins them.

    Raises:
        Absent: The environment could not be created.
    """
    folder = _BUILD / "venv"
    found = folder / "bin" / "python"
    mark = folder / ".installed"
    lock = hashlib.sha256(_LOCK.read_bytes()).hexdigest()
    if not (mark.exists() and mark.read_text() == lock):
        venv.create(folder, with_pip=True, clear=True)
        _run(str(found), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(_LOCK))
        mark.write_text(lock)
    return found


def package_versions() -> dict[str, str]:
    """Return the versions of the Python peers, and of their main dependencies."""
    source = _LOCK.with_suffix(".in").read_text().splitlines()
    wanted = {line.partition("[")[0] for line in source if not line.startswith("#")} | {"gevent"}
    listed = json.loads(_run(str(python()), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    return {each["name"]: each["version"] for each in listed if each["name"] in wanted}
