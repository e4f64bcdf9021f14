"""Transports: the move of requests from one server to the next with either client, and the one thread that reads for all.

The tests of `connect` hold for `Client` and for `AsyncClient`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from scripted_server import (
    ScriptedServer,
    closed_address,
    every,
    first,
    hang_up,
    refuse,
    say_nothing,
    serve,
)

from givalia_core import Busy, Client, ConnectionLost, DuplicateKey, PartlyRefused, ResultLost, ShuttingDown, WaitTimeout
from givalia_core.client import commands, failover
from givalia_core.client.commands import INFO
from givalia_core.client.delivery import RequestDelivery
from givalia_core.client.transport import BlockingTransport
from givalia_core.errors import BadRequest, StoreFull, VersionMismatch
from givalia_core.protocol import addresses, session
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.codec import item, refusal
from givalia_core.protocol.messages import CLIENT_KINDS, OK, Kind, Progressed
from givalia_core.protocol.session import Port
from givalia_core.views import text_id, wire_id

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
STOPPING = ShuttingDown("the server is draining", retry_after=2.0)


# Several servers. Tests name them in the order in which they are tried.


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ScriptedServer]]:
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    with ExitStack() as opened:

        def start(script: Any = serve, **options: Any) -> ScriptedServer:
            server = ScriptedServer(Port.CLIENT, script, **options)
            opened.callback(server.close)
            return server

        yield start


Scripted = Callable[..., ScriptedServer]
Connect = Callable[..., Any]


@pytest.fixture
def connect(any_client: Any) -> Connect:
    """A client of these servers, of either kind."""

    def client(*servers: ScriptedServer | str, resend: float = 30.0) -> Any:
        return any_client([each if isinstance(each, str) else each.address for each in servers], resend=resend)

    return client


def test_a_server_that_is_not_there_is_passed_over(connect: Connect, scripted: Scripted) -> None:
    with connect(closed_address(), closed_address(), scripted()) as client:
        assert client.enq("Sample", id=JOB).id == JOB


def test_a_server_with_too_many_connections_is_passed_over(connect: Connect, scripted: Scripted) -> None:
    busy, there = scripted(is_busy=True), scripted()

    with connect(busy, there) as client:
        assert client.enq("Sample", id=JOB).id == JOB

    assert busy.asks.empty()


def test_a_command_under_way_goes_to_the_next_server_with_the_same_id(connect: Connect, scripted: Scripted) -> None:
    lost, there = scripted(every(Kind.ENQ, hang_up)), scripted()

    with connect(lost, there) as client:
        job = client.enq("Sample")

    (sent,) = lost.next(Kind.ENQ).messages
    assert [sent] == there.next(Kind.ENQ).messages
    assert text_id(sent.id) == job.id


def test_a_server_of_the_version_before_is_told_no_limit(
    connect: Connect, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session.KINDS, Port.CLIENT, CLIENT_KINDS - {Kind.CLOCK})
    server = scripted()

    with connect(server) as client:
        assert client.enq("Sample", id=JOB).id == JOB

    assert server.next(Kind.ENQ).until_us is None


def test_a_command_that_came_too_late_is_sent_again_with_the_same_id(connect: Connect, scripted: Scripted) -> None:
    late = Busy("late", retry_after=0.01, late=True)
    server = scripted(first(Kind.ENQ, refuse(late)))

    with connect(server) as client:
        job = client.enq("Sample")

    asked = [server.next(Kind.ENQ) for _ in range(2)]
    assert [text_id(ask.messages[0].id) for ask in asked] == [job.id] * 2
    assert None not in (asked[0].until_us, asked[1].until_us)


UNDECIDED = {
    "busy": Busy("busy; nothing changed", retry_after=0.05),
    "full": StoreFull("full; nothing changed"),
    "stopping": ShuttingDown("stopping", retry_after=0.05),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_a_refusal_that_decides_nothing_is_no_answer_while_a_copy_of_the_command_may_be_done(
    connect: Connect, scripted: Scripted, name: str
) -> None:
    lost, refusing = scripted(every(Kind.EXT, hang_up)), scripted(every(Kind.EXT, refuse(UNDECIDED[name])))

    with connect(lost, refusing, resend=2.0) as client, pytest.raises(ConnectionLost, match="unknown"):
        client.ext("k", 5)


def test_a_command_that_a_lost_connection_has_carried_is_asked_again_when_the_next_server_is_busy(
    connect: Connect, scripted: Scripted
) -> None:
    lost, there = scripted(every(Kind.ENQ, hang_up)), scripted(first(Kind.ENQ, refuse(UNDECIDED["busy"])))

    with connect(lost, there) as client:
        job = client.enq("Sample")

    assert [text_id(there.next(Kind.ENQ).messages[0].id) for _ in range(2)] == [job.id] * 2


def test_a_server_that_is_lost_after_it_worked_is_left_at_once(connect: Connect, scripted: Scripted) -> None:
    lost, there = scripted(), scripted()
    with connect(lost, there) as client:
        client.enq("Sample")
        lost.close()

        assert client.enq("Sample", id=JOB).id == JOB

    assert text_id(there.next(Kind.ENQ).messages[0].id) == JOB


def test_who_waits_is_carried_to_the_next_server(connect: Connect, scripted: Scripted) -> None:
    lost, there = scripted(every(Kind.WAIT, hang_up)), scripted()

    with connect(lost, there) as client:
        assert client.wait(JOB) == 7

    assert lost.next(Kind.WAIT).messages == there.next(Kind.WAIT).messages


def test_a_server_that_answers_no_command_is_left_for_another(connect: Connect, scripted: Scripted) -> None:
    silent, there = scripted(every(Kind.ENQ, say_nothing)), scripted()

    with connect(silent, there, resend=2.0) as client:
        assert client.enq("Sample", id=JOB).id == JOB


def test_a_server_that_stops_is_left_and_what_it_refused_is_done_by_the_next(connect: Connect, scripted: Scripted) -> None:
    stopping, there = scripted(every(Kind.ENQ, refuse(STOPPING))), scripted()

    with connect(stopping, there) as client:
        assert client.enq("Sample", id=JOB).id == JOB
        client.enq("Sample")

    assert stopping.asks.qsize() == 1
    assert there.asks.qsize() == 2


def test_the_only_server_says_that_it_stops_to_the_caller(connect: Connect, scripted: Scripted) -> None:
    stopping = scripted(every(Kind.ENQ, refuse(STOPPING)))

    with connect(stopping) as client, pytest.raises(ShuttingDown):
        client.enq("Sample")

    assert stopping.asks.qsize() == 1


@pytest.mark.parametrize("given", [math.nan, "5", True, [5]])
def test_a_time_that_is_no_number_is_refused_before_anything_is_sent(connect: Connect, scripted: Scripted, given: Any) -> None:
    server = scripted()
    with pytest.raises(BadRequest, match="resend is a number of seconds or a timedelta"):
        connect(server, resend=given)

    with connect(server) as client, pytest.raises(BadRequest, match="timeout is a number of seconds or a timedelta"):
        client.wait(JOB, given)

    assert server.asks.empty()


def test_lengths_of_waiting_may_be_timedeltas(connect: Connect, scripted: Scripted) -> None:
    answering, silent = scripted(), scripted(every(Kind.WAIT, say_nothing))

    with connect(answering, resend=timedelta(seconds=30)) as client:
        assert client.wait(JOB, timedelta(minutes=1)) == 7
    with connect(silent) as client, pytest.raises(WaitTimeout):
        client.wait(JOB, timeout=timedelta(milliseconds=50))


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10, timedelta.max])
def test_who_waits_longer_than_any_system_waits_for_ever(scripted: Scripted, connect: Connect, timeout: float) -> None:
    with connect(scripted(every(Kind.WAIT, serve))) as client:
        assert client.wait(JOB, timeout) == 7

    (request,) = commands.wait(wire_id(JOB), timeout, progress=False)
    RequestDelivery([Address("one", 1)], 60.0).begin(request, 0.0)
    assert request.left_s(0.0) is None


def test_when_every_server_stops_the_caller_is_told_so_in_the_end(connect: Connect, scripted: Scripted) -> None:
    servers = [scripted(every(Kind.ENQ, refuse(STOPPING))) for _ in range(2)]

    with connect(*servers, resend=1.5) as client:
        with pytest.raises(ShuttingDown):
            client.enq("Sample")
        with pytest.raises(PartlyRefused) as caught:
            client.enq_many([{"module": "Sample"}] * 3)

    assert [type(answer) for answer in caught.value.answers] == [ShuttingDown] * 3
    assert all(server.asks.qsize() >= 2 for server in servers)


def test_a_frame_of_which_a_part_was_refused_is_sent_whole_to_the_next_server(connect: Connect, scripted: Scripted) -> None:
    def take_the_first(line: Any, ask: Any) -> None:
        taken, *others = ask.messages
        line.say(ask, [((OK, taken.id, 0, "memory"), b""), *[refusal(STOPPING)] * len(others)])

    stopping, there = scripted(every(Kind.ENQ, take_the_first)), scripted()

    with connect(stopping, there) as client:
        jobs = client.enq_many([{"module": "Sample"}] * 3)

    asked = there.next(Kind.ENQ).messages
    assert asked == stopping.next(Kind.ENQ).messages
    assert [job.id for job in jobs] == [text_id(message.id) for message in asked]


def test_a_frame_that_is_refused_as_a_whole_is_sent_to_the_next_server(connect: Connect, scripted: Scripted) -> None:
    def refuse_the_frame(line: Any, ask: Any) -> None:
        line.say(ask, [refusal(STOPPING)])

    with connect(scripted(every(Kind.ENQ, refuse_the_frame)), scripted()) as client:
        assert len(client.enq_many([{"module": "Sample"}] * 3)) == 3


def test_when_a_part_of_many_is_given_up_the_parts_behind_it_are_too(connect: Connect, scripted: Scripted) -> None:
    silent = scripted(every(Kind.ENQ, say_nothing))

    with connect(silent, resend=0.5) as client:
        with pytest.raises(ConnectionLost):  # A busy machine may not even have sent the first part by then.
            client.enq_many([{"module": "Sample"}] * 20_001)

        assert not client._transport.delivery.requests


def test_other_refusals_are_answers_and_no_reason_to_go(connect: Connect, scripted: Scripted) -> None:
    refusing, other = scripted(every(Kind.ENQ, refuse(DuplicateKey("taken", id=JOB)))), scripted()

    with connect(refusing, other) as client, pytest.raises(DuplicateKey):
        client.enq("Sample", key="taken")

    assert other.asks.empty()


def test_a_server_that_is_busy_says_so_to_the_caller(connect: Connect, scripted: Scripted) -> None:
    busy, other = scripted(every(Kind.ENQ, refuse(Busy("later", retry_after=1.0)))), scripted()

    with connect(busy, other) as client, pytest.raises(Busy):
        client.enq("Sample")

    assert other.asks.empty()


@pytest.mark.parametrize("servers", [1, 2])
def test_a_server_too_busy_for_one_more_who_waits_is_asked_again(connect: Connect, scripted: Scripted, servers: int) -> None:
    busy = scripted(first(Kind.WAIT, refuse(Busy("later", retry_after=0.05))))

    with connect(busy, *[scripted() for _ in range(servers - 1)]) as client:
        assert client.wait(JOB, 20) == 7

    assert busy.asks.qsize() == 2


def test_who_waits_for_a_server_that_stays_busy_waits_as_long_as_it_said(connect: Connect, scripted: Scripted) -> None:
    busy = scripted(every(Kind.WAIT, refuse(Busy("later", retry_after=60.0))))
    started = time.monotonic()

    with connect(busy) as client, pytest.raises(WaitTimeout):
        client.wait(JOB, 0.3)

    assert time.monotonic() - started < 10
    assert busy.asks.qsize() == 1


def test_a_busy_answer_that_comes_too_late_is_not_kept(connect: Connect, scripted: Scripted) -> None:
    late: list[Any] = []
    server = scripted(every(Kind.WAIT, lambda line, ask: late.append((line, ask))))

    with connect(server) as client:
        with pytest.raises(WaitTimeout):
            client.wait(JOB, 0.1)
        line, ask = late[0]
        line.refuse(ask, Busy("later", retry_after=0.05))
        client.enq("Sample")

        assert not client._transport.delivery.put_off


def test_a_call_that_was_put_off_holds_up_no_other(connect: Connect, scripted: Scripted) -> None:
    busy = scripted(every(Kind.WAIT, refuse(Busy("later", retry_after=60.0))))

    with connect(busy) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, JOB, 20)
        busy.next(Kind.WAIT)
        assert client.enq("Sample", id=JOB).id == JOB
        client.close()
        with pytest.raises(ConnectionLost):
            waiting.result(10)


def test_a_server_that_cannot_take_this_client_is_passed_over_and_is_an_error_if_it_is_the_last(
    connect: Connect, scripted: Scripted
) -> None:
    too_new, there = scripted(refuses=VersionMismatch("no version in common")), scripted()

    with connect(too_new, there) as client:
        assert client.enq("Sample", id=JOB).id == JOB
    with connect(too_new) as client:
        for _ in range(2):
            with pytest.raises(VersionMismatch):
                client.enq("Sample")


def test_without_any_server_the_error_names_them_all(connect: Connect) -> None:
    one, other = closed_address(), closed_address()

    with connect(one, other, resend=0.5) as client, pytest.raises(ConnectionLost, match="not sent") as caught:
        client.enq("Sample")

    assert one in str(caught.value)
    assert other in str(caught.value)


def test_servers_that_take_connections_and_drop_them_are_given_rests(
    connect: Connect, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []

    def shortest(least: float, most: float) -> float:
        rests.append(most)
        return least

    monkeypatch.setattr(failover, "random", SimpleNamespace(uniform=shortest))
    servers = [scripted(every(Kind.ENQ, hang_up)) for _ in range(2)]

    with connect(*servers, resend=1.0) as client, pytest.raises(ConnectionLost):
        client.enq("Sample")

    asked = sum(server.asks.qsize() for server in servers)
    assert rests[:3] == [0.05, 0.1, 0.2]
    assert asked <= 2 * (len(rests) + 1)


def test_close_does_not_wait_for_a_rest_to_end(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    is_resting = threading.Event()

    def rest(least: float, most: float) -> float:
        is_resting.set()
        return 50.0

    monkeypatch.setattr(failover, "random", SimpleNamespace(uniform=rest))

    with connect(closed_address(), resend=60.0) as client, ThreadPoolExecutor(1) as pool:
        calling = pool.submit(client.info)
        assert is_resting.wait(10)
        client.close()
        with pytest.raises(ConnectionLost, match="closed"):
            calling.result(10)


# Progress, and results that were not kept.


def tell_progress(*told: tuple[float, str], then: Callable[[Any, Any], None] = serve) -> Callable[[Any, Any], None]:
    """Say how far the job is, and then do as usual."""

    def script(line: Any, ask: Any) -> None:
        for fraction, text in told:
            line.tell(Kind.PROGRESSED, [item(Progressed(ask.request, fraction, text))])
        then(line, ask)

    return script


def test_progress_reaches_who_waits_before_the_result(connect: Connect, scripted: Scripted) -> None:
    heard: list[Any] = []

    with connect(scripted(every(Kind.WAIT, tell_progress((0.25, "a quarter"), (1, "all"))))) as client:
        assert client.wait(JOB, 10, progress=lambda *said: heard.append(said)) == 7

    assert heard[-1] == (1.0, "all")
    assert set(heard) <= {(0.25, "a quarter"), (1.0, "all")}


def test_progress_is_asked_for_only_by_who_wants_it(connect: Connect, scripted: Scripted) -> None:
    server = scripted()

    with connect(server) as client:
        client.wait(JOB)
        client.wait(JOB, progress=lambda fraction, text: None)

    assert [server.next(Kind.WAIT).messages[0].progress for _ in range(2)] == [False, True]


def test_progress_for_nobody_is_passed_over(connect: Connect, scripted: Scripted) -> None:
    def tell_another(line: Any, ask: Any) -> None:
        line.tell(Kind.PROGRESSED, [item(Progressed(ask.request + 1_000, 0.5)), item(Progressed(1, 0.5))])
        serve(line, ask)

    with connect(scripted(every(Kind.WAIT, tell_another))) as client:
        assert client.wait(JOB, 10) == 7


def test_what_the_callback_raises_ends_the_waiting_and_nothing_else(connect: Connect, scripted: Scripted) -> None:
    def refuse_it(fraction: float, text: str) -> None:
        raise LookupError(text)

    server = scripted(first(Kind.WAIT, tell_progress((0.5, "half"), then=say_nothing)))

    with connect(server) as client:
        with pytest.raises(LookupError, match="half"):
            client.wait(JOB, 10, progress=refuse_it)
        assert client.wait(JOB, 10) == 7


def test_progress_does_not_prolong_the_waiting(connect: Connect, scripted: Scripted) -> None:
    heard: list[Any] = []

    with (
        connect(scripted(every(Kind.WAIT, tell_progress((0.5, "half"), then=say_nothing)))) as client,
        pytest.raises(WaitTimeout),
    ):
        client.wait(JOB, 0.3, progress=lambda *said: heard.append(said))

    assert heard == [(0.5, "half")]


def test_progress_goes_on_at_the_next_server(connect: Connect, scripted: Scripted) -> None:
    heard: list[Any] = []
    lost = scripted(every(Kind.WAIT, tell_progress((0.25, "here"), then=hang_up)))
    there = scripted(every(Kind.WAIT, tell_progress((0.75, "there"))))

    with connect(lost, there) as client:
        assert client.wait(JOB, 10, progress=lambda *said: heard.append(said)) == 7

    assert heard[-1] == (0.75, "there")


@pytest.mark.parametrize("why", ["TOO_LARGE", "UNSERIALIZABLE"])
def test_a_result_that_was_not_kept_is_said_to_be_lost(connect: Connect, scripted: Scripted, why: str) -> None:
    server = scripted(every(Kind.WAIT, lambda line, ask: line.say(ask, [((OK, "done", why), b"")])))

    with connect(server) as client, pytest.raises(ResultLost) as caught:
        client.wait(JOB)

    assert caught.value.why == why


# What only one of them has.


def test_a_callback_may_use_the_client_that_it_waits_with(scripted: Scripted) -> None:
    heard: list[Any] = []

    with Client(scripted(every(Kind.WAIT, tell_progress((0.5, "half")))).address) as client:
        assert client.wait(JOB, 10, progress=lambda fraction, text: heard.append(client.enq("Sample", id=JOB).id)) == 7

    assert heard == [JOB]


def test_while_a_callback_takes_its_time_another_thread_reads(scripted: Scripted) -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def stay(fraction: float, text: str) -> None:
        entered.set()
        assert may_leave.wait(10)

    server = scripted(every(Kind.WAIT, tell_progress((0.5, "half"))))

    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, JOB, 20, stay)
        assert entered.wait(10)
        assert client.enq("Sample", id=JOB).id == JOB
        may_leave.set()
        assert waiting.result(10) == 7


class Socket:
    """Another thread reads, and leaves while this one waits for room to send."""

    def __init__(self, transport: BlockingTransport) -> None:
        self._transport = transport

    def wait(self, seconds: float | None, *, to_send: bool = False, to_read: bool = True) -> bool:
        self._transport.reader = None
        return False


def test_a_reader_that_leaves_while_another_waits_for_room_has_left() -> None:
    transport = BlockingTransport([Address("127.0.0.1", 1)], 1.0)
    transport.reader = -1
    sock: Any = Socket(transport)

    transport.make_room(sock, INFO.ask(commands.info()))

    assert transport.reader is None


def test_a_thread_that_reads_reads_on_while_it_sends_what_the_socket_does_not_take_at_once() -> None:
    """Were it to take itself for another that reads, it would turn round and round while there is something to read."""
    transport = BlockingTransport([Address("127.0.0.1", 1)], 1.0)
    transport.reader = threading.get_ident()
    sock = Mock(wait=Mock(return_value=True), receive=Mock(return_value=None))

    transport.make_room(sock, INFO.ask(commands.info()))

    assert sock.receive.called
    assert transport.reader == threading.get_ident()
