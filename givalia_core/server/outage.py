"""A shared store that does not answer: since when, when to try again, and which clients are told to come later.

The cause of the silence is unknown here. A turn that failed shows that the store is away; a turn that does not end shows the
same, only later.
"""

from __future__ import annotations

import logging
from typing import Final

from givalia_core.clock import SECOND_US
from givalia_core.errors import Busy, StoreAway
from givalia_core.protocol.messages import CLIENT_KINDS, Kind

PATIENCE_US: Final = SECOND_US  # A store that is away for less is only slow.
STUCK_US: Final = 2 * SECOND_US  # A turn that lasts this long waits for something that may take much longer.
RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.5

# The commands that clients are told to send later. A `wait` stays: it is answered when the store is back. Workers are told
# nothing, since nobody knows which leases they still have; they try another server in time.
PUT_OFF: Final = CLIENT_KINDS - {Kind.WAIT}
BUSY: Final = Busy("the store does not answer for now; nothing changed", retry_after=1.0)

log = logging.getLogger("givalia.server")


class Outage:
    """The present outage of the store, if there is one."""

    def __init__(self) -> None:
        self.away_since_us: int | None = None
        """The start of the outage, on the monotonic clock; None while the store answers."""
        self.turn_since_us: int | None = None
        """The time at which the present turn began to ask the store; None between turns."""
        self._retry_s = RETRY_FIRST_S

    def end(self) -> None:
        """Note that the store answers again."""
        log.warning("the store is back")
        self.away_since_us = None

    def fail_turn(self, error: StoreAway, now_us: int) -> float:
        """Note that the store did not answer a turn; return the seconds until the next try."""
        if self.away_since_us is None:
            log.warning("%s; trying again for as long as it takes", error)
            self.away_since_us, self._retry_s = self.turn_since_us or now_us, RETRY_FIRST_S
        self.turn_since_us = None
        retry_s, self._retry_s = self._retry_s, min(self._retry_s * 2, RETRY_MAX_S)
        return retry_s

    def lasts(self, now_us: int) -> bool:
        """Return whether the store has been away for longer than clients are left waiting."""
        return self.away_since_us is not None and now_us - self.away_since_us >= PATIENCE_US

    def is_stuck(self, now_us: int) -> bool:
        """Return whether the present turn has waited for the store for too long."""
        return self.turn_since_us is not None and now_us - self.turn_since_us >= STUCK_US
