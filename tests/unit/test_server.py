"""The server around the engine: what it takes, and when it asks producers to hold back."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.socket
import pytest
from waits import yield_until

from givalia_core import Busy, Client, ConnectionLost, ShuttingDown, TooLarge, __version__, ports
from givalia_core.engine.records import Gone
from givalia_core.engine.words import HOLDS
from givalia_core.errors import SettingsInvalid, StoreUnfit
from givalia_core.protocol.answers import TAKEN
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.caller import Caller
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Credit, Enq, Join, Kind, Wait
from givalia_core.server import Server, chores, connections, loop
from givalia_core.server.connection import Connection
from givalia_core.server.inbox import COMMANDS_PER_TURN
from givalia_core.settings import ServerSettings


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(ServerSettings(port=0, worker_port=0, store="memory:", plugins=""))
    made.start()
    yield made
    made.stop()


def ask(server: Server, verb: str, *args: Any, **kwargs: Any) -> Any:
    """Call a client's verb from a native thread, while this thread's hub serves."""

    def call() -> Any:
        with Client("127.0.0.1", server.client_port, resend=5) as client:
            return getattr(client, verb)(*args, **kwargs)

    return call_from_thread(call)


def call_from_thread(call: Callable[[], Any]) -> Any:
    """Call something in a native thread, while this thread's hub serves."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        yield_until(future.done, "the answer", 60)
        return future.result()


def test_freed_memory_is_given_back_when_there_is_much_of_it_and_once_a_minute(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    used = iter((100, 50, 60, 90, 40, 300))  # MiB, as they are asked for.
    monkeypatch.setattr(chores, "resident_mib", lambda: next(used))
    monkeypatch.setattr(chores, "give_back_memory", lambda: given_back.append(server._loop.round_us))
    server._chores.trimmed_us = server._chores.trimmed_mib = 0

    for now_us in (chores.TRIM_US, 2 * chores.TRIM_US, 3 * chores.TRIM_US, 4 * chores.TRIM_US - 1):
        server._loop.round_us = now_us
        server._chores.see_to_memory()

    assert given_back == [chores.TRIM_US, 3 * chores.TRIM_US]


def test_the_server_answers_that_it_is_busy_while_it_uses_too_much_memory(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "resident_mib", lambda: server.settings.memory_max + 1)
    server._chores.see_to_memory()

    with pytest.raises(Busy) as caught:
        ask(server, "enq", "Sample")
    assert caught.value.retry_after > 0

    monkeypatch.setattr(chores, "resident_mib", lambda: 1)
    server._chores.see_to_memory()
    assert ask(server, "enq", "Sample").durability == "memory"


def test_the_server_answers_that_it_is_busy_after_a_turn_that_took_over_a_second(server: Server) -> None:
    server._loop.note_pace(loop.SLOW_TURN_US + 1, [Gone(1), Gone(2)])
    assert server._engine.desk.why_busy == loop.SLOW_WORDS

    server._loop.note_pace(10, [])
    assert server._engine.desk.why_busy == ""


@pytest.mark.parametrize(("commands", "is_slow"), [(1, True), (COMMANDS_PER_TURN + 1, False)])
def test_a_slow_turn_is_seen_unless_it_was_one_large_frame(server: Server, commands: int, is_slow: bool) -> None:
    asked = Asked(5, 1, Kind.ENQ, [Enq(bytes(16), "Mail")] * commands)

    server._loop.note_pace(loop.SLOW_TURN_US + 1, [asked])

    assert server._engine.desk.why_busy == ""
    assert bool(server._chores.signs(0).slow_turns) is is_slow


def look(server: Server) -> set[str]:
    """The troubles that the server's look after itself finds."""
    server._chores.do()
    return {name for name, shown in server.info()["troubles"].items() if shown}


def test_a_store_that_is_full_or_nearly_so_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(server) == set()
    monkeypatch.setattr(type(server._store), "is_full", True)
    monkeypatch.setattr(type(server._store), "describe", lambda _: {"disk_free_bytes": 1 << 20, "disk_bytes": 1 << 30})
    server._chores.disk_asked_us = -chores.DISK_EACH_US

    assert look(server) == {"store_full", "store_nearly_full"}
    assert server.troubles().keys() == server.info()["troubles"].keys()


def test_connections_that_find_no_room_are_told(server: Server) -> None:
    server.reload(replace(server.settings, connections_max=1))
    with Client("127.0.0.1", server.client_port) as first, Client("127.0.0.1", server.client_port, resend=0.5) as second:
        call_from_thread(first.info)
        with pytest.raises(ConnectionLost):
            call_from_thread(second.info)

    assert server.info()["connections_shed"] > 0
    assert "shedding" in {name for name, shown in server.troubles().items() if shown} | look(server)


def test_calls_of_hooks_that_are_dropped_are_told(server: Server) -> None:
    server._runner.dropped = 5

    assert look(server) == {"hooks_dropped"}


def test_info_is_there_for_other_threads_and_for_this_one(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.info)
        yield_until(future.done, "the answer")

    assert future.result()["durability"] == server.info()["durability"] == "memory"


def test_info_of_a_server_that_stops_says_so() -> None:
    server = Server(ServerSettings(port=0, worker_port=0, store="memory:", plugins=""))
    server.start()
    server.stop()

    with pytest.raises(ShuttingDown):
        server.info()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.invalid"])
def test_an_address_that_others_can_reach_needs_insecure(host: str) -> None:
    with pytest.raises(SettingsInvalid):
        Server(ServerSettings(host=host, port=0, worker_port=0, store="memory:", plugins="")).start()


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid"])
def test_an_address_that_this_machine_does_not_have_is_refused_by_name(host: str) -> None:
    server = Server(ServerSettings(host=host, insecure=True, port=0, worker_port=0, store="memory:", plugins=""))

    with pytest.raises(SettingsInvalid, match=f"host is an address of this machine, not '{host}'"):
        server.start()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_port_that_this_user_may_not_open_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def bound(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ports, "bound", bound)
    with pytest.raises(SettingsInvalid, match="the port for clients is one that this user may open, not 80"):
        Server(ServerSettings(port=80, worker_port=0, store="memory:", plugins="")).start()


def test_an_insecure_address_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(ServerSettings(host="0.0.0.0", insecure=True, port=0, worker_port=0, store="memory:", plugins=""))
    with caplog.at_level(logging.WARNING, logger="givalia.server"):
        server.start()
    server.stop()

    assert "INSECURE" in caplog.text


def test_a_store_of_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StoreUnfit, match="no installed package"):
        Server(ServerSettings(port=0, worker_port=0, store="nosuch://x", plugins="")).start()


