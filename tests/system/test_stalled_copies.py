"""A delayed copy of a command never takes effect after its client was answered elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from system_proxy import Proxy
from system_rig import Rig
from system_wire import WAIT_S, Framed, answers
from waits import await_true

from givalia_core import Client, DuplicateKey, NotFound, WrongState
from givalia_core.client.server_clock import ServerClock
from givalia_core.protocol import addresses, frames
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind

CLOCKS_S = 0.05  # A due is shown on the wall clock, counted from two clocks that are read one after the other.
RESEND_S = 3.0  # So a client that knows two servers leaves a silent one after half of it.
FORGETFUL = """
from givalia_core.engine import desk, remembered
remembered.Remembered.add = lambda self, answers, mono_us: None
desk.still_remembered = lambda answered, since_us: answered[-3:]
"""


class StallingProxy(Proxy):
    """Once told to, it keeps what clients send until it is let go."""

    def __init__(self, port: int) -> None:
        self._flows = threading.Event()
        self._flows.set()
        self.held: list[bytes] = []
        self.answers: list[Any] = []  # Of the server, since it was let go: the first item's fields.
        super().__init__(port)

    def stall(self) -> None:
        """Keep what clients send from now on."""
        self._flows.clear()

    def let_go(self) -> None:
        """Send what was kept, to a server whose client has gone."""
        self.answers.clear()
        self._flows.set()

    def ask(self, near: socket.socket, far: socket.socket, asked: dict[int, Any]) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65_536):
                if not self._flows.is_set():
                    self.held.append(data)
                self._flows.wait(2 * WAIT_S)
                far.sendall(data)

    def answer(self, far: socket.socket, near: socket.socket, asked: dict[int, Any]) -> None:
        reader = frames.FrameReader(frames.ANSWER_BYTES_MAX)
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                for frame in reader.feed(data):
                    assert isinstance(frame, frames.Frame)
                    if frame.items:  # That of a ping has none.
                        self.answers.append(frames.unpack_fields(frame.items[0][0]))
                with contextlib.suppress(OSError):
                    near.sendall(data)

    def close(self) -> None:
        self._flows.set()
        super().close()


class Sides(NamedTuple):
    """Two switches: the server remembers its answers, and the client says how long it waits; one of them is enough."""

    remembers: bool
    tells: bool


SIDES = {"both": Sides(True, True), "old client": Sides(True, False), "forgetful server": Sides(False, True)}


@pytest.fixture(params=SIDES)
def sides(request: pytest.FixtureRequest) -> Sides:
    return SIDES[request.param]


@pytest.fixture
def house(sides: Sides, rig: Rig) -> Rig:
    """A server; or one that forgets every answer, so that only the age of a command can tell."""
    if sides.remembers:
        rig.start_server()
    else:
        rig.start_patched_server(FORGETFUL)
    return rig


@pytest.fixture
def proxy(house: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[StallingProxy]:
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    assert house.server is not None
    proxy = StallingProxy(house.server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def wavering(
    sides: Sides, any_client: Any, house: Rig, proxy: StallingProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """A client that goes to the proxy first, and past it when that is silent."""
    if not sides.tells:
        monkeypatch.setattr(ServerClock, "limit", lambda self, now, patience_s: b"")
    assert house.server is not None
    known = [f"127.0.0.1:{proxy.port}", f"127.0.0.1:{house.server.port}"]
    with any_client(known, resend=RESEND_S) as client:
        yield client


def dues(client: Client) -> dict[str, Any]:
    """The keys that wait, and when they are due."""
    return {str(status.key): status.due.timestamp() for status in client.list("waiting")}


def refused(error: type[Exception], call: Callable[[], object]) -> None:
    with pytest.raises(error):
        call()


COMMANDS: dict[str, tuple[Callable[[Client], object], Callable[[Client], object], Callable[[Client], object]]] = {
    "cancel": (
        lambda direct: None,
        lambda client: refused(NotFound, lambda: client.cancel("k")),
        lambda direct: direct.enq("Waits", time=600, key="k"),
    ),
    "enq": (
        lambda direct: direct.enq("Waits", time=600, key="k"),
        lambda client: refused(DuplicateKey, lambda: client.enq("Waits", time=600, key="k")),
        lambda direct: direct.cancel("k"),
    ),
    "ext": (
        lambda direct: direct.enq("Waits", time=600, key="k"),
        lambda client: client.ext("k", 100),
        lambda direct: [direct.ext("k", 1) for _ in range(6)],
    ),
    "requeue": (
        lambda direct: direct.enq("Waits", time=600, key="k"),
        lambda client: refused(WrongState, lambda: client.requeue("k", time=600)),
        lambda direct: direct.cancel("k"),
    ),
    "many": (
        lambda direct: direct.enq_many([{"module": "Waits", "time": 600, "key": f"k{n}"} for n in range(20)]),
        lambda client: client.cancel_many([f"k{n}" for n in range(40)]),
        lambda direct: direct.enq_many([{"module": "Waits", "time": 600, "key": f"k{n}"} for n in range(40)]),
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_waits_in_a_stalled_link_is_not_done_when_its_client_was_answered_past_it(
    house: Rig, proxy: StallingProxy, wavering: Client, name: str
) -> None:
    # given a client whose link stalls, so that it goes past it and is answered there
    before, command, after = COMMANDS[name]
    direct = house.client()
    before(direct)
    wavering.info()
    proxy.stall()
    command(wavering)
    assert proxy.held

    # when others change what the command met, and the link lets go of it
    after(direct)
    waiting = dues(direct)
    proxy.let_go()
    await_true(lambda: any(not _tells_clock(fields) for fields in proxy.answers), "its answer")

    # then
    assert dues(direct) == pytest.approx(waiting, abs=CLOCKS_S)


def _tells_clock(fields: list[Any]) -> bool:
    return len(fields) == 2 and type(fields[1]) is int


@pytest.mark.parametrize("seconds", [10])
def test_what_two_connections_sent_to_a_stopped_server_is_decided_once(rig: Rig, seconds: float) -> None:
    # given a server that is stopped, and an old client's commands in the sockets of two connections
    server = rig.start_server()
    pairs = [(Framed(server.port), Framed(server.port)) for _ in range(10)]
    requests = [os.urandom(16) for _ in pairs]
    exts = [os.urandom(16) for _ in pairs]
    server.send(signal.SIGSTOP)
    stopped = threading.Event()
    for number, ((one, two), request, ext) in enumerate(zip(pairs, requests, exts, strict=True)):
        key = f"k{number}"
        for conn in (one, two):
            conn.begin(Kind.CANCEL, m.Cancel(request, key))
        two.begin(Kind.ENQ, m.Enq(os.urandom(16), "Waits", 600_000_000, key))
        for conn in (two, one):
            conn.begin(Kind.EXT, *(m.Ext(os.urandom(16), key, delta_us=1) for _ in range(6)), m.Ext(ext, key, delta_us=10**8))

    # when it goes on
    stopped.wait(seconds)
    server.send(signal.SIGCONT)

    # then each pair of copies has one answer, and what the first one said holds
    for one, two in pairs:
        one.socket.settimeout(WAIT_S)
        first = [answers(one.read()) for _ in range(2)]
        second = [answers(two.read()) for _ in range(3)]
        assert [str(each) for each in first[0]] == [str(each) for each in second[0]]
        assert isinstance(first[0][0], NotFound)
        assert str(first[1][-1]) == str(second[2][-1])
    assert len(dues(rig.client())) == len(pairs)
    for one, two in pairs:
        one.socket.close()
        two.socket.close()


def test_a_command_that_came_too_late_is_sent_again_by_itself(
    any_client: Any, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client whose machine was suspended: it takes the server's clock for slower than it is
    server = rig.start_server()
    right = ServerClock.limit
    limits: list[bytes] = []

    def limit(self: ServerClock, now: float, patience_s: float) -> bytes:
        limits.append(right(self, now - 3_600 * (not limits), patience_s))
        return limits[-1]

    monkeypatch.setattr(ServerClock, "limit", limit)

    # when
    with any_client("127.0.0.1", server.port) as client:
        job = client.enq("Waits", time=600, key="k")

        # then
        assert len(limits) == 2
        assert client.stat("k").id == job.id
