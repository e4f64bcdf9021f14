"""The chains of the ended jobs of a key: in order of end, whole after a kill, and found to be broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from pathlib import Path
from unittest.mock import Mock

import pytest
from index_rig import Killed

from givalia_core.model import Job
from givalia_core.store.sqlite.index.chains import LAST, Chains
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.slots import ENDED_AT, FIRST, PAST, SEQ, Slots
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.suite import ended, waiting

KEY = "cart"


class Ended:
    """The ended jobs of keys, and their chains."""

    def __init__(self, folder: Path) -> None:
        self.slots = Slots(folder, Mock())
        self.names = NameTable(folder / "names", b"secret", self.slots, Mock())
        self.jobs: dict[int, Job] = {}
        self.chains = Chains(self.slots, self.names, self.read)
        self.hashed = self.names.of_key(KEY)

    def read(self, slots: Iterable[int]) -> dict[int, Job]:
        return {slot: self.jobs[slot] for slot in slots if slot in self.jobs}

    def job(self, ended_at: int, key: str = KEY) -> int:
        """Make a job that has ended, and is not in its chain yet."""
        slot = self.slots.take()
        seq = 1 + (slot - FIRST) // 8
        self.jobs[slot] = ended(waiting(seq, key=key)).job.changed(ended_at_us=ended_at)
        self.slots.write(slot, seq, 0, 0, 0, 0, 0, ended_at)
        return slot

    def link(self, slot: int) -> None:
        past = self.chains.link(slot, self.slots.at[slot + ENDED_AT], KEY, self.hashed)
        self.slots.put(slot, PAST, past)

    def whole(self) -> list[int]:
        """Return the chain from its head on, in which all neighbours know each other, and no other slot has the name."""
        named = self.names.slots(self.hashed)
        slot = self.chains.head(KEY, named)
        if slot is None:
            return []
        assert named == [slot]
        assert self.chains.is_head(slot)
        found = [slot]
        while slot := self.chains.older(slot):
            assert self.chains.is_linked(slot)
            assert not self.chains.is_head(slot)
            found.append(slot)
        return found


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Ended]:
    there = Ended(tmp_path)
    yield there
    there.names.close()
    there.slots.close()


def test_a_job_that_is_alone_is_the_head_and_has_no_neighbour(there: Ended) -> None:
    slot = there.job(10)
    there.names.add(there.hashed, slot)

    assert there.chains.head(KEY, [slot]) is None  # Not before it is linked.
    assert there.chains.link(slot, 10, KEY, there.hashed) == LAST
    there.slots.put(slot, PAST, LAST)

    assert there.whole() == [slot]
    assert there.chains.older(slot) == 0
    there.chains.unlink(slot, there.hashed)
    assert there.whole() == there.names.slots(there.hashed) == []
    assert there.slots.at[slot + PAST] == 0


@pytest.mark.parametrize("ends", [*permutations((10, 20)), *permutations((10, 20, 30, 40))])
@pytest.mark.parametrize("was_live", [False, True])
def test_jobs_stand_in_their_chain_by_end_whichever_came_first(there: Ended, ends: tuple[int, ...], was_live: bool) -> None:
    slots = {when: there.job(when) for when in ends}
    for slot in slots.values():
        if was_live:
            there.names.add(there.hashed, slot)
        there.link(slot)

    assert there.whole() == [slots[when] for when in sorted(ends, reverse=True)]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("is_key_known", [False, True])
def test_a_job_leaves_its_chain_in_a_few_writes(there: Ended, which: int, is_key_known: bool) -> None:
    slots = [there.job(10 * number) for number in range(4)]
    for slot in slots:
        there.link(slot)
    gone = slots.pop(which)
    put = there.slots.put = Mock(wraps=there.slots.put)  # type: ignore[method-assign]

    there.chains.unlink(gone, there.hashed if is_key_known else None)

    assert put.call_count <= 3
    assert there.slots.at[gone + PAST] == 0
    if is_key_known or which < 3:
        assert there.whole() == slots[::-1]
    else:  # Nobody knows the name of the next one: a rebuild or the next job of the key gives it one.
        assert there.names.slots(there.hashed) == [gone]
        assert there.chains.is_head(slots[-1])


def killed_at(there: Ended, number: int, work: Callable[[], object]) -> bool:
    """Do some work up to a write; return False if all of it was done before."""
    left = number

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def write(*values: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*values)

        return write

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(there.slots, "write", counted(there.slots.write))
        patched.setattr(there.names, "add", counted(there.names.add))
        patched.setattr(there.names, "remove", counted(there.names.remove))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("when", [5, 15, 25, 35])
@pytest.mark.parametrize("number", range(6))
def test_a_job_whose_linking_a_kill_cut_short_is_linked_when_that_is_done_again(there: Ended, when: int, number: int) -> None:
    slots = [there.job(each) for each in (10, 20, 30)]
    for slot in slots:
        there.link(slot)
    new = there.job(when)
    there.names.add(there.hashed, new)
    was_killed = killed_at(there, number, lambda: there.link(new))
    assert was_killed or number >= 4

    if there.slots.at[new + PAST]:  # As every caller does.
        there.chains.unlink(new, there.hashed)
    there.link(new)

    assert there.whole() == [slot for _, slot in sorted([*zip((10, 20, 30), slots, strict=True), (when, new)], reverse=True)]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("number", range(5))
def test_a_job_that_a_kill_kept_in_its_chain_leaves_when_that_is_done_again(there: Ended, which: int, number: int) -> None:
    slots = [there.job(10 * number) for number in range(3)]
    for slot in slots:
        there.link(slot)
    gone = slots.pop(which)
    killed_at(there, number, lambda: there.chains.unlink(gone, there.hashed))

    there.chains.unlink(gone, there.hashed)

    assert there.whole() == slots[::-1]
    assert there.slots.at[gone + PAST] == 0


@pytest.mark.parametrize("older", [FIRST + 3, 8, 1 << 20])
def test_a_neighbour_that_is_no_slot_is_damage(there: Ended, older: int) -> None:
    slot = there.job(10)
    there.link(slot)
    there.slots.put(slot, PAST, older)

    for work in (there.chains.older, lambda slot: there.chains.unlink(slot, there.hashed)):
        with pytest.raises(Damaged, match=f"slot {slot} "):
            work(slot)


@pytest.mark.parametrize("how", ["does not know it", "is free"])
def test_neighbours_that_do_not_know_each_other_are_damage(there: Ended, how: str) -> None:
    first, second, third = (there.job(number) for number in (1, 2, 3))
    for slot in (first, second, third):
        there.link(slot)
    if how == "is free":
        there.slots.put(second, SEQ, 0)
    else:
        there.slots.put(second, PAST, LAST)

    with pytest.raises(Damaged, match="not neighbours"):
        there.chains.older(third)


def test_the_head_is_the_last_to_end_of_those_that_have_the_key_itself(there: Ended) -> None:
    slots = [there.job(10), there.job(30, key="another with this hash"), there.job(20), there.job(40)]
    for slot in slots:
        there.slots.put(slot, PAST, LAST)
    free, live = there.job(50), there.job(60)
    there.slots.put(free, PAST, LAST)
    there.slots.put(free, SEQ, 0)
    named = [*slots, free, live]

    assert there.chains.head(KEY, named) == slots[3]
    assert there.chains.head(KEY, named, but=slots[3]) == slots[2]
    del there.jobs[slots[2]]  # Its records are gone.
    assert there.chains.head(KEY, named, but=slots[3]) == slots[0]
    assert there.chains.head(KEY, [slots[1], live]) is None
