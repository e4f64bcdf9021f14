"""Decides whether the path to the peer of one connection is alive, without a socket or a clock.

A path can die silently: an address changes, or a firewall begins to drop packets. Then nothing arrives, the peer's TCP
acknowledges nothing, and a ping stays unanswered. A path on which bytes still move is never called dead, however slow it is. A
process that was suspended draws no conclusion from its own absence.

The owner of the connection reports movement, asks how long it may sleep, and then asks what is due. All times are seconds on
one monotonic clock, which the owner reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

PING_COMMAND_S: Final = 1.0  # The quiet before a ping while a command is unanswered,
PING_WAIT_S: Final = 5.0  # and while the peer owes no answer at once.
DEAD_S: Final = 5.0  # The time without movement or pong after which a path is dead.
LEAVING_S: Final = 1.0  # The time between looks while bytes leave slowly: the peer's time to answer starts when they have left.
LATE_S: Final = 1.0  # A look that is so late shows that this process was suspended.


class Owed(NamedTuple):
    """The peer owes an answer since `since`, and is pinged after `ping_after_s` of quiet."""

    since: float
    ping_after_s: float


class Due(Enum):
    """The next act of the connection's owner."""

    NOTHING = "nothing"
    PING = "ping"  # Send a frame that every peer answers at once; it counts as sent.
    DROP = "drop"  # The path is dead.


class Pulse:
    """The pulse of one connection; make a new one for each."""

    def __init__(self, now: float = -math.inf) -> None:
        self.moved_at = now
        """The time at which something last arrived, or the peer's TCP last acknowledged something."""
        self._pinged_at: float | None = None  # The time of the ping without an answer.
        self.look_at = math.inf
        """The time of the owner's next look."""
        self._not_before = -math.inf  # The next look, after a ping that could not be sent.
        self.is_leaving = False
        """True if sent data was unacknowledged at the last look."""

    def moved(self, at: float) -> None:
        """Note that something arrived, or that the peer's TCP acknowledged something."""
        if at > self.moved_at:
            self.moved_at = at

    def answered(self) -> None:
        """Note that the ping was answered; `moved` says when."""
        self._pinged_at = None

    def look_again_s(self, now: float, owed: Owed | None) -> float | None:
        """Return the seconds to the next call of `due`, if nothing moves before; None: nothing is owed."""
        if owed is None:
            self.look_at = math.inf
            return None
        if now > self.look_at + LATE_S:
            self._return(now)
        # Called once for each command, so without `max`.
        look_at = self._due_at(owed)
        look_at = look_at if look_at > self._not_before else self._not_before
        if self.is_leaving and look_at > now + LEAVING_S:
            look_at = now + LEAVING_S
        self.look_at = look_at = look_at if look_at > now else now
        return look_at - now

    def due(self, now: float, owed: Owed | None, acknowledged_s: Callable[[], float], *, can_ping: bool = True) -> Due:
        """Return what is due now; the owner sends the ping, or drops the connection.

        Args:
            now: The present.
            owed: What the peer owes; None for nothing.
            acknowledged_s: Returns the seconds since the last acknowledgement of the peer's TCP, if some bytes are
                unacknowledged; else infinity. Called only when an act would be due, or bytes leave slowly.
            can_ping: Whether a ping can be sent now. If not, the bytes that wait serve as one.
        """
        if owed is None:
            return Due.NOTHING
        if now > self.look_at + LATE_S:
            self._return(now)
        if now < self._due_at(owed) and not self.is_leaving:
            return Due.NOTHING
        age_s = acknowledged_s()
        self.is_leaving = age_s < math.inf
        self.moved(now - age_s)
        if now < self._due_at(owed):
            return Due.NOTHING
        if self._pinged_at is not None or (not can_ping and now >= self._quiet_since(owed) + DEAD_S):
            return Due.DROP
        if not can_ping:
            self._not_before = min(now + owed.ping_after_s, self._quiet_since(owed) + DEAD_S)
            return Due.NOTHING
        self._pinged_at = now
        return Due.PING

    def _quiet_since(self, owed: Owed) -> float:
        return max(self.moved_at, owed.since)

    def _due_at(self, owed: Owed) -> float:
        """Return the time at which a ping is due, or the path is dead without an answer to one."""
        since, ping_after_s = owed
        if since < self.moved_at:
            since = self.moved_at
        return since + ping_after_s if self._pinged_at is None else max(since, self._pinged_at) + DEAD_S

    def _return(self, now: float) -> None:
        """Count from now, since this process was suspended: bytes that arrived meanwhile are not read yet."""
        self.moved(now)
        if self._pinged_at is not None:
            self._pinged_at = now
        self.look_at = now
