"""The files of a SQLite store: who may open them, their format and identity, and the room kept in reserve.

Beside `queue.db` (and SQLite's own `queue.db-wal`) stand `queue.db.lock`, held with flock for as long as a server runs,
`queue.db.ballast`, which is given up when the disk is full so that running jobs can still be settled, and `queue.db.index`, a
folder that may be removed while no server runs: the store rebuilds it.

Each commit writes the fact `commit`: the last numbers, the mark of the clocks, and the changes of counts since the table of
counts was written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import pwd
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from givalia_core.errors import (
    GivaliaError,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreLocked,
    StoreMissing,
    StoreTooNew,
    StoreUnfit,
)
from givalia_core.store.sqlite.index import FULL_ERRNOS, allocate
from givalia_core.store.sqlite.notices import Notices

APPLICATION_ID: Final = 0x47_49_56_41  # "GIVA", in the file's header, so that no other file is taken for a queue.
FORMAT: Final = 4  # In the header too, as user_version: the first thing checked.
READABLE: Final = 2  # The least that this version reads. The first start raises it, so that earlier versions refuse the file.
BALLAST_BYTES: Final = 16 << 20
_LITTLE_ROOM: Final = 64 << 10
MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs"})
NETWORK_FILESYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs"})

_NOT_HERE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)
_WRITE: Final = os.R_OK | os.W_OK
_OPEN: Final = _WRITE | os.X_OK

SCHEMA: Final = """
CREATE TABLE jobs (first_seq INTEGER PRIMARY KEY, records BLOB NOT NULL) STRICT;
CREATE TABLE changes (number INTEGER PRIMARY KEY, records BLOB NOT NULL) STRICT;
CREATE TABLE counts (
    module TEXT NOT NULL, state INTEGER NOT NULL, jobs INTEGER NOT NULL, PRIMARY KEY (module, state)
) STRICT, WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

log = logging.getLogger("givalia.store")


