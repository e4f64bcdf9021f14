"""The slots that may belong to a name: a hash table in a mapped file that grows piece by piece.

A name is hashed to 64 bits with a secret of the store, so that no client can choose names that collide. The upper bits choose
one of many shards, each an open-addressed table that grows by itself: no insert waits for more than one shard to be copied.
An entry keeps 28 bits of the hash beside the slot. That is no proof, so the caller compares the job with the name. Each shard
has the sum of its entries beside it, and the header of the index the sum over all: a shard is trusted once it is verified.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

from givalia_core.store.sqlite.index.slots import NAMES_TOTAL, WIDTH, Slots
from givalia_core.store.sqlite.index.words import Words
from givalia_core.store.sqlite.places import Damaged

SHARDS: Final = 1_024
_SLOT_BITS: Final = 35  # With 28 bits of the hash in front, an entry fills a word and stays positive.
SLOT: Final = (1 << _SLOT_BITS) - 1
_TAG: Final = (1 << 28) - 1
_SUM: Final = (1 << 63) - 1  # As wide as an entry.
_DATA: Final = 2 * SHARDS  # The words before the tables: for each shard where it lies and how large it is, and its sum.
FIRST_LOG: Final = 3
_SMALL_LOG: Final = 7  # Tables below this size grow fourfold, so that a new store does not move all of them so often.
_LOG_MOST: Final = 40


class NameTable:
    """Slots by the hash of a name; several may have the same one."""

    def __init__(self, path: Path, secret: bytes, slots: Slots, make_room: Callable[[], None]) -> None:
        """Open the table, or create an empty one.

        Raises:
            Damaged: The file is shorter than it was.
            OSError: The file cannot be opened, or there is no room.
        """
        self.words = Words(path, _DATA + (SHARDS << FIRST_LOG), make_room)
        self._slots = slots
        self._hasher = blake2b(secret, digest_size=8)
        at = self.words.at
        if not any(at[:_DATA].tolist()) and not slots.most:
            for shard in range(SHARDS):
                at[shard] = (_DATA + (shard << FIRST_LOG)) << 6 | FIRST_LOG
        self.places = [0] * SHARDS  # The places of the shards; 0 until a shard is verified.
        self.held = [0] * SHARDS
        self.overflow: dict[int, list[int]] = {}  # By hash: names that the disk has no room for.
        self.gaps: dict[int, list[int]] = {}
        try:
            self.end = self.find_gaps()
            self.verify_total()
        except BaseException:
            self.close()
            raise

    def find_gaps(self) -> int:
        """Note the room between the tables; return where the last one ends."""
        end = _DATA
        for place in sorted(self.words.at[:SHARDS].tolist()):
            start, log = place >> 6, place & 63
            if start < end or log > _LOG_MOST or start + (1 << log) > len(self.words):
                raise Damaged("the shards of the names do not lie where they did")
            self._give_back(end, start)
            end = start + (1 << log)
        return end

    def _give_back(self, start: int, end: int) -> None:
        """Keep a stretch for later, as pieces whose sizes are powers of two."""
        while start < end:
            log = (end - start).bit_length() - 1
            self.gaps.setdefault(log, []).append(start)
            start += 1 << log

    def hash(self, name: bytes) -> int:
        """Return the hash of a name, as the other methods take it."""
        hasher = self._hasher.copy()
        hasher.update(name)
        return int.from_bytes(hasher.digest(), "little")

    def of_id(self, job_id: bytes) -> int:
        """Return the hash of an id."""
        return self.hash(b"i" + job_id)

    def of_key(self, key: str) -> int:
        """Return the hash of a key."""
        return self.hash(b"k" + key.encode())

    def of_request(self, request: bytes) -> int:
        """Return the hash of a request that was not an enq."""
        return self.hash(b"r" + request)

    def look_up(self, hashable: bytes, name: bytes | str, absent: dict[bytes | str, int]) -> list[int]:
        """Return the slots that may have a name; if there are none, `absent` gets the name with its hash."""
        hasher = self._hasher.copy()  # As `hash` does; each name in a `find` is hashed here.
        hasher.update(hashable)
        hashed = int.from_bytes(hasher.digest(), "little")
        if not (slots := self.slots(hashed)):
            absent[name] = hashed
        return slots

    def slots(self, hashed: int) -> list[int]:
        """Return the slots that may have the name; raise `Damaged` if the shard or a slot's page is not what was written."""
        place = self.places[hashed >> 54] or self.verify(hashed >> 54)
        start, last, tag, at = place >> 6, (1 << (place & 63)) - 1, hashed & _TAG, self.words.at
        found: list[int] = []
        home = turn = tag & last
        while entry := at[start + turn]:
            if entry >> _SLOT_BITS == tag:
                found.append(entry & SLOT)
            turn = (turn + 1) & last
            if turn == home:
                raise Damaged(f"shard {hashed >> 54} of the names has no gap")
        if self.overflow:
            found += self.overflow.get(hashed, ())
        if self._slots.unverified:
            self._slots.ensure(found)
        return found

    def verify_total(self) -> None:
        """Compare the sums of all shards with their total.

        Raises:
            Damaged: They do not match.
        """
        if sum(self.words.at[SHARDS:_DATA].tolist()) & _SUM != self._slots.at[NAMES_TOTAL]:
            raise Damaged("the sums of the names do not match their total")

    def verify(self, shard: int) -> int:
        """Compare a shard with its sum and its order; return its place.

        Raises:
            Damaged: The shard is not what was written.
        """
        place = self.words.at[shard]
        start, size = place >> 6, 1 << (place & 63)
        entries = self.words.at[start : start + size].tolist()
        held = size - entries.count(0)
        if sum(entries) & _SUM != self.words.at[SHARDS + shard] or held >= size:
            raise Damaged(f"shard {shard} of the names does not match its sum")
        # Begin at a gap, so that no run of entries wraps around the end of the table.
        first = entries.index(0)
        run, last = 0, size - 1
        for turn, entry in enumerate(entries[first:] + entries[:first], first):
            if not entry:
                run = 0
                continue
            if (turn - (entry >> _SLOT_BITS)) & last > run or entry & (WIDTH - 1) or entry < 0:
                raise Damaged(f"shard {shard} of the names is not in order")
            run += 1
        self.held[shard] = held
        self.places[shard] = place
        return place

    def add(self, hashed: int, slot: int) -> bool:
        """Give a slot the name; return whether the slot did not have the name before, and no other slot has it."""
        shard, tag, at, header = hashed >> 54, hashed & _TAG, self.words.at, self._slots.at
        place = self.places[shard] or self.verify(shard)
        start, last, entry, is_alone = place >> 6, (1 << (place & 63)) - 1, tag << _SLOT_BITS | slot, not self.overflow
        home = turn = tag & last
        while there := at[start + turn]:
            if there == entry:
                return False
            is_alone = is_alone and there >> _SLOT_BITS != tag
            turn = (turn + 1) & last
            if turn == home:
                raise Damaged(f"shard {shard} of the names has no gap")
        if (self.held[shard] + 1) * 4 > last * 3 and (done := self._add_to_full(shard, hashed, slot)) is not None:
            return done
        at[start + turn] = entry
        self.held[shard] += 1
        # As `_note` does; inlined, since a call for each name of each job costs as much as the disk.
        at[SHARDS + shard] = (at[SHARDS + shard] + entry) & _SUM
        header[NAMES_TOTAL] = (header[NAMES_TOTAL] + entry) & _SUM
        return is_alone

    def _add_to_full(self, shard: int, hashed: int, slot: int) -> bool | None:
        """Add a name to a nearly full shard by growing it; return None if the disk has no room for that, but the shard has."""
        if self._grown(shard):
            return self.add(hashed, slot)
        if self.held[shard] + 1 < (1 << (self.places[shard] & 63)) - 1:
            return None
        self.overflow.setdefault(hashed, []).append(slot)
        return False

    def _note(self, shard: int, change: int) -> None:
        at, header = self.words.at, self._slots.at
        at[SHARDS + shard] = (at[SHARDS + shard] + change) & _SUM
        header[NAMES_TOTAL] = (header[NAMES_TOTAL] + change) & _SUM

    def remove(self, hashed: int, slot: int) -> None:
        """Take the name from a slot, if the slot has it."""
        if self.overflow and slot in self.overflow.get(hashed, ()):
            self.overflow[hashed].remove(slot)
            if not self.overflow[hashed]:
                del self.overflow[hashed]
        shard, tag = hashed >> 54, hashed & _TAG
        place = self.places[shard] or self.verify(shard)
        start, last = place >> 6, (1 << (place & 63)) - 1
        at = self.words.at
        entry = tag << _SLOT_BITS | slot
        hole, home = -1, tag & last
        turn = home
        while there := at[start + turn]:
            if hole < 0:
                if there == entry:
                    hole = turn
            elif (turn - (there >> _SLOT_BITS)) & last >= (turn - hole) & last:
                # An entry behind the hole that would no longer be found moves into the hole.
                at[start + hole] = there
                hole = turn
            turn = (turn + 1) & last
            if turn == home:
                raise Damaged(f"shard {shard} of the names has no gap")
        if hole < 0:
            return
        at[start + hole] = 0
        self.held[shard] -= 1
        self._note(shard, -entry)

    def _grown(self, shard: int) -> bool:
        """Move a shard to a larger table; return False if the disk has no room for that."""
        place = self.places[shard]
        try:
            log = place & 63
            self.move(shard, log + (2 if log < _SMALL_LOG else 1))
        except OSError:
            return False
        return True

    def move(self, shard: int, log: int) -> None:
        """Move a shard to a table of this size."""
        place = self.places[shard]
        start, size = place >> 6, 1 << (place & 63)
        last = (1 << log) - 1
        table = [0] * (last + 1)
        for entry in self.words.at[start : start + size].tolist():
            if entry:
                turn = entry >> _SLOT_BITS & last
                while table[turn]:
                    turn = (turn + 1) & last
                table[turn] = entry
        new = self._room(log)
        at = self.words.at
        at[new : new + last + 1] = memoryview(array("q", table))
        at[shard] = self.places[shard] = new << 6 | log
        self._give_back(start, start + size)

    def gap(self, log: int) -> tuple[int, int] | None:
        """Return the first piece in the file with room for a table of this size, and the size of the piece."""
        return min(((min(pieces), size) for size, pieces in self.gaps.items() if size >= log and pieces), default=None)

    def _room(self, log: int) -> int:
        if (gap := self.gap(log)) is not None:
            start, size = gap
            self.gaps[size].remove(start)
            self._give_back(start + (1 << log), start + (1 << size))
            return start
        start = self.end
        self.words.grow(start + (1 << log))
        self.end += 1 << log
        return start

    @property
    def is_whole(self) -> bool:
        """Return whether every name is in the file."""
        return not self.overflow

    def trim(self) -> None:
        """Give back the memory that the table is mapped into."""
        self.words.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self.words.sync()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self.words.close()