def test_settings_that_are_read_again_change_what_is_decided_and_keep_the_ports(server: Server) -> None:
    port = server.settings.port
    need_restart = server.reload(ServerSettings(port=1, max_attempts=9, store="memory:", plugins=""))

    assert need_restart == ["port", "worker_port"]
    assert server.reload(server.settings) == []
    assert server._engine.desk.policy.max_attempts == 9
    assert server.settings.port == port


def test_an_answer_that_fits_no_frame_is_a_refusal_and_not_the_end_of_the_server(server: Server) -> None:
    class NoFrame:
        @staticmethod
        def answer(request: int, answers: list[Any]) -> list[Any]:
            if answers == [TAKEN]:
                raise TooLarge("it fits no frame")
            return answers

    connection: Any = SimpleNamespace(_waits=set(), _in_flight={1: 1}, _commands=1, _reads=set(), session=NoFrame)

    (told,) = Connection.answer(connection, 1, [TAKEN])

    assert told.code == "TOO_LARGE"  # type: ignore[attr-defined]


def test_clients_and_workers_are_told_with_their_addresses_and_versions(server: Server) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.client_port)) as line,
        socket.create_connection(("127.0.0.1", server.worker_port)) as worker,
    ):
        line.sendall(b'{"action":"stat","job":{"key":"k"}}\n')
        caller = Caller()
        asked = [(Kind.JOIN, Join("here", b"i" * 16)), (Kind.CREDIT, Credit(100))]
        worker.sendall(caller.hello("givalia-worker") + b"".join(caller.ask(kind, [item(each)])[1] for kind, each in asked))
        yield_until(lambda: server._engine.desk.routing.sessions, "a worker")
        yield_until(lambda: len([each for each in server._connections if each.session.is_open]) == 2, "both connections")

        told = ask(server, "info")["clients"]
        (shown,) = ask(server, "workers")
        host, port = worker.getsockname()

    clients = {(each["address"], each["agent"], each["version"], each["connections"]) for each in told}
    assert clients == {("127.0.0.1", "lines", "", 1), ("127.0.0.1", "givalia-client", __version__, 1)}
    assert all(abs(each["since_us"] / 1e6 - time.time()) < 60 for each in told)
    assert (shown["address"], shown["agent"], shown["version"]) == (f"{host}:{port}", "givalia-worker", __version__)


