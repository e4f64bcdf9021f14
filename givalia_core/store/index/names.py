"""Which slots may belong to a name: a hash table in a mapped file that grows piece by piece.

A name is hashed to 64 bits with a secret of the store, so that nobody can choose names that collide. The upper bits choose
one of many shards, each an open-addressed table that grows by itself: no insert waits for more than one shard to be copied.
An entry keeps 28 bits of the hash beside the slot. That is not proof, so whoever asks compares the job with the name; an entry
that is left over from a kill is thereby harmless, and a lost one is impossible: what moves is copied before it is cleared.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

from givalia_core.store.index.words import Words

_SHARDS: Final = 1_024
_SLOT_BITS: Final = 35  # With 28 bits of the hash in front, an entry fills a word and stays positive.
_SLOT: Final = (1 << _SLOT_BITS) - 1
_TAG: Final = (1 << 28) - 1
_DATA: Final = 2 * _SHARDS  # The words before it: for each shard where it lies and how large it is, and how many it holds.
_FIRST_LOG: Final = 3


class Names:
    """Slots by the hash of a name; several may have the same one."""

    def __init__(self, path: Path, secret: bytes, make_room: Callable[[], None]) -> None:
        """Open the table, or make an empty one."""
        self._words = Words(path, _DATA + (_SHARDS << _FIRST_LOG), make_room)
        self._hasher = blake2b(secret, digest_size=8)
        at = self._words.at
        if not at[0]:
            for shard in range(_SHARDS):
                at[shard] = (_DATA + (shard << _FIRST_LOG)) << 6 | _FIRST_LOG
        self._places = [at[shard] for shard in range(_SHARDS)]
        if any((place >> 6) + (1 << (place & 63)) > len(self._words) for place in self._places):
            self.close()
            raise ValueError(f"{path} is shorter than it was")
        self._free: dict[int, list[int]] = {}
        self._end = self._find_gaps()

    def _find_gaps(self) -> int:
        end = _DATA
        for place in sorted(self._places):
            start, log = place >> 6, place & 63
            self._give_back(end, start)
            end = start + (1 << log)
        return end

    def _give_back(self, start: int, end: int) -> None:
        """Keep a stretch for later, as pieces whose sizes are powers of two."""
        while start < end:
            log = (end - start).bit_length() - 1
            self._free.setdefault(log, []).append(start)
            start += 1 << log

    def hash(self, name: bytes) -> int:
        """The hash of a name, as the other methods take it."""
        hasher = self._hasher.copy()
        hasher.update(name)
        return int.from_bytes(hasher.digest(), "little")

    def slots(self, hashed: int) -> list[int]:
        """The slots that may have the name."""
        place = self._places[hashed >> 54]
        start, last = place >> 6, (1 << (place & 63)) - 1
        tag, at = hashed & _TAG, self._words.at
        turn = tag & last
        found: list[int] = []
        while entry := at[start + turn]:
            if entry >> _SLOT_BITS == tag:
                found.append(entry & _SLOT)
            turn = (turn + 1) & last
        return found

    def add(self, hashed: int, slot: int) -> None:
        """Let a slot have the name; once is enough."""
        shard, tag = hashed >> 54, hashed & _TAG
        place = self._places[shard]
        start, last = place >> 6, (1 << (place & 63)) - 1
        at = self._words.at
        entry = tag << _SLOT_BITS | slot
        turn = tag & last
        while there := at[start + turn]:
            if there == entry:
                return
            turn = (turn + 1) & last
        at[start + turn] = entry
        at[_SHARDS + shard] = held = at[_SHARDS + shard] + 1
        if held * 4 > last * 3:
            self._grow(shard)

    def remove(self, hashed: int, slot: int) -> None:
        """Take the name from a slot, if it has it."""
        shard, tag = hashed >> 54, hashed & _TAG
        place = self._places[shard]
        start, last = place >> 6, (1 << (place & 63)) - 1
        at = self._words.at
        entry = tag << _SLOT_BITS | slot
        turn = tag & last
        while there := at[start + turn]:
            if there == entry:
                break
            turn = (turn + 1) & last
        else:
            return
        at[_SHARDS + shard] -= 1
        # Entries behind it that would no longer be found move up.
        hole = turn
        while there := at[start + (turn := (turn + 1) & last)]:
            home = there >> _SLOT_BITS & last
            if (turn - home) & last >= (turn - hole) & last:
                at[start + hole] = there
                hole = turn
        at[start + hole] = 0

    def _grow(self, shard: int) -> None:
        place = self._places[shard]
        start, log = place >> 6, place & 63
        size = 1 << log
        old = [entry for entry in self._words.at[start : start + size].tolist() if entry]
        log += 1
        last = (1 << log) - 1
        table = [0] * (last + 1)
        for entry in old:
            turn = entry >> _SLOT_BITS & last
            while table[turn]:
                turn = (turn + 1) & last
            table[turn] = entry
        new = self._room(log)
        at = self._words.at
        at[new : new + last + 1] = memoryview(array("q", table))
        at[shard] = self._places[shard] = new << 6 | log
        at[_SHARDS + shard] = len(old)
        self._give_back(start, start + size)

    def _room(self, log: int) -> int:
        if pieces := self._free.get(log):
            return pieces.pop()
        start = self._end
        self._words.grow(start + (1 << log))
        self._end += 1 << log
        return start

    def summary(self) -> bytes:
        """What tells this table from one that lost something as a whole."""
        return bytes(self._words.at[:_DATA])

    def trim(self) -> None:
        """Give back the memory that the table is mapped into."""
        self._words.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self._words.sync()

    def close(self) -> None:
        """Let the file go."""
        self._words.close()
