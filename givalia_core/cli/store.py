"""`givalia store`: checks a store, or moves its jobs to another, while no server has it open."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from givalia_core.cli import endings, moving, overview, show
from givalia_core.client import Client
from givalia_core.errors import BadRequest, NotFound, StoreCorrupt, StoreUnfit
from givalia_core.printable import printable
from givalia_core.server.stores import open_store
from givalia_core.settings import ServerSettings, load
from givalia_core.store import SQLite
from givalia_core.store.base import Store
from givalia_core.store.sqlite import disk, upgrade
from givalia_core.store.sqlite.salvage import salvage

WORDS: Final = {
    "check": "read every row",
    "info": "show where it is and what it holds",
    "create": "create an empty one if there is none",
    "upgrade": "convert it to the format of this version",
    "export": "write all jobs to FILE",
    "import": "read all jobs from FILE into an empty store",
    "salvage": "copy what is sound in a damaged store into a new one, whose path or URL is FILE",
}
_MAKING: Final = ("create", "import")
_WITHOUT_FILE: Final = ("check", "info", "create", "upgrade")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the action and the store."""
    parser.add_argument("what", choices=tuple(WORDS), help="; ".join(f"{what}: {words}" for what, words in WORDS.items()))
    file = parser.add_argument("file", metavar="[FILE]", help="the export; without it, or -: standard output or input")
    # Not `nargs="?"`, which matches nothing if a flag stands before FILE, and then refuses FILE.
    file.required = False
    parser.add_argument("--force", action="store_true", help="export: overwrite FILE")
    parser.add_argument("--store", help="URL of the store; without it, the server's setting")


def act(_: Client, given: argparse.Namespace) -> None:
    """Open the store, which no running server may have open, and carry out the action."""
    if given.what in _WITHOUT_FILE and (given.file or given.force):
        raise BadRequest(f"{given.what} takes no FILE and no --force")
    settings = load(ServerSettings, {"store": given.store}, file=given.config)
    # Only the server upgrades by itself, and only `create` and `import` create a store, whatever the server's settings.
    store = open_store(replace(settings, create=given.what in _MAKING, upgrade="manual"))
    _refuse_stranger(store, given.what)
    if given.what == "import":
        moving.import_(store, given, unsafe=settings.store_unsafe)
    elif given.what == "salvage":
        _salvage(store, given, settings)
    elif given.what == "create":
        _create(store, unsafe=settings.store_unsafe, as_json=given.json)
    else:
        _refuse_missing(store)
        _LOOKING[given.what](store, given)


def _refuse_stranger(store: Store, what: str) -> None:
    """Refuse a store of another user: that user's server could not open the files that this process would create."""
    if not isinstance(store, SQLite):
        return
    try:
        owner = _owner(store.path)
    except PermissionError as error:
        raise StoreUnfit(f"{store.path}: {error.strerror}; run this as the user who owns the store") from None
    if owner != os.geteuid():
        name = disk.user(owner)
        command = upgrade.command(store.path, what)
        raise StoreUnfit(
            f"the store {store.path} belongs to the user {name}, whose server could not open the files that this would create"
            f" there. Nothing was done: run {command}"
        )


def _owner(path: Path) -> int:
    """Return the owner of a store; if there is no store yet, the owner of its folder."""
    if path.exists():
        return path.stat().st_uid
    makes_for_others = os.geteuid() == 0 and path.parent.exists()
    return path.parent.stat().st_uid if makes_for_others else os.geteuid()


def _refuse_missing(store: Store) -> None:
    path = getattr(store, "path", None)
    if path is not None and not path.exists():
        raise NotFound(f"there is no store at {path}; --store names another, as the server's setting does")


def _create(store: Store, *, unsafe: bool, as_json: bool) -> None:
    path = getattr(store, "path", None)
    if path is not None and path.exists():
        raise BadRequest(f"there is a store at {path} already; nothing was changed")
    is_new = store.open(unsafe=unsafe).is_new
    store.close()
    if as_json:
        show.emit(show.to_json({"created": is_new}))
    else:
        show.emit("an empty store was made" if is_new else "the store was there already")


def _check(store: Store, given: argparse.Namespace) -> None:
    store.open()
    try:
        wrong = store.check()
    finally:
        store.close()
    if given.json:
        show.emit(show.to_json({"wrong": wrong}))
    for line in wrong:
        endings.say(printable(line))
    if wrong:
        raise StoreCorrupt(f"{len(wrong)} things are wrong; keep a copy of the files before anything else")
    if not given.json:
        show.emit("the store is sound")


def _salvage(store: Store, given: argparse.Namespace, settings: ServerSettings) -> None:
    """Copy what is sound into a new store, and name what is not; the exit code tells whether anything was lost."""
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
        endings.say(printable(line))
    if done.lost:
        raise StoreCorrupt(f"{len(done.lost)} things could not be copied; keep the damaged files")


def _upgrade(store: Store, given: argparse.Namespace) -> None:
    before, after = store.upgrade()
    if given.json:
        show.emit(show.to_json({"before": before, "after": after}))
    else:
        show.emit(f"format {after}" if before == after else f"format {before} to {after}")


def _info(store: Store, given: argparse.Namespace) -> None:
    store.open()
    try:
        described, counts = store.describe(), store.counts()
    finally:
        store.close()
    if given.json:
        show.emit(show.to_json({**described, "jobs": {f"{module} {state}": n for (module, state), n in counts.items()}}))
        return
    overview.lines("store", described.items())
    if counts:
        modules = sorted({module for module, _ in counts})
        show.emit("")
        overview.jobs({name: {state: n for (module, state), n in counts.items() if module == name} for name in modules})


_LOOKING: Final[dict[str, Callable[[Store, argparse.Namespace], None]]] = {
    "check": _check,
    "info": _info,
    "upgrade": _upgrade,
    "export": moving.export,
}
