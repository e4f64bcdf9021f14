"""Counts what was lost with workers: leases that ended without a report, and workers that went away without having drained.

A worker that loses its connection and comes back within a lease was not lost, and neither was one that is connected to another
server of the same store by then.
"""

from __future__ import annotations

from collections.abc import Collection

from givalia_core.takers import WorkerSession


class Losses:
    """The counts since this server started, and the workers of which it is not known yet whether they come back."""

    def __init__(self) -> None:
        self.leases = 0
        """Leases that nobody renewed or reported on in time."""
        self.workers = 0
        """Workers that were gone for a lease, without having given back their credits and jobs first."""
        self.gone: dict[bytes, int] = {}  # By instance, since when.

    def join(self, instance: bytes) -> None:
        """A worker has connected."""
        self.gone.pop(instance, None)

    def leave(self, session: WorkerSession, now_us: int) -> None:
        """A worker's connection is gone; nothing is lost with one that could take no more and held nothing."""
        if any(room.capacity > 0 or room.held > 0 for room in session.rooms.values()):
            self.gone[session.join.instance] = now_us

    def extend(self, gap_us: int) -> None:
        """This process stood still, so that nobody could come back meanwhile."""
        self.gone = {instance: since_us + gap_us for instance, since_us in self.gone.items()}

    def sweep(self, before_us: int, elsewhere: Collection[bytes]) -> None:
        """Count the workers that have been gone since before this; those that are connected elsewhere are not lost."""
        for instance in [instance for instance, since_us in self.gone.items() if since_us <= before_us]:
            del self.gone[instance]
            self.workers += instance not in elsewhere
