"""Chooses the next server for the link, and the rest before it.

Several servers share one store; the worker is connected to one at a time. The credits are one number, the room that is left in
this worker: to use it together, two servers would have to ask each other. A lease belongs to the worker and not to the
connection, so it follows the worker to the next server, which hears of it by RESUME. When a server is lost, silent or stopping,
the link tries the next one at once, and rests only when all have failed.
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
    """The servers that a worker knows, in turns."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._round = Round(addresses)
        self._client_ports: dict[Address, int] = {}  # The client ports of the servers that this worker has joined.
        self._rounds = 0  # Rounds in a row in which every server has failed.
        self.present = self._round.address
        """The server whose turn it is."""
        self.has_others = self._round.has_others

    def join(self, client_port: int) -> None:
        """Note the client port of the present server."""
        self._client_ports[self.present] = client_port

    def failed(self, up_s: float, *, has_mismatch: bool) -> tuple[bool, float]:
        """Give the turn to the next server; return whether all have failed, and the seconds to rest before the next try.

        Args:
            up_s: The time that the link to the present server was up.
            has_mismatch: The version of the present server does not fit.
        """
        # A link that is lost as soon as it is up, again and again, counts as one that does not come up.
        if up_s >= STEADY_S:
            self._rounds = 0
            self._round.worked()
        have_all_failed = self._round.failed()
        self.present = self._round.address
        if not have_all_failed:
            return False, 0.0
        rounds, self._rounds = self._rounds, self._rounds + 1
        if has_mismatch:  # The version is the same at the next try, unless the server is upgraded: try seldom.
            return True, random.uniform(BACKOFF_MAX_S / 2, BACKOFF_MAX_S)
        return True, random.uniform(BACKOFF_FIRST_S, min(BACKOFF_FIRST_S * 2 ** min(rounds, 10), BACKOFF_MAX_S))

    def clients(self) -> tuple[Address, ...]:
        """Return the addresses for clients, that of the present server first.

        A server that was not joined yet is assumed to have the client port of the present one if their worker ports are equal.
        """
        present, ports = self.present, self._client_ports
        alike = {address: ports[present] for address in self._round if address.port == present.port}
        known = {**alike, **ports}
        return tuple(Address(address.host, known[address]) for address in self._round if address in known)
