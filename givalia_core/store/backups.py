"""The store seam for online backups: a store that can send a copy of itself while it is open."""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

from givalia_core.store.base import Store


class CopyPart(NamedTuple):
    """A part of a copy of a store that is sent while the store is written; see `Copyable`."""

    payload: bytes  # Entries of rows, as `givalia_core.store.sqlite.copying` packs them.
    is_last: bool  # The copy is complete: the store as it was when this part was made.
    size_bytes: int  # The approximate size of the whole copy.
    format: int  # Of the store.
    jobs: int  # How many jobs the store has.
    made_us: int  # When the part was made, on the wall clock.
    crc: int  # The CRC-32 of all payloads up to this one.


class Copyable(Store, Protocol):
    """A store that can send a copy of itself while it is open."""

    def copy_part(self, backup: bytes, part: int) -> CopyPart:
        """Return a part, counted from 0, of the copy named `backup`; short. The last part can be fetched again.

        Raises:
            Busy: Another copy is under way.
            NotFound: The copy was given up.
            BadRequest: There is no such part.
        """


def as_copyable(store: Store) -> Copyable | None:
    """Return the store as a `Copyable`; None if it is backed up in a way of its own."""
    return cast(Copyable, store) if hasattr(store, "copy_part") else None
