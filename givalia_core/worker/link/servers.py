"""Which server the link goes to next, and how long it rests before that.

Of several servers, which share one store, the worker is connected to one at a time. The credits are one number, the room that
is left in this worker, and two servers could not both lend by it without asking each other; and a lease is the worker's, not
the connection's, so it follows the worker to the next server, which hears of it by RESUME. When a server is lost, silent or
stopping, the link tries the next at once, and pauses only when all have failed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from givalia_core.protocol.addresses import Address, Round

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
STEADY_S: Final = 1.0  # A link that lasts so long counts as one that worked.


class Servers:
    """The servers that a worker knows, in the order of their turns."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._round = Round(addresses)
        self._client_ports: dict[Address, int] = {}  # Where the servers that this worker has joined take clients.
        self._rounds = 0  # In which every server has failed, one after the other.
        self.present = self._round.address
        """The server whose turn it is."""
        self.has_others = self._round.has_others

    def join(self, client_port: int) -> None:
        """Note where the present server takes clients."""
        self._client_ports[self.present] = client_port

    def failed(self, up_s: float, *, has_mismatch: bool) -> tuple[bool, float]:
        """Give the turn to the next server; return whether all have failed, and how many seconds to rest before it.

        Args:
            up_s: How long the link to the present one was up.
            has_mismatch: The present one is of a version that does not fit.
        """
        # A link that is lost as soon as it is up, again and again, is no better than one that does not come up.
        if up_s >= STEADY_S:
            self._rounds = 0
            self._round.worked()
        have_all_failed = self._round.failed()
        self.present = self._round.address
        if not have_all_failed:
            return False, 0.0
        rounds, self._rounds = self._rounds, self._rounds + 1
        if has_mismatch:  # It is the same at the next try, unless somebody upgrades it: it is not asked often.
            return True, random.uniform(BACKOFF_MAX_S / 2, BACKOFF_MAX_S)
        return True, random.uniform(BACKOFF_FIRST_S, min(BACKOFF_FIRST_S * 2 ** min(rounds, 10), BACKOFF_MAX_S))

    def clients(self) -> tuple[Address, ...]:
        """Return where the servers take clients, the present one first.

        A server that was not joined yet is taken to have the client port of the present one if their worker ports are the same.
        """
        present, ports = self.present, self._client_ports
        alike = {address: ports[present] for address in self._round if address.port == present.port}
        known = {**alike, **ports}
        return tuple(Address(address.host, known[address]) for address in self._round if address in known)
