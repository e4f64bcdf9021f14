"""The blocking client in a thread that signals interrupt: a handler's error reaches the caller; handlers may use the client."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scripted_server import PATIENCE_S, Line, ScriptedServer, closed_address, every, serve
from waits import await_true

from givalia_core import Client, ConnectionLost
from givalia_core.client import commands, interrupted
from givalia_core.client import transport as transport_room
from givalia_core.client.blocking_socket import BlockingSocket
from givalia_core.client.commands import INFO
from givalia_core.client.connection import ClientConnection
from givalia_core.client.delivery import RequestDelivery
from givalia_core.client.pending import Pending
from givalia_core.client.transport import BlockingTransport
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import OK, Kind
from givalia_core.views import wire_id

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
THROWN = [
    TimeoutError("mine"),
    ConnectionResetError("mine"),
    ValueError("mine"),
    ConnectionLost("mine"),
    KeyboardInterrupt("mine"),
]

INTERRUPTIONS = 100

Scripted = Callable[..., ScriptedServer]
OnSignal = Callable[[Callable[[], object]], None]


@pytest.fixture
def on_signal() -> Iterator[OnSignal]:
    """Set what this thread does when it is interrupted."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda act: (signal.signal(signal.SIGUSR1, lambda *_: act()), None)[1]
    signal.signal(signal.SIGUSR1, before)


def interrupt(line: Line, ask: Asked) -> None:
    """Answer nothing, and interrupt the thread that runs the test."""
    interrupt_test()


def interrupt_test() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def throwing(error: BaseException) -> Callable[[], object]:
    def throw() -> None:
        raise error

    return throw


@pytest.mark.parametrize("error", THROWN, ids=lambda error: type(error).__name__)
def test_what_a_signal_handler_throws_reaches_who_waits(scripted: Scripted, on_signal: OnSignal, error: BaseException) -> None:
    on_signal(throwing(error))

    with Client(scripted(every(Kind.WAIT, interrupt)).address) as client:
        with pytest.raises(type(error)) as caught:
            client.wait(JOB, PATIENCE_S)

        assert caught.value is error
        assert client.enq("Sample", id=JOB).id == JOB


@pytest.mark.parametrize("error", THROWN, ids=lambda error: type(error).__name__)
def test_what_a_signal_handler_throws_reaches_who_connects(on_signal: OnSignal, error: BaseException) -> None:
    on_signal(throwing(error))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take_and_interrupt() -> None:
            with listener.accept()[0] as taken:
                taken.recv(65_536)
                interrupt_test()
                taken.recv(65_536)

        server = threading.Thread(target=take_and_interrupt, daemon=True)
        server.start()
        with Client(*listener.getsockname()) as client, pytest.raises(type(error)) as caught:
            client.info()
        server.join(PATIENCE_S)

    assert caught.value is error


def test_what_a_signal_handler_throws_reaches_who_rests(on_signal: OnSignal) -> None:
    error = TimeoutError("mine")
    on_signal(throwing(error))
    with Client(closed_address(), resend=PATIENCE_S) as client:
        timer = threading.Timer(0.3, interrupt_test)
        timer.start()

        with pytest.raises(TimeoutError) as caught:
            client.info()

    assert caught.value is error
    timer.join()


def test_a_signal_handler_may_use_the_client_that_it_interrupts(scripted: Scripted, on_signal: OnSignal) -> None:
    waiting: list[tuple[Line, Asked]] = []
    made: list[str] = []

    def wait(line: Line, ask: Asked) -> None:
        waiting.append((line, ask))
        interrupt_test()

    def enq(line: Line, ask: Asked) -> None:
        serve(line, ask)
        ((waiter, waits),) = waiting
        waiter.say(waits, [((OK, "done", None), b"\x07")])

    server = scripted(every(Kind.WAIT, wait, then=every(Kind.ENQ, enq)))
    with Client(server.address, resend=PATIENCE_S) as client:
        on_signal(lambda: made.append(client.enq("Sample", id=JOB).id))

        assert client.wait(JOB, PATIENCE_S) == 7

    assert made == [JOB]


def test_a_signal_handler_may_close_the_client_that_it_interrupts(scripted: Scripted, on_signal: OnSignal) -> None:
    with Client(scripted(every(Kind.WAIT, interrupt)).address) as client:
        on_signal(client.close)

        with pytest.raises(ConnectionLost, match="closed"):
            client.wait(JOB, PATIENCE_S)
        with pytest.raises(ConnectionLost, match="closed"):
            client.info()


def test_a_signal_handler_that_interrupts_a_closed_client_has_no_other(scripted: Scripted, on_signal: OnSignal) -> None:
    told: list[object] = []
    server = scripted(every(Kind.WAIT, interrupt))

    with Client(server.address) as client:

        def close_and_ask() -> None:
            client.close()
            try:
                client.enq("Sample")
            except ConnectionLost as error:
                told.append(error.sent)

        on_signal(close_and_ask)
        with pytest.raises(ConnectionLost):
            client.wait(JOB, PATIENCE_S)

    assert told == [False]


