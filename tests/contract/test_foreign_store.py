"""Stores that this user may not write to: no write has failed, and a restart does not help."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from givalia_core.cli import moving
from givalia_core.errors import GivaliaError, StoreFailed, StoreFull, StoreUnfit
from givalia_core.store import SQLite

NOBODY = 65_534


def store(path: Path) -> SQLite:
    return SQLite(f"sqlite://{path}")


def opened_by_nobody(path: Path) -> str:
    """Open a store in a process of a user who owns nothing; what it is refused with."""
    readable, writable = os.pipe()
    if (pid := os.fork()) == 0:
        said = "it was opened"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            store(path).open()
        except GivaliaError as error:
            said = f"{error.code}: {error}"
        except BaseException as error:
            said = repr(error)
        finally:
            os.write(writable, said.encode())
            os._exit(0)
    os.close(writable)
    os.waitpid(pid, 0)
    with os.fdopen(readable) as words:
        return words.read()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a store that is closed, in a folder that everybody can find."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder != Path("/tmp") and folder.stat().st_uid == os.geteuid():
            folder.chmod(0o755)
    path = tmp_path / "store" / "queue.db"
    opened = store(path)
    opened.open()
    opened.close()
    for each in (path.parent, *path.parent.rglob("*")):
        each.chmod(0o777)
    return path


@pytest.mark.parametrize("what", ["folder", "index", "file"])
def test_what_may_not_be_written_is_unfit_and_named_with_its_owner(path: Path, what: str) -> None:
    named = {"folder": path.parent, "index": path.with_name("queue.db.index"), "file": path}[what]
    named.chmod(0o555)

    assert opened_by_nobody(path).startswith(f"STORE_UNFIT: {named} cannot be written to by the user ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_root_opens_no_store_of_another_user(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)
    before = sorted(path.parent.rglob("*"))

    with pytest.raises(StoreUnfit, match=f"the store {path} belongs to the user .*; start it as "):
        store(path).open()

    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("below", ["queue.db", "deeper/queue.db"])
def test_a_folder_in_which_nothing_may_be_made_is_unfit(path: Path, below: str) -> None:
    closed = path.parent.parent / "closed"
    closed.mkdir(0o700)
    if os.geteuid() != 0:
        closed.chmod(0o500)

    assert opened_by_nobody(closed / below).startswith(f"{StoreUnfit.code}: {closed}")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, StoreUnfit), (errno.EROFS, StoreUnfit), (errno.ENOENT, StoreUnfit),
        (errno.ENAMETOOLONG, StoreUnfit), (errno.ENOSPC, StoreFull),
        (errno.EIO, StoreFailed), (errno.EPIPE, StoreFailed),
    ],
)  # fmt: skip
def test_an_export_that_may_not_be_written_is_no_write_that_failed(number: int, kind: type[GivaliaError]) -> None:
    with pytest.raises(kind, match="the export cannot be written"), moving.failing("the export"):
        raise OSError(number, os.strerror(number))
