"""Builds our distributions as wheels, from a copy of the checkout, and installs them into fresh environments.

No network is needed: our dependencies, and no other distributions, are linked from the environment that runs the tests. The
code under test comes from the wheels alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
DEPENDENCIES = (
    "gevent", "importlib-metadata", "msgpack", "packaging", "pluggy", "structlog", "prometheus-client", "psycopg",
    "psycopg-binary", "argcomplete", "rich",
)  # fmt: skip
LEFT_OUT = shutil.ignore_patterns("*.egg-info", "build", "dist", "__pycache__", ".*", "tests")


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a tool to its end; its standard output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean_environment(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead another one to the checkout or to other settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("GIVALIA", "PYTHON", "VIRTUAL_ENV"))}


def build(source: Path, into: Path) -> Path:
    """The wheel of this source folder, which may be written to."""
    into.mkdir()
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--wheel-dir", into, source,
    )  # fmt: skip
    (wheel,) = into.glob("*.whl")
    return wheel


def parts_of(names: Iterable[str]) -> Iterator[Path]:
    """The files and folders in site-packages of these distributions and all that they need."""
    wanted, seen = list(names), set[str]()
    while wanted:
        name = wanted.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # What only other systems or versions need.
        if found.name in seen:
            continue
        seen.add(found.name)
        wanted += [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in found.requires or () if "extra ==" not in line]
        tops = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}
        yield from (Path(str(found.locate_file(top))) for top in sorted(tops - {"__pycache__"}))


def _listing() -> set[Path]:
    """Return the files in the folders that a build may write to."""
    places = (CHECKOUT, *(CHECKOUT / "plugins").iterdir(), CHECKOUT / "example_modules_pkg", HERE / "system_modules_pkg")
    every = {path for place in places for folder in (place, place / "src") for path in folder.glob("*")}
    return {path for path in every if not path.name.startswith((".", "__pycache__"))}


class Wheels:
    """The wheels of the checkout, and of any package that a test writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        copy = folder / "copy"
        copy.mkdir()
        for name in ("pyproject.toml", "LICENSE", "README.md"):
            if (CHECKOUT / name).exists():
                shutil.copy(CHECKOUT / name, copy)
        (copy / "README.md").touch()  # What it says is for the tests of the documents.
        shutil.copytree(CHECKOUT / "givalia_core", copy / "givalia_core", ignore=LEFT_OUT)
        shutil.copytree(CHECKOUT / "plugins", copy / "plugins", ignore=LEFT_OUT)
        shutil.copytree(CHECKOUT / "example_modules_pkg", copy / "example_modules_pkg", ignore=LEFT_OUT)
        shutil.copytree(HERE / "system_modules_pkg", copy / "system_modules_pkg", ignore=LEFT_OUT)
        self._wheels = folder / "wheels"
        self._wheels.mkdir()
        sources = [copy, *sorted((copy / "plugins").iterdir()), copy / "example_modules_pkg", copy / "system_modules_pkg"]
        before = _listing()
        self.all = self.of_all(sources)
        self.left_behind = _listing() - before
        """What building has left in the checkout."""

    @property
    def core(self) -> list[Path]:
        """The server, the worker and the client alone."""
        return self._named("givalia-")

    @property
    def plain(self) -> list[Path]:
        """The core and the modules of the tests."""
        return [*self.core, *self._named("givalia_system_modules-")]

    @property
    def shared(self) -> list[Path]:
        """The core, the modules of the tests, and the store that servers share."""
        return [*self.plain, *self._named("givalia_postgres-")]

    def _named(self, *starts: str) -> list[Path]:
        return [wheel for wheel in self.all if wheel.name.startswith(starts)]

    def of_all(self, packages: Iterable[Path]) -> list[Path]:
        """The wheels of some packages, such as those that a test has written."""
        with ThreadPoolExecutor(2) as pool:
            return sorted(pool.map(lambda package: build(package, self._wheels / package.name), packages))


class Installed:
    """A fresh environment with some wheels in it; `program` finds its console scripts."""

    def __init__(self, folder: Path, wheels: Sequence[Path]) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.install(*wheels)
        paths = {key: str(folder) for key in ("base", "platbase", "installed_base")}
        self.site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
        for part in parts_of(DEPENDENCIES):
            link = self.site / part.name
            if not link.exists():
                link.symlink_to(part)

    def install(self, *wheels: Path) -> None:
        """Install wheels, and nothing that they ask for."""
        run(sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps", "--no-index", *wheels)

    def program(self, name: str) -> str:
        """The path of a console script."""
        return str(self.bin / name)


def write_package(
    folder: Path,
    name: str,
    code: str,
    modules: dict[str, str],
    plugins: dict[str, str] | None = None,
    version: str = "1.2.3",
) -> Path:
    """A package as the README has a newcomer write it: one file of code, and entry points."""
    source = name.replace("-", "_")
    package = folder / name
    package.mkdir()
    (package / f"{source}.py").write_text(code)
    lines = [
        "[build-system]",
        'requires = ["setuptools"]',
        'build-backend = "setuptools.build_meta"',
        "[project]",
        f'name = "{name}"',
        f'version = "{version}"',
        'dependencies = ["givalia"]',
        '[project.entry-points."givalia.modules"]',
        *(f'{entry} = "{source}:{attribute}"' for entry, attribute in modules.items()),
        '[project.entry-points."givalia.plugins"]',
        *(f'{entry} = "{source}{attribute}"' for entry, attribute in (plugins or {}).items()),
        "[tool.setuptools]",
        f'py-modules = ["{source}"]',
    ]
    (package / "pyproject.toml").write_text("\n".join(lines) + "\n")
    return package