class Lock:
    """The right of one process to the store, given back when the process ends however it ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StoreLocked: Another process holds the lock; `pid` names the process, if it wrote that down.
        """
        self._path = path
        self._pid = os.getpid()
        self._fds = [_locked(path)]
        self._is_lost = False  # Another file, or none, has its name, and the log says so.

    def look(self) -> None:
        """Lock the file again if it was removed, so that the next server learns which process has the store."""
        try:
            status = os.stat(self._path)  # noqa: PTH116
            is_ours = any(os.path.samestat(status, os.fstat(fd)) for fd in self._fds)
        except FileNotFoundError:
            is_ours = False
        if is_ours:
            self._is_lost = False
            return
        if not self._is_lost:
            log.error(
                "%s was removed or replaced while the store is open; it is made and locked again if that can be", self._path
            )
        self._is_lost = True
        # SQLite's own lock keeps other processes out, whatever lies there now.
        with contextlib.suppress(StoreLocked, StoreUnfit, OSError):
            self._fds.append(_locked(self._path))

    def release(self) -> None:
        """Let the next process in. The file stays: removing it would let two processes lock two files of one name.

        A fork only closes its copies. The explicit unlock frees the lock even if a fork has not closed its copies yet.
        """
        for fd in self._fds:
            if os.getpid() == self._pid:
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def _locked(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise StoreUnfit(f"{path}: {error}") from error
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise StoreLocked(f"process {pid or '?'} has the store {path.with_suffix('')} open", pid=pid) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def holder(path: Path) -> str | None:
    """Return the id of the process that has the store at this path open; None if none has, or if that is unknown."""
    try:
        fd = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "?"
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def path_of(url: str) -> Path:
    """Return the path that a URL names, as `SQLite` takes it.

    Raises:
        StoreUnfit: The URL names no path.
    """
    rest = url.removeprefix("sqlite:")
    if rest.startswith("//"):
        rest = "/" + rest.lstrip("/")
    if not rest or rest.endswith("/"):
        raise StoreUnfit(f"{url} names no file")
    return Path(unquote(rest)).absolute()


def prepare_folder(path: Path, *, allow_network: bool) -> None:
    """Make the folder of the store, readable for its owner alone, and bring its name to stable storage.

    Raises:
        StoreFull: The disk has no room for the folder.
        StoreFailed: The folder cannot be made.
        StoreUnfit: The folder lies on a network file system, or this user may not write to it or to a file of the store.
    """
    folder = path.parent
    missing = [each for each in (folder, *folder.parents) if not os.access(each, os.F_OK)]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            sync(made.parent)
    except (FileExistsError, NotADirectoryError):
        raise StoreUnfit(f"{folder} is no folder") from None
    except OSError as error:
        raise error_for(error)(f"{folder}: {error}") from error
    if not allow_network and (kind := filesystem(folder)) in NETWORK_FILESYSTEMS:
        raise StoreUnfit(f"{folder} is on a network file system ({kind}), whose locks and syncs cannot be trusted")
    refuse_foreign(path)


def refuse_foreign(path: Path) -> None:
    """Check the folder of a store and its files before anything is written.

    Raises:
        StoreUnfit: This user may not write to one of them: it belongs to another user, or the file system is read-only. Or
            this user is root, who may write to all, but whose new files the owner of the store could not open.
    """
    if os.geteuid() == 0 and path.exists() and (uid := path.stat().st_uid) != 0:
        raise StoreUnfit(
            f"the store {path} belongs to the user {user(uid)}, whose server could not open the files that root's would"
            f" leave there; start it as {user(uid)}"
        )
    index = index_folder(path)
    # Anything else in the place of the index is replaced by a new one.
    folders = [path.parent, *([index] if os.path.isdir(index) and not os.path.islink(index) else [])]  # noqa: PTH112, PTH114 - No error.
    files = [path, *(Path(f"{path}{suffix}") for suffix in (".lock", "-wal", "-shm"))]
    for each, wanted in [*((folder, _OPEN) for folder in folders), *((file, _WRITE) for file in files)]:
        if os.access(each, os.F_OK) and not os.access(each, wanted):
            if os.statvfs(each).f_flag & os.ST_RDONLY:
                raise StoreUnfit(f"{each} is on a file system that is mounted for reading only")
            me, owner = user(os.geteuid()), user(each.stat().st_uid)
            raise StoreUnfit(f"{each} cannot be written to by the user {me}; it belongs to {owner}")


def user(number: int) -> str:
    """Return the name of a user; the number if there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def error_for(error: OSError) -> type[GivaliaError]:
    """Return the class for an error in making a file or folder; a place where nothing may be written is unfit, not failed."""
    if error.errno in FULL_ERRNOS:
        return StoreFull
    return StoreUnfit if error.errno in _NOT_HERE else StoreFailed


def prepare(path: Path, *, may_create: bool) -> bool:
    """Make a database if there is none yet, complete or not at all; return whether it was made. The caller holds the lock.

    Raises:
        StoreMissing: There is none, and none may be made.
        StoreFull: The disk has no room for the database.
        StoreFailed: The database cannot be made or written to.
        StoreUnfit: The path is not that of a file.
        StoreCorrupt, StoreTooNew: The file is not one of ours, or has a later format; it was not touched.
    """
    if path.is_symlink():
        raise StoreUnfit(f"{path} is a symbolic link")
    if not path.exists():
        if not may_create:
            raise StoreMissing(f"there is no store at {path}, and the setting create is false")
        create(path)
        return True
    if not path.is_file():
        raise StoreUnfit(f"{path} is no file")
    check_header(path)
    return False


def check_header(path: Path, least: int = READABLE) -> None:
    """Check the header of the file before SQLite may write to the file; refuse a format below `least`."""
    with path.open("rb") as file:
        head = file.read(100)
    if len(head) < 100 or not head.startswith(b"SQLite format 3\x00"):
        raise StoreCorrupt(f"{path} is not a store of Givalia: its header is not a database's")
    (version,) = struct.unpack_from(">i", head, 60)
    (application,) = struct.unpack_from(">i", head, 68)
    if application != APPLICATION_ID:
        raise StoreCorrupt(f"{path} is a database, but not one of Givalia's")
    if version > FORMAT:
        raise StoreTooNew(f"{path} has format {version}; this Givalia knows {FORMAT} at most")
    if version < least:
        raise StoreUnfit(f"{path} has format {version}, this Givalia needs {FORMAT}: run givalia store upgrade")


def format_of(path: Path) -> int:
    """Return the format of a store that `check_header` accepts, or of an older one."""
    with path.open("rb") as file:
        return int(struct.unpack_from(">i", file.read(100), 60)[0])


def is_readable(path: Path) -> bool:
    """Return whether all bytes of a file can be read."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return False
    return True


def is_full(error: Exception, folder: Path) -> bool:
    """Return whether an error of the system or of SQLite, in writing to this folder, says that the disk is full.

    SQLite reports a used-up quota as an error of input and output, and does not say why it cannot make a file: an allocation
    of a little room then tells.
    """
    if isinstance(error, OSError):
        return error.errno in FULL_ERRNOS
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    may_be = code == sqlite3.SQLITE_IOERR_WRITE or code & 0xFF == sqlite3.SQLITE_CANTOPEN
    return code & 0xFF == sqlite3.SQLITE_FULL or (may_be and not _has_room(folder))


def code_of(error: sqlite3.Error) -> int:
    """Return the primary result code of an error of SQLite."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


@contextlib.contextmanager
def ours(path: Path) -> Iterator[None]:
    """Turn errors of the system inside the block into ours, for a tool that works on the store at this path.

    Raises:
        StoreFull: The disk has no room.
        StoreFailed: Any other error of the system.
    """
    try:
        yield
    except OSError as error:
        raise (StoreFull if is_full(error, path.parent) else StoreFailed)(f"{path}: {error}") from error


def _has_room(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            allocate(file.fileno(), 0, _LITTLE_ROOM)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def index_folder(path: Path) -> Path:
    """Return the folder of a store's index."""
    return path.with_name(path.name + ".index")


def create(path: Path) -> None:
    """Build the empty database under another name, sync it, then give it its name."""
    making = path.with_name(path.name + ".making")
    for leftover in (making, Path(f"{making}-journal"), Path(f"{making}-wal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(making, isolation_level=None)
    try:
        # Both must be set before the first table is made.
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        if database.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StoreUnfit(f"{path}: the file system cannot carry a write-ahead log")
    except sqlite3.Error as error:
        raise (StoreFull if is_full(error, path.parent) else StoreFailed)(f"{path}: {error}") from error
    finally:
        database.close()
    sync(making)
    making.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to stable storage."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if sys.platform == "darwin" and not path.is_dir():
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)
    except OSError as error:
        raise StoreFailed(f"{path}: {error}") from error
    finally:
        os.close(fd)


def filesystem(folder: Path) -> str:
    """Return the kind of file system that a folder is on; empty where the system does not say."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    best, kind = -1, ""
    place = str(folder.resolve())
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        if (place == mount or place.startswith(mount.rstrip("/") + "/")) and len(mount) > best:
            best, kind = len(mount), right.split()[0]
    return kind


def way_out(path: Path) -> str:
    """Return the words that name the way out of a damaged store."""
    return f"givalia store salvage --store sqlite://{path} TO writes what is sound into a new store"


class _Identity(ctypes.Structure):
    """The part of Linux's `struct statx` that tells one file from another."""

    _fields_ = [
        ("_before", ctypes.c_char * 32),
        ("inode", ctypes.c_uint64),
        ("_between", ctypes.c_char * 96),
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("_behind", ctypes.c_char * 112),
    ]


_AT_FDCWD: Final = -100
_STATX_INO: Final = 0x100
_WITHOUT_STATX: Final = frozenset({errno.ENOSYS, errno.EPERM})  # From an old kernel, or a sandbox that does not know `statx`.
_statx: Final[Any] = getattr(ctypes.CDLL(None, use_errno=True), "statx", None) if sys.platform == "linux" else None


_FOUND: Final = _Identity()  # One for all calls: it is read before anything else can run.
_AT_FOUND: Final = ctypes.byref(_FOUND)


def identity(name: bytes) -> tuple[int, ...]:
    """Return the numbers that tell a file from every other one.

    The call asks for no times: once the time of a write was read, Linux gives the next write a new time, and the sync of
    that write may have to wait once more.

    Raises:
        OSError: There is no such file, or this user may not read its status.
    """
    if _statx is not None:
        if _statx(_AT_FDCWD, name, 0, _STATX_INO, _AT_FOUND) == 0:
            return _FOUND.inode, _FOUND.major, _FOUND.minor
        number = ctypes.get_errno()
        if number not in _WITHOUT_STATX:
            raise OSError(number, os.strerror(number), name)
    status = os.stat(name)  # noqa: PTH116
    return status.st_ino, os.major(status.st_dev), os.minor(status.st_dev)


class Files:
    """The files of a store as they were when opened. A moved or removed file can still be written, but the writes are lost."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._notices: Notices | None = None
        self.news_fd = -1  # Readable when the names of the files may have changed; -1: the system does not say.
        self._names = (os.fsencode(path), os.fsencode(f"{path}-wal"))
        self._known: list[tuple[bytes, tuple[int, ...]]] = []
        self.is_new = False  # Whether the store was made by this opening.

    def open(self) -> None:
        """Remember the identities of the database and its log."""
        self.close()
        with contextlib.suppress(OSError):  # Then each commit polls the files.
            self._notices = Notices(self._folder)
            self.news_fd = self._notices.fd
        self._known = [(name, identity(name)) for name in self._names]

    def close(self) -> None:
        """Stop watching the files; safe to call twice."""
        notices, self._notices, self.news_fd = self._notices, None, -1
        if notices is not None:
            notices.close()

    def look(self) -> None:
        """Refuse to go on if other files, or none, have the names of the store and its log.

        Raises:
            StoreFailed: Further writes would not be there after a restart.
        """
        for name, known in self._known:
            try:
                found = identity(name)
            except OSError as error:
                words = f"{os.fsdecode(name)} is gone, moved or removed while it was open: {error.strerror}"
                raise StoreFailed(words) from error
            if found != known:
                raise StoreFailed(f"{os.fsdecode(name)} is another file than the one that was opened")


class Reserve:
    """Room on disk that is held back for a full disk, and whether the disk is full.

    Every writer reports a full disk to it. The reserve is then given up at once, so that running jobs can be settled, and no
    new job is taken before there is room for the reserve and as much again.
    """

    def __init__(self, path: Path, note_full: Callable[[bool], None]) -> None:
        """Take `note_full`, which is called with whether the disk is full, each time that this is found out."""
        self._path = path
        self._note_full = note_full
        self.is_full = False

    def _note(self, is_full: bool) -> None:
        self.is_full = is_full
        self._note_full(is_full)

    def take(self) -> bool:
        """Hold the reserve back; return False if the disk has no room for the reserve and as much again."""
        try:
            self._note(not self._take())
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise StoreFailed(f"{self._path}: {error}") from error
            self.note_full()
        return not self.is_full

    def _take(self) -> bool:
        if self._path.exists() and self._path.stat().st_size == BALLAST_BYTES:
            return True
        usage = os.statvfs(self._path.parent)
        if usage.f_bavail * usage.f_frsize < 2 * BALLAST_BYTES:
            return False
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            allocate(fd, 0, BALLAST_BYTES)
        finally:
            os.close(fd)
        return True

    def note_full(self) -> None:
        """Note that the disk is full, and give up the reserve, so that the store can use its room."""
        self._note(True)
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)
