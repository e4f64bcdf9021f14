"""The system's facts about a connection: bytes in flight, and the time of the peer's last acknowledgement."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Iterator

import pytest
from waits import await_true

from givalia_core import tcp

PATIENCE_S = 10.0
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        near.setblocking(False)
        yield near, far


def test_when_everything_is_acknowledged_there_is_nothing_to_say(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.send(b"x")
    assert far.recv(1) == b"x"

    await_true(lambda: tcp.acknowledged_s(near) == math.inf, "the acknowledgement", PATIENCE_S)


def test_a_peer_without_room_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    with pytest.raises(BlockingIOError):
        fill(near)

    assert tcp.acknowledged_s(near) < PATIENCE_S


def fill(sock: socket.socket) -> None:
    """Send until the system takes no more."""
    while True:
        sock.send(bytes(1 << 20))


def test_of_a_closed_socket_nothing_is_known(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    near.close()

    assert tcp.acknowledged_s(near) == math.inf