def test_a_lease_that_workers_were_told_is_not_changed_under_them(server: Server) -> None:
    server.reload(ServerSettings(lease=5, store="memory:", plugins=""))

    assert server._engine.desk.policy.lease_us == 30_000_000


def test_what_a_peer_asked_that_is_gone_before_its_hello_is_answered_is_not_asked(server: Server) -> None:
    """Its end is told once, and was told: a session or a wait that began behind that would stay."""
    caller = Caller()
    opening = caller.hello("test")
    for kind, asked in ((Kind.JOIN, [Join("gone", b"i" * 16)]), (Kind.CREDIT, [Credit(100)])):
        opening += caller.ask(kind, [item(message) for message in asked])[1]
    peer = socket.create_connection(("127.0.0.1", server.worker_port))
    yield_until(lambda: len(server._connections), "a connection")

    peer.sendall(opening)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # To close is to reset.
    peer.close()

    yield_until(lambda: not len(server._connections), "the end of the connection")
    server.info()  # A turn later.
    assert not server._engine.desk.routing.sessions


def test_a_server_that_stops_waits_for_nobody_who_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "GOODBYE_S", 40.0)
    server = Server(ServerSettings(port=0, worker_port=0, store="memory:", plugins=""))
    server.start()
    peer = gevent.socket.create_connection(("127.0.0.1", server.client_port))
    yield_until(lambda: len(server._connections), "a connection")

    def close_when_told() -> None:
        while peer.recv(100):
            pass
        peer.close()

    closing = gevent.spawn(close_when_told)
    stopping = gevent.spawn(server.stop)
    stopping.join(5)

    assert stopping.ready()
    closing.join()


def test_a_connection_that_the_loop_ends_is_logged_by_a_handler_that_waits(server: Server) -> None:
    logged: list[str] = []

    class Waiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gevent.sleep(0)  # As for the socket of a log server, in a program that gevent has patched.
            logged.append(record.getMessage())

    caller = Caller()
    opening = caller.hello("test")
    _, wait = caller.ask(Kind.WAIT, [item(Wait(id=b"i" * 16))])
    _, enq = caller.ask(Kind.ENQ, [item(Enq(id=b"i" * 16, module="Sample"))])
    handler = Waiting()
    log = logging.getLogger("givalia.server")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)

    with socket.create_connection(("127.0.0.1", server.client_port)) as peer:
        peer.sendall(opening + enq + wait + wait)
        yield_until(lambda: logged, "the line")

    log.setLevel(level)
    log.removeHandler(handler)
    assert "twice" in logged[0]
    assert not len(server._connections)


def test_server_says_that_it_holds_until_a_client_resumes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "givalia.server")
    settings = ServerSettings(store="memory:", port=0, worker_port=0, plugins="", hold=True)
    server = Server(settings)
    server.start()
    try:
        assert HOLDS in caplog.messages
        assert server.info()["holding"]

        assert ask(server, "resume")
        assert not ask(server, "resume")

        server.reload(settings)
        assert not server.info()["holding"]
    finally:
        server.stop()
    assert any("has ended the hold" in line for line in caplog.messages)
