"""Opens the files of the index as the last run left them, replaces them if they are not what it wrote, and closes them."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from givalia_core.model import ENDED
from givalia_core.store.sqlite.index import keys, sealing
from givalia_core.store.sqlite.index.chains import Chains
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.jobs import Jobs
from givalia_core.store.sqlite.index.keys import LaneKey
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.naming import Naming
from givalia_core.store.sqlite.index.slots import IndexHeader, Slots
from givalia_core.store.sqlite.index.words import NO_FILE
from givalia_core.store.sqlite.places import Damaged

INDEX_FORMAT: Final = 5
_STATM: Final = Path("/proc/self/statm")
_MAPPED_MOST: Final = 96 << 20
DAMAGED: Final = "it is not what was written"
_FILES: Final = ("slots", "sums", "names", "lanes.keys", "runs")
_CHECKED: Final = hash((1, -1, 1 << 40, 1 << 62))  # Differs where an interpreter hashes numbers in another way.
_FIXED: Final[tuple[LaneKey, ...]] = (
    (keys.FORGOTTEN,),
    (keys.RUNNING,),
    *((keys.EXPIRES, on_wall) for on_wall in (False, True)),
    *((kind, str(state)) for kind in (keys.ENDED, keys.KEPT, keys.NEWEST) for state in sorted(ENDED)),
)


class Sealed(NamedTuple):
    """The end of the order that is in the files: the last change and the last seq before the seal."""

    at: int
    seq: int


def open_index(index: Index, epoch: int, commit: int, boot: str, name: int | None) -> Sealed | None:
    """Open the index that the run of this epoch left after `commit`; return None if it is unusable, and `remake` follows.

    Args:
        index: The index; its `strangeness` says why it is unusable.
        epoch: The epoch of the last run.
        commit: The number of its last commit.
        boot: The id of this boot of the machine.
        name: The name of the store's index, given when the index was made.

    Raises:
        OSError: There is no room, or what is there cannot be removed.
    """
    index.ahead = 0
    if _is_no_folder(index.folder):
        index.strangeness = f"{DAMAGED}: {index.folder.name} is no folder of its own"
        return None
    try:
        was_there = _open_files(index, boot)
        index.strangeness = _strangeness(index, epoch, commit, boot, name) if was_there else "it was not there"
    except (Damaged, ValueError, IndexError, TypeError, struct.error) as error:  # The files are not what was written.
        index.strangeness = f"{DAMAGED}: {error}"
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        index.strangeness = f"{DAMAGED}: {error}"
    if index.strangeness:
        return None
    return Sealed(index.lanes.runs.sealed_at, min(index.lanes.runs.sealed_seq, index.slots.header.floor))


def remake(index: Index, boot: str) -> None:
    """Remove the index and make an empty one, which has another name.

    Raises:
        OSError: There is no room, or what is there cannot be removed.
    """
    close_index(index, sync=False)
    if _is_no_folder(index.folder):
        index.folder.unlink()  # Remove nothing through a link: its target is not ours.
    elif index.folder.exists():
        shutil.rmtree(index.folder)
    _open_files(index, boot)


def _is_no_folder(folder: Path) -> bool:
    """Return whether the folder is replaced by a link or a file."""
    return folder.is_symlink() or (folder.exists() and not folder.is_dir())


def _open_files(index: Index, boot: str) -> bool:
    """Open all files; return whether all of them were there."""
    folder = index.folder
    folder.mkdir(mode=0o700, exist_ok=True)
    was_there = all((folder / name).exists() for name in _FILES)
    for known in (index.lane_of_fields, index.routes, index.targets, index.replaced):
        known.clear()
    index.stamp += 1
    index.slots = Slots(folder, index.make_room)
    header = index.slots.header
    index.was_closed, index.is_verified = header.is_closed == 1, False
    if not header.format:
        secrets = struct.unpack("qq", os.urandom(16))
        file, device = _identity(folder / "slots")
        header = IndexHeader(INDEX_FORMAT, _CHECKED, boot=_crc(boot), first_secret=secrets[0], second_secret=secrets[1])
        index.slots.write_header(header._replace(file=file, device=device))
        was_there = False
    elif header.format != INDEX_FORMAT or header.checked != _CHECKED:
        raise Damaged("it is of another format")
    secret = struct.pack("qq", header.first_secret, header.second_secret)
    index.names = NameTable(folder / "names", secret, index.slots, index.make_room)
    index.lanes = Lanes(folder, index.slots, index.make_room, sealing.SEAL_ENTRIES)
    index.jobs = Jobs(index.slots, index.names, index.read)
    index.chains = Chains(index.slots, index.names, index.jobs.peek)
    index.naming = Naming(index.slots, index.names, index.chains, index.jobs)
    for lane in index.lanes.by_key.values():
        index.note_lane(lane)
    # All lanes but those of waiting jobs are made at the beginning, since a full disk may prevent that later.
    for key in _FIXED:
        index.lanes.lane(key)
    by_key = index.lanes.by_key
    index.forgotten, index.running = by_key[keys.FORGOTTEN,], by_key[keys.RUNNING,]
    index.jobs.forgotten = index.forgotten.number
    index.newest = {state: by_key[keys.NEWEST, str(state)] for state in ENDED}
    index.ended = {state: by_key[keys.ENDED, str(state)] for state in ENDED}
    index.expiring = {on_wall: by_key[keys.EXPIRES, on_wall] for on_wall in (False, True)}
    return was_there


def _strangeness(index: Index, epoch: int, commit: int, boot: str, name: int | None) -> str:
    """Return why the index is not the one that the last run left, if it is not."""
    header = index.slots.header
    if index.name != name:
        return "it is that of another store"
    index.ahead = max(header.commits - commit, 0)  # The index gets a commit only once the commit is durable.
    if header.epoch not in (epoch, epoch + 1) or header.commits not in (commit, commit - 1):  # A kill may come between.
        return "it is of another time than the records"
    if (header.file, header.device) != _identity(index.folder / "slots"):
        return "it is a copy, and may be of another moment than the records"
    if header.boot != _crc(boot) and not header.is_closed:
        return "the machine went down, and what was not synced is lost"
    return ""


def begin(index: Index, epoch: int, boot: str) -> None:
    """Write down that this run, of this epoch, changes the index from now on."""
    index.slots.write_header(index.slots.header._replace(is_closed=0, epoch=epoch, boot=_crc(boot)))


def close_index(index: Index, *, sync: bool) -> None:
    """Close the files; with `sync`, and with everything sealed, they also survive a restart of the machine."""
    if sync:
        for part in (index.names, index.lanes, index.slots):
            part.sync()
        sealing.write_header(index.lanes, is_closed=1)
        index.slots.sync()
    for name in ("names", "lanes", "slots"):
        if hasattr(index, name):  # Opening may have failed half-way.
            getattr(index, name).close()


def _crc(boot: str) -> int:
    return zlib.crc32(boot.encode())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_dev & 0x7FFF_FFFF_FFFF_FFFF


def trim_if_large(index: Index) -> None:
    """Give back mapped memory if the system says that this process holds too much of it."""
    try:
        shared = int(_STATM.read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return
    if shared > _MAPPED_MOST:
        for part in (index.names, index.lanes, index.slots):
            part.trim()
