"""Several real servers on one database, with workers and clients that know all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from givalia_postgres import Postgres
from system_install import Installed
from system_rig import Rig, Running, ServerProcess, free_port
from waits import await_true

from givalia_core import Client

HOST = "127.0.0.1"
_HOOKS = """
import os
from system_modules import write_line
from givalia_core import hookimpl

class Hooks:
    @hookimpl
    def on_enq(self, job):
        write_line(os.environ["HOOKS_FILE"], "on_enq", job.id)

    @hookimpl
    def on_ext(self, job):
        write_line(os.environ["HOOKS_FILE"], "on_ext", job.id)

    @hookimpl
    def on_cancel(self, job, running):
        write_line(os.environ["HOOKS_FILE"], "on_cancel", job.id, running)

    @hookimpl
    def on_done(self, job):
        write_line(os.environ["HOOKS_FILE"], "on_done", job.id)

    @hookimpl
    def on_dead(self, job, reason, error):
        write_line(os.environ["HOOKS_FILE"], "on_dead", job.id, reason)
"""


class Fleet(Rig):
    """Starts servers that share a database, and ends them all."""

    def __init__(self, installed: Installed, folder: Path, url: str) -> None:
        super().__init__(installed, folder)
        self.url = url
        self.servers: list[ServerProcess] = []

    def add_server(self, *flags: object, **environ: str) -> ServerProcess:
        """One more server, on ports of its own."""
        ports = ("-p", free_port(), "-w", free_port())
        server: ServerProcess = self._started(ServerProcess, "givalia-server", (*ports, "--store", self.url, *flags), environ)
        self.servers.append(server.await_ports())
        self.server = self.server or server
        return server

    def restart(self, place: int, *flags: object) -> ServerProcess:
        """Another process in the place of a server that has ended, on its ports."""
        before = self.servers[place]
        words = ("-p", before.port, "-w", before.worker_port, "--store", self.url, *flags)
        server: ServerProcess = self._started(ServerProcess, "givalia-server", words, {})
        self.servers[place] = server.await_ports()
        return server

    def add_worker(self, *flags: object, at: Sequence[int] | None = None, connected: bool = True) -> Running:
        """A worker that knows all servers, or those in these places."""
        servers = self.servers if at is None else [self.servers[place] for place in at]
        known = ",".join(f"{HOST}:{server.worker_port}" for server in servers)
        worker: Running = self._started(Running, "givalia-worker", ("-m", known, *flags), {})
        if connected:
            worker.await_log("connected to")
        return worker

    def client_of(self, *places: int, **options: Any) -> Client:
        """A client that knows the servers in these places, or all of them."""
        servers = [self.servers[place] for place in places] or self.servers
        client = Client([f"{HOST}:{server.port}" for server in servers], **options)
        self._clients.append(client)
        return client

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Query the database directly, without a server."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(query, values or None).fetchall()

    def check(self) -> list[str]:
        """Return the damage that the store's own check finds."""
        store = Postgres(self.url)
        store.open()
        try:
            return store.check()
        finally:
            store.close()

    def with_hooks(self, file: Path) -> dict[str, str]:
        """The environment of a server that writes each call of a hook to a file: its name and the job's id."""
        folder = self.folder / "hooks_pkg"
        about = folder / "hooks_pkg-0.dist-info"
        if not about.exists():
            about.mkdir(parents=True)
            (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hooks-pkg\nVersion: 0\n")
            (about / "entry_points.txt").write_text("[givalia.plugins]\nhooks = hooks_pkg:Hooks\n")
            (folder / "hooks_pkg.py").write_text(_HOOKS)
        return {"PYTHONPATH": str(folder), "HOOKS_FILE": str(file)}

    def await_known(self, servers: int) -> None:
        """Wait until this many servers count each other as alive."""
        query = "SELECT count(*) FROM givalia.servers WHERE alive_until_us > extract(epoch FROM now()) * 1000000"
        await_true(lambda: self.ask(query) == [(servers,)], f"{servers} servers that are alive")
