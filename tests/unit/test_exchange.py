"""The exchange: who reads for everybody, and what happens when that one leaves."""

from __future__ import annotations

from typing import Any

from givalia_core.client.exchange import Exchange


class Wire:
    """Somebody else reads, and leaves while this one waits for room to send."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def wait(self, seconds: float | None, *, to_send: bool = False) -> bool:
        self._exchange._is_reading = False
        return False


def test_a_reader_that_leaves_while_another_waits_for_room_has_left() -> None:
    exchange = Exchange(("127.0.0.1", 1), 1.0)
    exchange._is_reading = True
    wire: Any = Wire(exchange)

    exchange._make_room(wire)

    assert not exchange._is_reading
