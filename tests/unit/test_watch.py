"""Changes of the installed distributions: which ones count, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from givalia_core.worker.watch import PATIENCE_S, QUIET_S, PackageWatch


class Site:
    """Folders that packages are installed into, as installers do it, on a clock of its own."""

    def __init__(self, *folders: Path) -> None:
        self.folder = folders[0]
        self.now_s = 100.0
        self.watch = PackageWatch(map(str, folders))

    def metadata(self, name: str, folder: Path | None = None) -> Path:
        made = (folder or self.folder) / f"{name}.dist-info"
        made.mkdir()
        (made / "METADATA").touch()
        return made

    def later(self, seconds: float = QUIET_S + 0.01) -> bool:
        """Whether there is news after so many seconds in which nothing has moved."""
        self.watch.has_changed(self.now_s)
        self.now_s += seconds
        return self.watch.has_changed(self.now_s)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "old.dist-info").mkdir()  # As some systems install it: without RECORD.
    return Site(tmp_path)


def test_nothing_is_news_while_nothing_changes(site: Site) -> None:
    (site.folder / "something.py").touch()

    assert not site.later()


def test_a_new_distribution_counts_once_it_has_its_record(site: Site) -> None:
    made = site.metadata("late-1.0")
    assert not site.later()
    assert not site.later(PATIENCE_S / 2)

    (made / "RECORD").touch()

    assert site.later()
    assert not site.later()


def test_a_change_counts_when_nothing_has_moved_for_a_moment(site: Site) -> None:
    (site.metadata("late-1.0") / "RECORD").touch()
    assert not site.later(QUIET_S / 2)
    (site.metadata("needed-1.0") / "RECORD").touch()
    assert not site.later(QUIET_S / 2)

    assert site.later()


def test_an_upgrade_in_place_and_a_removal_count(site: Site) -> None:
    record = site.metadata("late-1.0") / "RECORD"
    record.touch()
    assert site.later()

    os.utime(record, ns=(1, 1))
    assert site.later()

    record.unlink()
    assert not site.later()
    record.parent.joinpath("METADATA").unlink()
    record.parent.rmdir()
    assert site.later()


def test_a_distribution_that_never_gets_its_record_holds_nobody_up_for_ever(site: Site) -> None:
    site.metadata("torn-1.0")
    assert not site.later()

    assert site.later(PATIENCE_S)


def test_a_change_that_is_taken_back_is_none(site: Site) -> None:
    made = site.metadata("late-1.0")
    assert not site.later()
    for path in (made / "METADATA", made):
        path.unlink() if path.is_file() else path.rmdir()

    assert not site.later()


def test_path_files_count_and_the_folders_they_name_are_watched(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    more = tmp_path_factory.mktemp("more")
    (site.folder / "more.pth").write_text(f"# A comment.\nimport sys\n{more}\n")
    assert site.later()

    (site.metadata("elsewhere-1.0", more) / "RECORD").touch()

    assert site.later()


def test_a_folder_of_the_path_that_comes_to_be_is_seen(tmp_path: Path) -> None:
    there, later = tmp_path / "there", tmp_path / "later"
    there.mkdir()
    site = Site(there, later)
    assert not site.later()

    later.mkdir()
    (site.metadata("late-1.0", later) / "RECORD").touch()

    assert site.later()


def test_metadata_of_the_old_kind_counts_without_a_record(site: Site) -> None:
    (site.folder / "ancient.egg-info").mkdir()

    assert site.later()
