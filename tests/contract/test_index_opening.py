"""The opening of the index: it is used if it is the one that the last run left, and only then."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from index_rig import BOOT, EPOCH, IndexRig, opened

from givalia_core.store.base import Route
from givalia_core.store.sqlite.index import keys, opening, sealing
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.opening import DAMAGED, Sealed, begin, close_index, open_index, remake, trim_if_large
from givalia_core.store.suite import waiting

rig = pytest.fixture(opened)


def again(rig: IndexRig) -> Index:
    rig.index = Index(rig.folder, rig.records.read, rig.make_room)
    return rig.index


def test_after_a_kill_the_index_is_read_from_the_last_seal_on(rig: IndexRig) -> None:
    rig.enq(waiting(1, key="a", module="Fax", specifier=">=2"), waiting(5))
    sealing.seal(rig.index.lanes, 7, 5)
    rig.enq(waiting(6))
    name = rig.index.name
    close_index(rig.index, sync=False)

    index = again(rig)

    assert open_index(index, EPOCH, 2, BOOT, name) == Sealed(7, 5)
    assert (index.strangeness, index.ahead, index.name) == ("", 0, name)
    assert (index.was_closed, index.is_verified, index.is_sure) == (False, False, False)
    assert set(index.routes) == {Route("Fax", "any >=2"), Route("Mail", "any")}
    assert index.targets == {"Fax": {"any >=2"}, "Mail": {"any"}}
    assert rig.slot(waiting(6)) == rig.slot(waiting(5)) + 8


def test_jobs_that_came_in_below_the_seal_are_read_too(rig: IndexRig) -> None:
    rig.enq(waiting(100))
    sealing.seal(rig.index.lanes, 7, 100)
    rig.enq(waiting(50))

    assert rig.kill() == Sealed(7, 49)


@pytest.mark.parametrize(
    ("epoch", "commit", "boot", "why", "ahead"),
    [
        (EPOCH, 2, BOOT, "", 0),
        (EPOCH, 3, BOOT, "", 0),  # A kill came between the records and the index.
        (EPOCH - 1, 2, BOOT, "", 0),  # The run before this one was killed as it began.
        (EPOCH, 1, BOOT, "it is of another time than the records", 1),
        (EPOCH, 4, BOOT, "it is of another time than the records", 0),
        (EPOCH + 1, 2, BOOT, "it is of another time than the records", 0),
        (EPOCH - 2, 2, BOOT, "it is of another time than the records", 0),
        (EPOCH, 2, "another boot", "the machine went down, and what was not synced is lost", 0),
    ],
)
def test_an_index_that_is_not_in_step_with_the_records_is_not_used(
    rig: IndexRig, epoch: int, commit: int, boot: str, why: str, ahead: int
) -> None:
    rig.enq(waiting(1))
    rig.enq(waiting(2))
    name = rig.index.name
    close_index(rig.index, sync=False)

    sealed = open_index(again(rig), epoch, commit, boot, name)

    assert (rig.index.strangeness, rig.index.ahead) == (why, ahead)
    assert (sealed is None) is bool(why)


def test_an_index_that_was_closed_lasts_over_a_restart_of_the_machine_until_a_run_begins(rig: IndexRig) -> None:
    rig.enq(waiting(1))
    name = rig.index.name
    close_index(rig.index, sync=True)

    for _ in range(2):
        assert open_index(again(rig), EPOCH, 1, "another boot", name) is not None
        assert rig.index.was_closed
        assert rig.index.is_sure
        close_index(rig.index, sync=False)
    assert open_index(again(rig), EPOCH, 1, "another boot", name) is not None
    begin(rig.index, EPOCH + 1, "another boot")
    close_index(rig.index, sync=False)

    assert open_index(again(rig), EPOCH + 1, 1, "a third boot", name) is None
    assert not rig.index.was_closed
    close_index(rig.index, sync=False)
    assert open_index(again(rig), EPOCH + 1, 1, "another boot", name) is not None


def test_the_index_of_another_store_or_a_copy_is_not_used(rig: IndexRig) -> None:
    rig.enq(waiting(1))
    name = rig.index.name
    close_index(rig.index, sync=False)
    assert open_index(again(rig), EPOCH, 1, BOOT, name + 1) is None
    assert rig.index.strangeness == "it is that of another store"
    close_index(rig.index, sync=False)

    elsewhere = rig.folder.with_name("elsewhere")
    shutil.copytree(rig.folder, elsewhere)
    shutil.rmtree(rig.folder)
    elsewhere.rename(rig.folder)

    assert open_index(again(rig), EPOCH, 1, BOOT, name) is None
    assert rig.index.strangeness.startswith("it is a copy")


@pytest.mark.parametrize("what", ["format", "checked"])
def test_an_index_of_another_format_or_interpreter_is_not_used(rig: IndexRig, what: str) -> None:
    header = rig.index.slots.header
    rig.index.slots.write_header(header._replace(**{what: getattr(header, what) + 1}))

    assert rig.kill() is None
    assert rig.index.strangeness == f"{DAMAGED}: it is of another format"


def test_an_index_that_was_never_there_says_so_and_one_that_is_made_anew_is_empty_and_has_another_name(
    rig: IndexRig, tmp_path: Path
) -> None:
    index = Index(tmp_path / "none", rig.records.read, Mock())
    assert open_index(index, 0, 0, BOOT, None) is None
    assert index.strangeness == "it was not there"
    close_index(index, sync=False)
    rig.enq(waiting(1, key="a"))
    name, stamp = rig.index.name, rig.index.stamp

    remake(rig.index, BOOT)

    assert rig.index.name != name
    assert rig.index.stamp > stamp  # Nothing that was learned before holds.
    assert rig.index.slots.most == 0
    assert rig.index.names.slots(rig.index.names.of_key("a")) == []
    assert (rig.index.routes, rig.index.targets, rig.index.lane_of_fields, rig.index.replaced) == ({}, {}, {}, [])
    fixed = [key for key in rig.index.lanes.by_key if key[0] != keys.DUE]
    assert len(fixed) == len(rig.index.lanes.by_key) == 4 + 3 * 3
    assert rig.index.jobs.forgotten == rig.index.forgotten.number
    kept = [rig.index.forgotten, rig.index.running, *rig.index.expiring.values()]
    kept += [*rig.index.newest.values(), *rig.index.ended.values()]
    assert all(rig.index.lanes.by_key[lane.key] is lane for lane in kept)  # Not those of the index before.


@pytest.mark.parametrize(("code", "is_damage"), [(errno.ELOOP, True), (errno.ENOSPC, False)])
def test_a_file_that_is_no_file_is_damage_and_an_error_of_the_disk_is_not(
    rig: IndexRig, monkeypatch: pytest.MonkeyPatch, code: int, is_damage: bool
) -> None:
    name = rig.index.name
    close_index(rig.index, sync=False)
    monkeypatch.setattr(opening, "Lanes", Mock(side_effect=OSError(code, "words of the system")))
    index = again(rig)

    if is_damage:
        assert open_index(index, EPOCH, 0, BOOT, name) is None
        assert index.strangeness.startswith(DAMAGED)
    else:
        with pytest.raises(OSError, match="words of the system"):
            open_index(index, EPOCH, 0, BOOT, name)


def test_what_has_the_place_of_the_folder_is_not_followed(rig: IndexRig) -> None:
    rig.enq(waiting(1))
    close_index(rig.index, sync=False)
    elsewhere = rig.folder.rename(rig.folder.with_name("elsewhere"))
    before = {file.name: file.read_bytes() for file in elsewhere.iterdir()}
    rig.folder.symlink_to(elsewhere)

    assert open_index(again(rig), EPOCH, 1, BOOT, 1) is None
    assert rig.index.strangeness == f"{DAMAGED}: index is no folder of its own"
    remake(rig.index, BOOT)

    assert not rig.folder.is_symlink()
    assert {file.name: file.read_bytes() for file in elsewhere.iterdir()} == before


def test_memory_is_given_back_only_if_much_of_it_is_mapped(
    rig: IndexRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.enq(waiting(1))
    trims = [Mock(), Mock(), Mock()]
    for part, trim in zip((rig.index.names, rig.index.lanes, rig.index.slots), trims, strict=True):
        monkeypatch.setattr(part, "trim", trim)
    monkeypatch.setattr(opening, "_STATM", tmp_path / "statm")
    trim_if_large(rig.index)  # The system does not say.
    for pages, calls in ((1, 0), (1 << 30, 1)):
        (tmp_path / "statm").write_text(f"{1 << 31} {1 << 31} {pages} 1 0 1 0\n")
        trim_if_large(rig.index)

        assert [trim.call_count for trim in trims] == [calls] * 3
