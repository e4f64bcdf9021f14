"""An open connection whose peer has vanished is noticed, logged and replaced."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import psycopg
import pytest
from givalia_postgres import Postgres, hints
from givalia_postgres.connection import Connection
from givalia_postgres.hints import ANSWER_S, CHANNEL, LISTEN, PROBE_S, Listener
from postgres_rig import Postgres as Rig
from waits import yield_until

_RELAY: Final = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def carry(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for each in (one, other):
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
while True:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""
NOTICED_S: Final = PROBE_S + ANSWER_S + 4


class Relay:
    """A process in front of the database, which can be stopped: its system then goes on acknowledging what it is sent."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _RELAY, str(port)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def relay(postgres: Rig) -> Iterator[Relay]:
    relay = Relay(postgres.port)
    yield relay
    relay.close()


@pytest.fixture
def listener(relay: Relay, database_url: str) -> Iterator[Listener]:
    """One that hears by way of the relay."""
    listener = Listener(f"postgresql://postgres@127.0.0.1:{relay.port}/{database_url.rpartition('/')[2]}", lambda: None)
    yield listener
    listener.close()


def notify(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"NOTIFY {CHANNEL}, '{{\"w\":1}}'")


def test_listener_whose_peer_has_vanished_is_noticed_and_replaced(
    listener: Listener, relay: Relay, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given
    caplog.set_level(logging.INFO, "givalia.server")
    yield_until(lambda: not listener.is_deaf, "it listens")

    # when
    relay.stop()

    # then
    yield_until(lambda: listener.is_deaf, "it is noticed", NOTICED_S)
    assert listener.take().is_deaf
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    # when
    relay.go_on()

    # then
    yield_until(lambda: not listener.is_deaf, "it listens again", 15)
    assert "heard again" in caplog.text
    listener.take()
    notify(database_url)
    yield_until(lambda: listener.take().must_watch, "the notification")


def test_listener_that_hears_nothing_is_not_taken_for_dead(
    listener: Listener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    probes: list[None] = []
    probe = listener._probe
    monkeypatch.setattr(hints, "PROBE_S", 0.1)
    monkeypatch.setattr(listener, "_probe", lambda: probes.append(probe()))  # type: ignore[func-returns-value]
    yield_until(lambda: not listener.is_deaf, "it listens")

    # when
    yield_until(lambda: len(probes) > 1, "two probes that were answered")

    # then
    assert not listener.is_deaf
    assert caplog.records == []


def test_notification_that_comes_with_another_answer_is_heard(database_url: str) -> None:
    # given
    connection = Connection(database_url, "givalia listener")
    try:
        connection.ask((LISTEN, ()))

        # when
        notify(database_url)
        assert connection.await_more(10)
        connection.ask(("SELECT 1", ()))

        # then
        assert [payload for _, payload in connection.notifies()] == [b'{"w":1}']
    finally:
        connection.close()


def test_info_says_whether_other_servers_are_heard(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    try:
        assert store.describe()["hears_others"] is False

        # when
        yield_until(lambda: not store.news().is_deaf, "it listens")

        # then
        assert store.describe()["hears_others"] is True
    finally:
        store.close()


def test_the_database_looks_whether_a_server_that_says_nothing_has_vanished(database_url: str) -> None:
    """In the middle of a trip no timeout runs; the settings are what PostgreSQL reads from its end of the socket."""
    connection = Connection(database_url, "givalia")
    try:
        names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
        asked = ", ".join(f"current_setting('{name}')" for name in names)
        assert connection.ask_unprepared(f"SELECT {asked}") == [("10", "5", "3", "20000")]
    finally:
        connection.close()


def test_a_session_over_a_socket_of_unix_needs_no_probes(postgres: Rig, database_url: str) -> None:
    connection = Connection(postgres.socket_url(database_url.rpartition("/")[2]), "givalia")
    try:
        assert connection.ask_unprepared("SELECT current_setting('tcp_keepalives_idle')") == [("0",)]
    finally:
        connection.close()
