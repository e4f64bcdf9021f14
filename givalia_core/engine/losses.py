"""Counts of losses with workers: leases that ended without a report, and workers that went away without draining.

A worker that loses its connection is not lost if it is connected again within a lease, to this server or to another server of
the same store.
"""

from __future__ import annotations

from collections.abc import Collection

from givalia_core.takers import WorkerSession


class Losses:
    """The counts since this server started, and the workers that are gone and may still come back."""

    def __init__(self) -> None:
        self.leases = 0
        """Leases that no worker renewed or reported on in time."""
        self.workers = 0
        """Workers that were gone for a lease and had not given back their credits and jobs first."""
        self.gone: dict[bytes, int] = {}  # By instance: since when.

    def join(self, instance: bytes) -> None:
        """Note that a worker has connected."""
        self.gone.pop(instance, None)

    def leave(self, session: WorkerSession, now_us: int) -> None:
        """Note that a worker's connection is gone; a worker that could take no jobs and held none is no loss."""
        if any(room.capacity > 0 or room.held > 0 for room in session.rooms.values()):
            self.gone[session.join.instance] = now_us

    def extend(self, gap_us: int) -> None:
        """Give the workers that are gone more time: this process stood still, so none could come back meanwhile."""
        self.gone = {instance: since_us + gap_us for instance, since_us in self.gone.items()}

    def sweep(self, before_us: int, elsewhere: Collection[bytes]) -> None:
        """Count the workers that went before this time; those that are connected elsewhere are not lost."""
        for instance in [instance for instance, since_us in self.gone.items() if since_us <= before_us]:
            del self.gone[instance]
            self.workers += instance not in elsewhere
