"""A job as any client holds it: what it was answered, and the names under which it can be asked for again.

Nothing here sends anything; the verbs of a handle are added by each kind of client.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class Ticket(NamedTuple):
    """What a client keeps of a job that it enqueued or named."""

    id: str
    key: str | None
    due: datetime
    durability: str = ""


class Handle:
    """A job that a client enqueued or named: `id`, `key`, and `due` as last heard."""

    def __init__(self, ticket: Ticket) -> None:
        self.id = ticket.id
        self.key = ticket.key
        self.due = ticket.due
        """When it is due, as an aware datetime in UTC."""
        self.durability = ticket.durability
        """What the answer promised: `fsync` (on stable storage) or `memory`."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} key={self.key!r} due={self.due.isoformat()}>"
