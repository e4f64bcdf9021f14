"""The page that a process shares with its supervisor shows what ran there, and nothing that a job does to files changes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from givalia_core.worker.page import NOTHING, SharedPage, page_file, page_of


@pytest.fixture
def shared() -> Iterator[tuple[SharedPage, SharedPage]]:
    """The page as the supervisor has it, and as the process does."""
    fd = page_file()
    ours, theirs = SharedPage(fd), page_of(os.dup(fd))
    os.close(fd)
    yield ours, theirs
    theirs.close()
    ours.close()


def beat(page: SharedPage) -> None:
    """Let the loop of the process turn once more."""
    part, page.turn = next(page.parts)
    page.fields[part] = NOTHING


def run(page: SharedPage, *fences: int) -> None:
    """Switch from one greenlet to the other."""
    for fence in fences:
        page.current = fence


def test_what_has_run_since_the_pulse_before_the_last_shows(shared: tuple[SharedPage, SharedPage]) -> None:
    ours, theirs = shared
    run(theirs, 1, 2, 0, -1, 3)

    assert ours.recent() == {1, 2, 3}
    beat(theirs)
    run(theirs, 4)
    assert ours.recent() == {1, 2, 3, 4}
    beat(theirs)
    assert ours.recent() == {4}
    assert ours.current == 4


def test_of_many_switches_the_last_are_known(shared: tuple[SharedPage, SharedPage]) -> None:
    ours, theirs = shared
    run(theirs, *range(1, 10_000))

    assert ours.recent() == set(range(9_752, 10_000))


@pytest.mark.parametrize("spoil", [lambda fd: os.write(fd, b"junk"), lambda fd: os.ftruncate(fd, 0)], ids=["write", "truncate"])
def test_a_job_cannot_change_the_page_by_its_descriptor(spoil: Callable[[int], object]) -> None:
    fd = page_file()
    ours, theirs = SharedPage(fd), page_of(os.dup(fd))
    theirs.current = 7

    with pytest.raises(PermissionError):
        spoil(fd)

    assert ours.current == 7
    theirs.current = 8
    assert ours.current == 8
    os.close(fd)
