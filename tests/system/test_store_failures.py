"""A store that cannot be opened, and a disk that fails under a running server: an exit code, and never a false OK."""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from system_rig import Rig
from system_wire import Framed, answers, enq
from waits import await_true

from givalia_core.protocol.messages import Kind
from givalia_core.store.sqlite import disk
from givalia_core.views import text_id

# Whoever is root may write anywhere. Without these two capabilities root is as powerless as anybody before permissions.
WITHOUT_OVERRIDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc.prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def _start(rig: Rig, *flags: object) -> CompletedProcess[str]:
    command = [rig.installed.python, "-c", WITHOUT_OVERRIDE, rig.installed.program("givalia-server"), "-p", 0, "-w", 0, *flags]
    return subprocess.run(
        [str(word) for word in command],
        env=rig.environ, cwd=rig.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
    )  # fmt: skip


@pytest.fixture
def old_store(rig: Rig) -> Path:
    """A store with one job that no server has open."""
    server = rig.start_server()
    rig.client().enq("Echo", time=600, key="kept", params="secret")
    assert server.stop() == 0
    return rig.store


def _refused(rig: Rig, store: Path, code: int, words: str) -> None:
    """The server does not start, says why, and leaves every byte as it was."""
    before = _digests(store)

    done = _start(rig, "--store", f"sqlite://{store}")

    assert done.returncode == code, done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert _digests(store) == before


def _digests(store: Path) -> dict[Path, bytes]:
    files = [file for file in store.parent.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in files}


def test_a_folder_that_cannot_be_written_to_is_refused(rig: Rig, old_store: Path) -> None:
    old_store.parent.chmod(0o500)
    try:
        _refused(rig, old_store, 78, "STORE_UNFIT: .* cannot be written to by the user")
    finally:
        old_store.parent.chmod(0o700)


def test_a_file_that_cannot_be_written_to_is_refused(rig: Rig, old_store: Path) -> None:
    old_store.chmod(0o400)

    _refused(rig, old_store, 78, "STORE_UNFIT: .* cannot be written to by the user")


def test_a_store_whose_folder_is_a_file_is_refused(rig: Rig) -> None:
    (rig.folder / "file").write_text("not a folder")

    assert _start(rig, "--store", f"sqlite://{rig.folder}/file/queue.db").returncode == 78


