"""`givalia backup`: copies the store of a running server into a file on this machine."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from givalia_core.cli import endings, moving, show
from givalia_core.client import Client, backup
from givalia_core.errors import BadRequest, ConnectionLost, NotFound, StoreCorrupt, StoreFailed
from givalia_core.printable import printable
from givalia_core.store.backups import CopyPart
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.received import Received, Receiver
from givalia_core.times import to_datetime

MIB: Final = 1 << 20
_KEPT: Final = re.compile(r"\.format-\d+(?:\.\d+)?$")  # Copies made by an upgrade.
_CUT_SHORT: Final = "the backup was cut short, and nothing was written"

OnProgress = Callable[[float, str], None]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the file."""
    parser.add_argument("file", metavar="FILE", help="the copy, a store that a server can open")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")


def act(client: Client, given: argparse.Namespace) -> None:
    """Receive the copy, check it, and only then give it its name."""
    if given.file == "-":
        raise BadRequest("a backup needs a FILE: the whole copy is checked before it gets its name")
    path = Path(given.file)
    moving.refuse_taken(path, force=given.force)
    _refuse_open_store(path)
    with moving.failing(given.file), _progress(as_json=given.json) as show_progress:
        with moving.new_file(path, force=given.force) as making:
            last, received = _received(client, making, show_progress)
        size_bytes = path.stat().st_size
    made = to_datetime(last.made_us)
    if given.json:
        show.emit(show.to_json({"jobs": received.jobs, "bytes": size_bytes, "at": made, "wrong": received.wrong}))
    else:
        show.emit(f"{received.jobs} jobs, {size_bytes / MIB:.1f} MiB, as of {made.isoformat(timespec='seconds')}")
    for line in received.wrong:
        endings.say(printable(line))
    if received.wrong:
        raise StoreCorrupt(f"{len(received.wrong)} things are wrong, in the server's store too; the copy was made anyway")


def _refuse_open_store(path: Path) -> None:
    """Refuse the name of a store that a server has open, or of one of its files: the copy would end that server."""
    for suffix in ("", "-wal", "-shm", "-journal", ".lock", ".ballast", ".upgrading"):
        store = path.with_name(_KEPT.sub("", path.name).removesuffix(suffix))
        if _KEPT.sub("", path.name).endswith(suffix) and store.name and (pid := disk.holder(store)) is not None:
            raise BadRequest(f"{path} belongs to the store that process {pid} has open")


def _received(client: Client, making: Path, on_progress: OnProgress) -> tuple[CopyPart, Received]:
    receiver = Receiver(making)
    try:
        got_bytes = 0
        for told in backup.parts(client):
            part = CopyPart(told.payload, *told[:-1])
            receiver.add(part)
            got_bytes += len(part.payload)
            size_bytes = max(part.size_bytes, got_bytes)
            on_progress(got_bytes / size_bytes, f"{got_bytes / MIB:.0f} of about {size_bytes / MIB:.0f} MiB")
        return part, receiver.finish(part, lambda rows: on_progress(1.0, f"checking: {rows} rows"))
    except NotFound as error:
        raise StoreFailed(f"{_CUT_SHORT}: {error}") from error
    except ConnectionLost as error:
        why = str(error).partition(";")[0]
        raise ConnectionLost(f"{_CUT_SHORT}: {why}. --patience gives a server more time", sent=error.sent) from error
    finally:
        receiver.close()


@contextlib.contextmanager
def _progress(*, as_json: bool) -> Iterator[OnProgress]:
    """Show a progress bar on a terminal."""
    if as_json or not sys.stderr.isatty():
        yield lambda *_: None
        return
    with show.Bar(sys.stderr) as bar:
        yield bar.show
