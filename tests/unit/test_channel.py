"""A socket on the hub of gevent: sent bytes arrive whole, and the end of the peer is noticed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest

from givalia_core.worker.channel import Channel

LARGE = bytes(range(256)) * 20_000  # More than the system keeps for a connection on its way.


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a connection."""
    ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    yield ours, theirs
    for channel in (ours, theirs):
        channel.close()


def test_all_of_a_large_message_arrives_while_another_greenlet_reads(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    arrived = bytearray()

    def read() -> None:
        while len(arrived) < len(LARGE):
            arrived.extend(theirs.receive())

    reading = gevent.spawn(read)
    ours.sendall(LARGE)
    reading.join(10)

    assert bytes(arrived) == LARGE


def test_a_peer_that_sends_no_more_reads_as_the_end_and_can_still_be_told(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.finish()

    assert not theirs.receive()
    theirs.sendall(b"last")
    assert bytes(ours.receive()) == b"last"


def test_a_peer_that_is_gone_is_an_error(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.socket.close()

    with pytest.raises(OSError, match="Broken pipe"):
        ours.sendall(b"x")


def test_a_channel_that_is_closed_has_no_descriptor() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours.detach())

    channel.close()

    assert channel.fileno() == -1
    assert theirs.recv(1) == b""
    theirs.close()