def test_a_signal_handler_may_use_the_client_whatever_it_interrupts(scripted: Scripted, on_signal: OnSignal) -> None:
    """Signals come at every moment of calls, each when the one before has been handled."""
    server = scripted()
    is_over, is_handled = threading.Event(), threading.Event()
    made: list[str] = []

    def interrupt_again_and_again() -> None:
        while not is_over.is_set():
            interrupt_test()
            is_handled.wait(PATIENCE_S)
            is_handled.clear()

    with Client(server.address, resend=PATIENCE_S) as client:

        def enq() -> None:
            made.append(client.enq("Sample").id)
            is_handled.set()

        on_signal(enq)
        thread = threading.Thread(target=interrupt_again_and_again, daemon=True)
        thread.start()
        while len(made) < INTERRUPTIONS:
            assert client.wait(JOB, PATIENCE_S) == 7
        is_over.set()
        thread.join(PATIENCE_S)

    assert len(set(made)) == len(made)


class Cut(BaseException):
    """Cuts a call short."""


def test_answers_that_a_thread_has_read_when_it_is_cut_short_are_asked_for_again(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    server = scripted(every(Kind.WAIT, lambda line, ask: waits.set(), then=serve))
    arrived = RequestDelivery.arrived

    def cut_once(self: RequestDelivery, connection: ClientConnection, data: bytes, now_s: float) -> bool:
        if threading.current_thread() is not threading.main_thread() or wire_id(JOB) not in data:
            return arrived(self, connection, data, now_s)
        monkeypatch.undo()
        connection.caller.feed(data)
        raise Cut

    with Client(server.address, resend=PATIENCE_S) as client, ThreadPoolExecutor(1) as pool:
        client.info()
        monkeypatch.setattr(RequestDelivery, "arrived", cut_once)
        asking = pool.submit(lambda: waits.wait(PATIENCE_S) and client.enq("Sample", id=JOB).id)
        with pytest.raises(Cut):
            client.wait(JOB, PATIENCE_S)

        assert asking.result(PATIENCE_S / 2) == JOB


@pytest.mark.parametrize("is_same_thread", [True, False])
def test_nothing_follows_half_a_frame_before_whoever_was_cut_short_has_cleaned_up(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, is_same_thread: bool
) -> None:
    sent: list[BlockingSocket] = []
    send, clean_up = BlockingSocket.send, interrupted.clean_up
    halves: list[BlockingSocket] = []

    def send_half(self: BlockingSocket, data: memoryview) -> int:
        sent.append(self)
        if halves or threading.current_thread() is not threading.main_thread():
            return send(self, data)
        halves.append(self)
        send(self, data[: len(data) // 2])
        raise Cut

    def clean_up_late(transport: BlockingTransport, requests: Iterable[Pending[Any]]) -> None:
        """Another call comes first: of a thread that has waited for its turn to send, or of a signal handler."""
        if halves and not answered:
            answered.append("asked")
            other = threading.Thread(target=lambda: answered.append(client.enq("Sample", id=JOB).id))
            if is_same_thread:
                other.run()
            else:
                other.start()
                other.join(PATIENCE_S)
        clean_up(transport, requests)

    answered: list[str] = []
    with Client(scripted(serve).address) as client:
        client.enq("Sample")  # Connects.
        monkeypatch.setattr(BlockingSocket, "send", send_half)
        monkeypatch.setattr(interrupted, "clean_up", clean_up_late)
        sent.clear()
        with pytest.raises(Cut):
            client.enq("Sample")

    assert answered == ["asked", JOB]
    assert sent.count(halves[0]) == 1
    assert len(sent) > 1


def test_a_call_that_is_cut_short_when_it_has_connected_leaves_no_other_unsent(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, transmit = transport_room.BlockingSocket, BlockingTransport.transmit

    def connect_when_both_wait(*words: Any) -> BlockingSocket:
        await_true(lambda: len(client._transport.delivery.requests) == 2, "both calls have begun")
        return connect(*words)

    def cut(self: BlockingTransport, sock: BlockingSocket, request: Pending[Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            raise Cut
        transmit(self, sock, request)

    monkeypatch.setattr(transport_room, "BlockingSocket", connect_when_both_wait)
    monkeypatch.setattr(BlockingTransport, "transmit", cut)
    with Client(scripted(serve).address, resend=PATIENCE_S) as client, ThreadPoolExecutor(1) as pool:

        def ask() -> str:
            await_true(lambda: client._transport.delivery.requests, "the call that connects has begun")
            return client.enq("Sample", id=JOB).id

        asking = pool.submit(ask)
        with pytest.raises(Cut):
            client.info()

        assert asking.result(PATIENCE_S / 2) == JOB


def test_the_connection_that_carries_half_a_frame_is_dropped_also_by_who_was_about_to_send_on_one_before(
    scripted: Scripted,
) -> None:
    with Client(scripted(serve).address) as client:
        client.enq("Sample")
        transport: Any = client._transport
        before = transport.socket
        assert before is not None
        transport.drop(before, "a test")
        client.enq("Sample")
        transport.sender = -1  # Of a thread that was cut short on the connection of now.

        transport.transmit(before, INFO.ask(commands.info()))

        assert transport.socket is None
        assert transport.sender is None
        assert client.enq("Sample", id=JOB).id == JOB
