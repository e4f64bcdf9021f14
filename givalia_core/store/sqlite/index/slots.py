"""The slot of each job, eight words: where the job is filed, and where its records are. Free slots are used again.

A slot is named by the place of its first word. Its last word is a check over the others and over its own place. A second file
has the exclusive or of these checks for each page of slots, so that a page that is zeroed, swapped with another or left from an
earlier time is found, after a kill too. A slot is written in one step. The words before the first slot are the header.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Final, NamedTuple

from givalia_core.store.sqlite.index.words import Words
from givalia_core.store.sqlite.places import BASE_SHIFT, Damaged, Place, base_at

WIDTH: Final = 8
SEQ, ORIGIN, LANE, WHEN, AT, PAST, ENDED_AT, CHECK = range(WIDTH)
"""The words of a slot: the job's seq (0: the slot is free); its version and where the record of its enq is; the number of the
lane it is filed in and the time it is filed under; the place of its newest change (0: none since its enq); its neighbours among
the ended jobs of its key (0: it is in no such chain); when it ended; the check."""

FIRST: Final = 64
FAR: Final = 1 << 62
PAGE_BITS: Final = 9
PAGE: Final = 1 << PAGE_BITS
_PENDING: Final = 40  # The slot that a new job is being written to, and
NAMES_TOTAL: Final = 41  # the sum over all names,
SLOTS_TOTAL: Final = 42  # and the exclusive or of all slots' checks: each is a word that changes on its own.
_FREE_MOST: Final = 65_536  # Free slots that are known in memory.
_CUT_LEAST: Final = 16_384  # Words.
VERSION_SHIFT: Final = 16
_ROW: Final = 0xFF

_HEADER: Final = struct.Struct("16q")  # With its check.
_SLOT: Final = struct.Struct("8q")


class IndexHeader(NamedTuple):
    """Facts about the index as a whole."""

    format: int = 0
    checked: int = 0  # The hash of known numbers: another interpreter may hash differently.
    epoch: int = 0
    commits: int = 0
    boot: int = 0
    is_closed: int = 0
    end: int = FIRST
    keys_end: int = 0
    keys_crc: int = 0
    generation: int = 0
    floor: int = FAR  # Jobs above this seq came in after the last seal, whatever the list of runs says.
    first_secret: int = 0
    second_secret: int = 0
    file: int = 0
    device: int = 0


class Slots:
    """The slots of all jobs, and the header of the index."""

    def __init__(self, folder: Path, make_room: Callable[[], None]) -> None:
        """Open the files, or create empty ones.

        Raises:
            Damaged: The header is not what was written.
            OSError: There is no room, or a file cannot be opened.
        """
        self.words = Words(folder / "slots", FIRST + 1_024 * WIDTH, make_room)
        try:
            self.sums = Words(folder / "sums", 1_024, make_room)
        except BaseException:
            self.words.close()
            raise
        self.take_over()
        self.free_slots = array("q")  # Not a list: its numbers would be scattered over memory that then is not given back.
        self.gathered = 0  # The free slots of the pages before this one are in `free_slots`, if it had room.
        self._has_dropped = False  # Whether `free_slots` had no room for some.
        self.end = FIRST
        self.unverified: set[int] = set()  # Pages that were not compared with their checks since the files were opened.
        try:
            self.header = self.read_header()
            self._find_end()
        except BaseException:
            self.close()
            raise

    def take_over(self) -> None:
        """Use the memory that the files are mapped into now."""
        self.at, self._raw, self._size = self.words.at, self.words.raw, len(self.words)
        self._pages, self.sum_at = len(self.sums), self.sums.at
        self.last = min(self._size, self._pages << PAGE_BITS) - WIDTH  # The last slot that there is room for.

    def read_header(self) -> IndexHeader:
        *words, check = _HEADER.unpack_from(self._raw, 0)
        if not any(words) and not check:
            return IndexHeader()
        if check != hash(tuple(words)):
            raise Damaged("the header of the index does not match its check")
        return IndexHeader._make(words)

    def _find_end(self) -> None:
        """Find the end of the slots in use: those of an unfinished commit are behind the end in the header."""
        at, size = self.at, self._size
        end = self.header.end
        if end > size or end < FIRST or end % WIDTH:
            raise Damaged("the slots are fewer than the header says")
        while end + WIDTH <= size and at[end + CHECK]:
            end += WIDTH
        self.end = end
        pages = (end + PAGE - 1) >> PAGE_BITS
        if pages > self._pages:
            raise Damaged("the sums of the slots are fewer than their pages")
        self.unverified = set(range(pages)) if end > FIRST else set()
        self.verify_total()

    def verify_total(self) -> None:
        """Compare the sums of all pages with their total: a page and its sum may both be those of an earlier time.

        Raises:
            Damaged: They do not match.
        """
        if reduce(xor, self.sum_at[: self.pages].tolist(), 0) != self.at[SLOTS_TOTAL]:
            raise Damaged("the sums of the slots do not match their total")

    def write_header(self, header: IndexHeader) -> None:
        """Replace the header."""
        self.header = header
        _HEADER.pack_into(self._raw, 0, *header, hash(header))

    def conclude(self, commits: int, keys_end: int, keys_crc: int, generation: int) -> None:
        """Replace the part of the header that may change with each commit."""
        form, checked, epoch, _, boot, is_closed, *_ = rest = self.header
        now = IndexHeader(form, checked, epoch, commits, boot, is_closed, self.end, keys_end, keys_crc, generation, *rest[10:])
        self.header = now
        _HEADER.pack_into(self._raw, 0, *now, hash(now))

    @property
    def most(self) -> int:
        """The number of slots, free ones included."""
        return (self.end - FIRST) // WIDTH

    # Taking and writing.

    def secure(self, count: int) -> None:
        """Allocate room for this many new jobs.

        Raises:
            OSError: There is no room; all is as before.
        """
        end = self.end + max(count - len(self.free_slots), 0) * WIDTH
        if end > self._size or (end + PAGE) >> PAGE_BITS > self._pages:
            self.words.grow(end)
            self.sums.grow((end + PAGE) >> PAGE_BITS)
            self.take_over()

    def take(self) -> int:
        """Return a free slot; `pending` names it until another one is taken."""
        if self.free_slots:
            slot = self.free_slots.pop()
            if not self.free_slots and self._has_dropped:
                self.gathered, self._has_dropped = 0, False
        else:
            slot = self.end
            if slot > self.last:
                self.secure(1)
            self.end = slot + WIDTH
        self.at[_PENDING] = slot  # After a kill its job may lack names.
        return slot

    @property
    def pending(self) -> int:
        """The slot that was taken last; after a kill its job may lack names."""
        return self.at[_PENDING]

    def write(self, slot: int, seq: int, origin: int, lane: int, when: int, at: int, past: int, ended_at: int) -> None:
        """Write all of a slot."""
        check = hash((slot, seq, origin, lane, when, at, past, ended_at))
        words = self.at
        change = words[slot + CHECK] ^ check
        self.sum_at[slot >> PAGE_BITS] ^= change
        words[SLOTS_TOTAL] ^= change
        _SLOT.pack_into(self._raw, slot * 8, seq, origin, lane, when, at, past, ended_at, check)

    def put(self, slot: int, word: int, value: int) -> None:
        """Change one word of a slot."""
        words = self.at[slot : slot + CHECK].tolist()
        words[word] = value
        self.write(slot, *words)

    def free(self, slot: int) -> None:
        """Free the slot of a forgotten job."""
        self.write(slot, 0, 0, -1, 0, 0, 0, 0)
        if slot >> PAGE_BITS < self.gathered or self.gathered >= self.pages:
            self.note_free([slot])

    def note_free(self, slots: list[int]) -> None:
        if len(self.free_slots) + len(slots) <= _FREE_MOST:
            self.free_slots.extend(slots)
        else:
            self._has_dropped = True

    # Reading.

    def version(self, slot: int) -> int:
        """Return the version of the slot's job; 0 if the job is placed and not entered yet."""
        return self.at[slot + ORIGIN] >> VERSION_SHIFT

    def base(self, slot: int) -> int:
        """Return the place of the record of the job's enq."""
        origin = self.at[slot + ORIGIN]
        return base_at(self.at[slot] - (origin >> 8 & _ROW), origin & _ROW)

    def place(self, slot: int) -> Place:
        """Return where the records of the slot's job are."""
        return Place(self.at[slot], self.base(slot), self.at[slot + AT])

    def is_slot(self, slot: int) -> bool:
        """Return whether this number can be that of a slot."""
        return FIRST <= slot < self.end and not slot % WIDTH

    def is_past(self, slot: int) -> bool:
        """Return whether the slot's job has ended and has a key."""
        return self.at[slot + PAST] != 0

    def ensure(self, slots: Iterable[int]) -> None:
        """Verify the pages of these slots, unless that was done since they were opened.

        Raises:
            Damaged: A number is not that of a slot, or a page is not what was written.
        """
        if not self.unverified:
            return
        end = self.end
        for slot in slots:
            if slot < FIRST or slot >= end or slot % WIDTH:
                raise Damaged(f"there is no slot {slot}")
            if slot >> PAGE_BITS in self.unverified:
                self.verify(slot >> PAGE_BITS)

    @property
    def pages(self) -> int:
        """The number of pages that have slots."""
        return (self.end + PAGE - 1) >> PAGE_BITS

    def verify(self, page: int) -> None:
        """Compare a page with its checks.

        Raises:
            Damaged: The page is not what was written.
        """
        at, total = self.at, 0
        start = max(page << PAGE_BITS, FIRST)
        end = min((page + 1) << PAGE_BITS, self.end)
        for slot in range(start, end, WIDTH):
            *words, check = at[slot : slot + WIDTH].tolist()
            total ^= check
            if check != hash((slot, *words)):
                raise Damaged(f"slot {slot} does not match its check")
        if total != self.sum_at[page]:
            raise Damaged(f"page {page} of the slots does not match its sum")
        self.unverified.discard(page)

    def trim(self) -> None:
        """Give back the memory that the slots are mapped into."""
        self.words.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self.sums.sync()
        self.words.sync()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self.at = self.sum_at = memoryview(b"").cast("q")
        self.__dict__.pop("_raw", None)  # Or the mapping would outlive the file.
        self.words.close()
        self.sums.close()


def origin_of(seq: int, version: int, base: int) -> int:
    """Pack a job's version with the place of the record of its enq, which is less than a row before its seq."""
    return version << VERSION_SHIFT | (seq - (base >> BASE_SHIFT)) << 8 | base & _ROW