@pytest.mark.parametrize("content", [b"", b"not a database\n" * 100, bytes(8192)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_database_is_refused(rig: Rig, content: bytes) -> None:
    rig.store.parent.mkdir()
    rig.store.write_bytes(content)

    _refused(rig, rig.store, 65, "STORE_CORRUPT")


def test_a_database_of_somebody_else_is_refused(rig: Rig) -> None:
    rig.store.parent.mkdir()
    database = sqlite3.connect(rig.store)
    database.execute("CREATE TABLE theirs (secret TEXT)")
    database.commit()
    database.close()

    _refused(rig, rig.store, 65, "STORE_CORRUPT.*not one of Givalia")


def test_a_newer_format_is_refused(rig: Rig, old_store: Path) -> None:
    database = sqlite3.connect(old_store)
    database.execute(f"PRAGMA user_version = {disk.FORMAT + 1}")
    database.close()

    _refused(rig, old_store, 78, "STORE_TOO_NEW")


def test_a_store_whose_facts_are_damaged_is_refused(rig: Rig, old_store: Path) -> None:
    database = sqlite3.connect(old_store)
    database.execute("UPDATE facts SET value = x'07' WHERE name = 'epoch'")
    database.commit()
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()

    done = _start(rig, "--store", f"sqlite://{old_store}")

    assert done.returncode == 65
    assert "STORE_CORRUPT" in done.stderr


def test_a_check_finds_a_job_whose_bytes_have_changed(rig: Rig, old_store: Path) -> None:
    at = old_store.read_bytes().index(b"secret")
    with old_store.open("r+b") as file:
        file.seek(at)
        file.write(b"secreT")

    done = rig.run("givalia", "store", "check", "--store", f"sqlite://{old_store}")

    assert done.returncode == 65
    assert "checksum" in done.stderr


# A disk that fails while the server runs.


class Producer:
    """Asks for one job after the other until the server is gone; remembers what was acknowledged, and when."""

    def __init__(self, port: int) -> None:
        self.wire = Framed(port)
        self.acknowledged: list[tuple[float, str]] = []
        self.refused: list[object] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                (told,) = answers_of(self.wire)
                if isinstance(told, tuple):
                    self.acknowledged.append((time.monotonic(), text_id(told[0])))
                else:
                    self.refused.append(told)
        except (OSError, AssertionError):
            pass

    def end(self) -> set[str]:
        """The ids that were acknowledged before the server went."""
        self._thread.join(10)
        self.wire.socket.close()
        return {job_id for _, job_id in self.acknowledged}


def answers_of(wire: Framed) -> list[object]:
    """One job, asked for and answered."""
    number = wire.begin(Kind.ENQ, enq(delay_us=600_000_000, payload=bytes(1000)))
    answer = wire.read()
    assert answer.request == number
    return answers(answer)


def _all_kept(rig: Rig, producer: Producer) -> None:
    acknowledged = producer.end()
    assert len(acknowledged) > 5
    assert producer.refused == []
    rig.server = None
    rig.start_server()
    kept = {status.id for status in rig.client().list("waiting")}
    assert acknowledged <= kept
    # At most the one that was under way can be there without an answer.
    assert len(kept - acknowledged) <= 1


def test_a_failed_write_stops_the_server_at_once_and_nothing_acknowledged_is_lost(rig: Rig) -> None:
    """The write-ahead log may grow no further: a real error of a real write, and not that the disk is full."""
    server = rig.start_server()
    producer = Producer(server.port)
    await_true(lambda: len(producer.acknowledged) > 20, "some jobs are acknowledged")
    log = rig.store.with_name("queue.db-wal")
    started = time.monotonic()

    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 100_000, resource.RLIM_INFINITY))

    assert server.wait(15) == 74
    assert producer.acknowledged
    assert time.monotonic() - started < 15
    assert "STORE_FAILED" in server.log or "StoreFailed" in server.log
    _all_kept(rig, producer)


FAILING_SYNC = """
import sqlite3
commits = 0
connect = sqlite3.connect
class Failing(sqlite3.Connection):
    def execute(self, statement, *values):
        global commits
        commits += statement == "COMMIT"
        if statement == "COMMIT" and commits > 40:
            # As SQLite would: the sync of the log fails, so the transaction is not committed.
            super().execute("ROLLBACK")
            failed = sqlite3.OperationalError("disk I/O error")
            failed.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            failed.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise failed
        return super().execute(statement, *values)
sqlite3.connect = lambda *values, **named: connect(*values, **named, factory=Failing)
"""


def _strace() -> list[str]:
    """The command that lets the 40th sync of a server fail; nothing where strace is not to be had, or may not trace."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True, timeout=20).returncode:
        return []
    inject = "fsync,fdatasync:error=EIO:when=40+"
    return [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", f"inject={inject}"]


def test_a_failed_sync_stops_the_server_at_once_and_nothing_is_acknowledged_after_it(rig: Rig) -> None:
    """EIO from the kernel where strace can make it, else from SQLite's own error inside the server."""
    before = _strace()
    server = rig.start_patched_server("" if before else FAILING_SYNC, before=before)
    producer = Producer(server.port)

    assert server.wait(15) == 74

    assert "StoreFailed" in server.log or "STORE_FAILED" in server.log
    assert "Traceback" in server.log  # Whoever is called at night wants to know where.
    _all_kept(rig, producer)


def test_what_cannot_be_synced_at_the_start_is_not_served(rig: Rig) -> None:
    before = [word.replace("when=40+", "when=1+") for word in _strace()]
    if before:
        command = [*before, str(rig.installed.program("givalia-server"))]
    else:
        file = rig.folder / "failing.py"
        file.write_text(
            FAILING_SYNC.replace("> 40", "> 0") + "from givalia_core.cli.server import main\nraise SystemExit(main())\n"
        )
        command = [str(rig.installed.python), str(file)]
    done = subprocess.run(
        [*command, "-p", "0", "-w", "0", "--store", f"sqlite://{rig.store}"],
        env=rig.environ, cwd=rig.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
    )  # fmt: skip

    assert done.returncode == 74, done.stderr
    assert "listening" not in done.stderr
