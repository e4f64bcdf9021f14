"""`givalia store`: look at a store, or move it to another, while no server has it open."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Final

from givalia_core.cli import moving, show
from givalia_core.client import Client
from givalia_core.errors import BadRequest, NotFound, StoreCorrupt
from givalia_core.printable import printable
from givalia_core.server.stores import open_store
from givalia_core.settings import ServerSettings, load
from givalia_core.store import SQLite
from givalia_core.store.base import Store
from givalia_core.store.sqlite_salvage import salvage

WORDS: Final = {
    "check": "read every row",
    "info": "where it is and what it holds",
    "upgrade": "bring it to the format of this version, or make it",
    "export": "write all jobs to FILE",
    "import": "read them from FILE into a store that holds none",
    "salvage": "write what is sound in a damaged store into a new one, whose path or URL is FILE",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which store."""
    parser.add_argument("what", choices=tuple(WORDS), help="; ".join(f"{what}: {words}" for what, words in WORDS.items()))
    file = parser.add_argument("file", metavar="[FILE]", help="the export; without it, or -: standard output or input")
    # Not `nargs="?"`, which would take nothing where a flag stands before FILE, and then refuse FILE.
    file.required = False
    parser.add_argument("--force", action="store_true", help="export: overwrite FILE")
    parser.add_argument("--store", help="URL of the store; without it, the server's setting")


def act(client: Client, given: argparse.Namespace) -> None:
    """Open the store (a server that runs has it for itself), and read."""
    if given.what in ("check", "info", "upgrade") and (given.file or given.force):
        raise BadRequest(f"{given.what} takes no FILE and no --force")
    settings = load(ServerSettings, {"store": given.store}, file=given.config)
    # Whoever asks for it by name may make a store, whatever the server may.
    store = open_store(replace(settings, create=settings.create or given.what in ("import", "upgrade")))
    if given.what == "import":
        moving.import_(store, given, unsafe=settings.store_unsafe)
        return
    if given.what == "salvage":
        _salvage(store, given, settings)
        return
    if given.what == "upgrade":
        _upgrade(*store.upgrade(), as_json=given.json)
        return
    path = getattr(store, "path", None)
    if path is not None and not path.exists():
        raise NotFound(f"there is no store at {path}")
    if given.what == "export":
        moving.export(store, given)
        return
    store.open()
    try:
        if given.what == "info":
            _info(store.describe(), {f"{m} {s}": n for (m, s), n in store.counts().items()}, as_json=given.json)
            return
        wrong = store.check()
    finally:
        store.close()
    if given.json:
        show.emit(show.to_json({"wrong": wrong}))
    for line in wrong:
        print(printable(line), file=sys.stderr)
    if wrong:
        raise StoreCorrupt(f"{len(wrong)} things are wrong; keep a copy of the files before anything else")
    if not given.json:
        show.emit("the store is sound")


def _salvage(store: Store, given: argparse.Namespace, settings: ServerSettings) -> None:
    """Write what is sound into a new store, name what is not; the exit code says whether anything was lost."""
    if not isinstance(store, SQLite):
        raise BadRequest("only a SQLite store can be salvaged; a database server has tools of its own")
    if not given.file:
        raise BadRequest("salvage needs the path or URL of the new store")
    url = given.file if ":" in given.file else f"sqlite:{given.file}"
    done = salvage(store.path, open_store(replace(settings, store=url, create=True)))
    if given.json:
        show.emit(show.to_json({"jobs": done.jobs, "lost": done.lost}))
    else:
        show.emit(f"{done.jobs} jobs are in the new store")
    for line in done.lost:
        print(printable(line), file=sys.stderr)
    if done.lost:
        raise StoreCorrupt(f"{len(done.lost)} things could not be taken over; keep the damaged files")


def _upgrade(before: int, after: int, *, as_json: bool) -> None:
    if as_json:
        show.emit(show.to_json({"before": before, "after": after}))
    else:
        show.emit(f"format {after}" if before == after else f"format {before} to {after}")


def _info(described: dict[str, object], counts: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        show.emit(show.to_json({**described, "jobs": counts}))
        return
    for name, value in {**described, **counts}.items():
        show.emit(f"{name:24} {printable(value)}")
