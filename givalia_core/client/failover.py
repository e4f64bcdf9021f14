"""The servers of one client when they fail: which is tried next, how long it is tried, and how long a rest lasts.

When a server cannot be reached, is lost, is silent or stops, the next is tried at once; a rest comes only when all have
failed. Nothing here touches a socket or a clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.client.pending import Pending
from givalia_core.protocol.addresses import Address, Round

CONNECT_LEAST_S: Final = 0.01
CONNECT_MOST_S: Final = 5.0
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
LAST_S: Final = 0.5  # With less time left, a refused command is not sent again, since its answer might come too late.
SILENT_S: Final = 10.0  # After this silence with commands unanswered, another server is asked, if there is one.

Find: TypeAlias = Callable[[], Sequence[Address]]


class Connect(NamedTuple):
    """Connect to this server and greet it, each within so many seconds; then call `connected` or `not_connected`."""

    address: Address
    patience_s: float


class Rest(NamedTuple):
    """Do nothing for so many seconds: every server has failed."""

    seconds: float


class Failover:
    """The servers of one client, and whether they fail."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self.servers = Round(addresses)
        self.has_failed = False
        """True if a server has failed since one last served a request."""
        self.must_rest = False
        """True once every server has failed."""
        self.why = ""
        """The reason for the last failure."""
        self._resend_s = resend_s
        self._find = find  # Where the servers are by now, if they may have moved.
        self._retry_s = RETRY_FIRST_S
        self._measure()

    def _measure(self) -> None:
        self.has_others = self.servers.has_others
        """True if there is another server to try."""
        self.silent_s = min(SILENT_S, self._resend_s / len(self.servers)) if self.has_others else self._resend_s
        """The seconds without an answer to a command after which another server is asked, if there is one."""

    def begin(self) -> None:
        """Note that requests begin after none was under way: rests are short again."""
        self._retry_s = RETRY_FIRST_S

    def worked(self) -> None:
        """Note that the present server works: earlier failures do not count any more."""
        self.servers.worked()
        self._retry_s = RETRY_FIRST_S
        self.has_failed = False

    def connect(self, requests: Iterable[Pending[Any]], now_s: float) -> Connect:
        """Return the server to try, and its share of the time; at most the longest time that a request has left."""
        if not self.why:
            self.why = f"{self.servers.address} has not answered yet"
        lefts = [min(each.unsent_since_s + self._resend_s, each.deadline_s or math.inf) - now_s for each in list(requests)]
        patience_s = min(self._resend_s / len(self.servers), CONNECT_MOST_S, max(lefts, default=CONNECT_MOST_S))
        return Connect(self.servers.address, max(patience_s, CONNECT_LEAST_S))

    def rest(self, requests: Iterable[Pending[Any]], now_s: float) -> float:
        """End the requests whose time is over; return the seconds until the next try. For when every server has failed."""
        self.must_rest = False
        if self._find is not None:
            self.servers.replace(self._find())
            self._measure()
        retry_s, self._retry_s = self._retry_s, min(self._retry_s * 2, RETRY_MAX_S)
        pause_s = random.uniform(retry_s / 2, retry_s)
        for each in list(requests):
            left_s = each.left_s(now_s)
            if left_s is not None and each.is_refused:
                left_s = max(left_s - LAST_S, 0.0)
            if now_s + retry_s - each.unsent_since_s > self._resend_s:
                each.give_up(f"no server at {self.servers} ({self.why})")
            elif left_s == 0:
                each.run_out(self.why)
            elif left_s is not None:
                pause_s = min(pause_s, left_s)
        return pause_s

    def not_connected(self, why: str) -> None:
        """Note that a server could not be reached, or refuses this client."""
        self.why, self.has_failed = why, True
        self.must_rest = self.servers.failed()

    def lost(self, why: str, *, has_answered: bool) -> None:
        """Note that the connection to the present server is lost, which is no failure if it has brought an answer."""
        self.why, self.has_failed = why, True
        if has_answered:
            self.servers.move_on()
        else:
            self.must_rest = self.servers.failed()

    def refused(self, refusals: int) -> None:
        """Note that servers that stop have refused a request this many times."""
        self.has_failed = True
        self.must_rest = self.must_rest or refusals % len(self.servers) == 0
