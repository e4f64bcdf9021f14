"""The link's connection: slow is not dead, and dead is found. The seconds of the pulse are tenths here."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from givalia_core.errors import ConnectionLost
from givalia_core.protocol import frames, pulse
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import HELLO_NUMBER
from givalia_core.protocol.messages import Join, Kind
from givalia_core.worker.link import line as line_room
from givalia_core.worker.link.lease_core import LeaseCore
from givalia_core.worker.link.line import ServerLine

PATIENCE_S = 10.0
TENTH = 0.1
LARGE = bytes(16 << 20)  # More than the system keeps for a connection on its way.


@pytest.fixture(autouse=True)
def _tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "DEAD_S", pulse.DEAD_S * TENTH)
    monkeypatch.setattr(line_room, "PING_COMMAND_S", line_room.PING_COMMAND_S * TENTH)
    monkeypatch.setattr(line_room, "PING_WAIT_S", line_room.PING_WAIT_S * TENTH)


@contextlib.contextmanager
def connected(serve: Callable[[socket.socket], object], asked_since: float | None) -> Iterator[ServerLine]:
    """A line to a peer that does so with its connection."""

    def accept() -> None:
        accepted, _ = listener.accept()
        with accepted, contextlib.suppress(OSError):
            serve(accepted)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        core = LeaseCore(Join("worker", b"i" * 16), [])
        if asked_since is not None:
            core.asked[1] = Kind.BEAT, [], round(asked_since * 1e6)
        line = ServerLine(Address(*listener.getsockname()), core)
        try:
            yield line
        finally:
            line.close()
            thread.join(PATIENCE_S)


def look_for_ever(line: ServerLine) -> None:
    """Look whenever that is due."""
    pause = threading.Event()
    while True:
        line.look()
        pause.wait(max(line.look_s - time.monotonic(), 0.0))


def test_what_leaves_slowly_leaves_to_the_end() -> None:
    taken: list[int] = []
    pause = threading.Event()

    def read_slowly(sock: socket.socket) -> None:
        while data := sock.recv(256 << 10):
            taken.append(len(data))
            pause.wait(0.03)

    began = time.monotonic()
    with connected(read_slowly, began) as line:
        line.send(LARGE)

    assert time.monotonic() - began > 2 * pulse.DEAD_S
    assert sum(taken) == len(LARGE)


def test_what_does_not_leave_at_all_is_given_up() -> None:
    is_over = threading.Event()

    with connected(lambda _: is_over.wait(6 * PATIENCE_S), time.monotonic()) as line:
        with pytest.raises(ConnectionLost, match="not even an acknowledgement"):
            line.send(LARGE)
        is_over.set()


@pytest.mark.parametrize(("is_asked", "within_s"), [(True, 0.6), (False, 1.0)])
def test_a_peer_that_does_not_answer_a_ping_is_given_up(is_asked: bool, within_s: float) -> None:
    heard: list[Any] = []

    def hear(sock: socket.socket) -> None:
        while data := sock.recv(1_000):
            heard.append(data)

    began = time.monotonic()
    with connected(hear, began if is_asked else None) as line:
        with pytest.raises(ConnectionLost):
            look_for_ever(line)
        assert time.monotonic() - began > within_s - 0.05

    assert heard == [frames.encode(Kind.STAT, HELLO_NUMBER + 1, [])], "one ping: a STAT without items"
