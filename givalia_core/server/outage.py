"""A shared store that does not answer: since when, when to try again, and who is told to come later.

Nothing here knows why it is silent. A turn that failed says that it is away; one that does not come to its end says the same,
only later.
"""

from __future__ import annotations

import logging
from typing import Final

from givalia_core.clock import SECOND_US
from givalia_core.errors import Busy, StoreAway
from givalia_core.protocol.messages import CLIENT_KINDS, Kind

PATIENCE_US: Final = SECOND_US  # A store that is away for less is only slow.
STUCK_US: Final = 2 * SECOND_US  # A turn that has lasted for so long waits for something that may take much longer.
RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 0.5

# What clients are told to ask later. A `wait` stays: it is answered when the store is back. Workers hear nothing, for nobody
# knows what is still theirs, and try another server in time.
PUT_OFF: Final = CLIENT_KINDS - {Kind.WAIT}
BUSY: Final = Busy("the store does not answer for now; nothing changed", retry_after=1.0)

log = logging.getLogger("givalia.server")


class Outage:
    """Since when the store has not answered, if it does not."""

    def __init__(self) -> None:
        self.away_since_us: int | None = None
        """Since when the store has not answered, on the monotonic clock; None while it answers."""
        self.turn_since_us: int | None = None
        """The time at which the present turn began to ask the store; None between turns."""
        self._retry_s = RETRY_FIRST_S

    def end(self) -> None:
        """The store answers again."""
        log.warning("the store is back")
        self.away_since_us = None

    def fail_turn(self, error: StoreAway, now_us: int) -> float:
        """It does not answer; in how many seconds to ask again."""
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
