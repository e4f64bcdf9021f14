"""The store seam for online backups: a store that can send a copy of itself while it is open."""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

from givalia_core.store.base import Store


class CopyPart(NamedTuple):
    """A part of a copy of a store that is sent while the store is written; see `Copyable`."""

    payload: bytes  # Entries of rows, as `givalia_core.store.sqlite.copying` packs them.
    is_last: bool  # With it the copy is the store as it was when this part was made.
    size_bytes: int  # About how many bytes the whole copy has.
    format: int  # Of the store.
    jobs: int  # How many jobs the store has.
    made_us: int  # When the part was made, on the wall clock.
    crc: int  # The CRC-32 of all payloads up to this one.


class Copyable(Store, Protocol):
    """A store of which a copy can be sent while it is open."""

    def copy_part(self, backup: bytes, part: int) -> CopyPart:
        """Return a part of the copy that has this name, counted from 0; short. The one before can be had once more.

        Raises:
            Busy: Another copy is under way.
            NotFound: The copy was given up.
            BadRequest: There is no such part.
        """


def as_copyable(store: Store) -> Copyable | None:
    """Return the same store with what sends copies; None if it has a way of its own to be backed up."""
    return cast(Copyable, store) if hasattr(store, "copy_part") else None
