"""The lines of the server's log about workers, leases, dead jobs and refused connections."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from engine_rig import EngineRig, uid
from waits import yield_until

from givalia_core.engine.records import JournalEntry
from givalia_core.printable import Formatter
from givalia_core.protocol import codec, frames
from givalia_core.protocol import messages as m
from givalia_core.protocol.frames import MAGIC
from givalia_core.protocol.messages import Kind
from givalia_core.server import Server, journal
from givalia_core.server.journal import Journal
from givalia_core.settings import ServerSettings


class Rig(EngineRig):
    """An engine whose news a journal writes down."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__()
        self._caplog = caplog
        self.journal = Journal(lambda conn: f"10.0.0.{conn}")
        self.engine.desk.tells_news = True

    def _turn_once(self, *inputs: Any) -> Any:
        effects = super()._turn_once(*inputs)
        for effect in effects:
            if isinstance(effect, JournalEntry):
                self.journal.tell(effect)
        gevent.sleep(0)
        return effects

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What has been written since this was last asked."""
        records = list(self._caplog.records)
        self._caplog.clear()
        form = Formatter()
        return [(record.levelname, form.format(record).partition("givalia.server: ")[2]) for record in records]


@pytest.fixture
def rig(caplog: pytest.LogCaptureFixture) -> Rig:
    caplog.set_level(logging.INFO, "givalia.server")
    return Rig(caplog)


def test_a_worker_that_joins_and_one_that_leaves_are_said(rig: Rig) -> None:
    worker = rig.worker(10, "mail", pid=7)
    assert rig.lines == [("INFO", "worker mail (pid 7, 10.0.0.10) has joined")]

    worker.credit(0)
    worker.leave()
    assert rig.lines == [("INFO", "worker mail (pid 7) has left")]


def test_a_worker_that_is_lost_is_said_with_what_it_holds_and_so_is_each_lease_that_ends(rig: Rig) -> None:
    worker = rig.worker(10, "mail", pid=7)
    rig.enq(id=uid(1), key="k", max_attempts=1)
    assert rig.lines[1:] == []

    worker.leave()
    gone = "its connection has ended; it holds one job, which it loses when the lease ends unless it comes back before"
    assert rig.lines == [("WARNING", f"worker mail (pid 7) is lost: {gone}")]

    rig.tick(35)
    about = f"[module=Mail key=k id={'0' * 8}-0000-0000-0000-{'0' * 11}1 attempt=1]"
    lost = "worker mail was lost: its lease ended with no report"
    assert rig.lines == [
        ("WARNING", f"the lease of worker mail has ended with no report of attempt 1 {about}"),
        ("ERROR", f"the job is dead (exhausted) after attempt 1 of 1: {lost} {about}"),
    ]


def test_a_worker_that_falls_silent_is_said(rig: Rig) -> None:
    rig.worker(10, "mail", pid=7)
    rig.tick(25)
    assert rig.lines[1] == ("WARNING", "worker mail (pid 7) is lost: it missed two beats; it holds no job")


def test_a_worker_that_connects_again_is_not_lost(rig: Rig) -> None:
    rig.worker(10, "mail", instance=uid(9))
    rig.worker(11, "mail", instance=uid(9))
    assert [line for _, line in rig.lines] == [
        "worker mail (pid 0, 10.0.0.10) has joined",
        "worker mail (pid 0, 10.0.0.11) has joined",
    ]


def test_each_dead_job_is_one_line_with_type_and_message_of_its_error(rig: Rig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.fail(error="Traceback (most recent call last):\n  File x\nValueError: no\x1b[2J cart", permanent=True)
    (line,) = rig.lines[1:]
    assert line[0] == "ERROR"
    assert line[1].startswith("the job is dead (failed) after attempt 1 of 5: ValueError: no\\x1b[2J cart [module=Mail id=")


def test_an_attempt_that_fails_is_no_line_of_the_server(rig: Rig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.fail()
    assert len(rig.lines) == 1


def test_a_job_that_expires_is_said(rig: Rig) -> None:
    rig.enq(id=uid(1), expires_us=1)
    rig.tick(2)
    (line,) = rig.lines
    assert line[0] == "WARNING"
    assert "it has expired before it could start" in line[1]


def test_workers_of_a_server_that_stops_are_not_lost(rig: Rig) -> None:
    worker = rig.worker()
    rig.engine.desk.is_draining = True
    worker.leave()
    assert len(rig.lines) == 1


def test_a_storm_of_deaths_is_counted(rig: Rig) -> None:
    worker = rig.worker(capacity=1)
    for number in range(1, 41):
        rig.enq(id=uid(number), max_attempts=1)
        worker.fail()
    dead = [line for _, line in rig.lines if "is dead" in line]
    assert len(dead) == 10

    rig.journal.close()
    assert rig.lines == [("WARNING", "30 more jobs of Mail that are dead (exhausted), within 10 s")]


def hello(low: int = 1, high: int = 1) -> bytes:
    return MAGIC + frames.encode(Kind.HELLO, 1, [codec.item(m.Hello(low, high, "test"))])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    settings = ServerSettings(port=0, worker_port=0, store="memory:", plugins="", connections_max=2, connections_silent_max=1)
    made = Server(settings)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "from 127.0.0.1 to the port for clients was refused: it does not speak the protocol"),
        (hello(99, 99), "was refused: this server, Givalia "),
        (MAGIC + b"\xff" * 64, "was refused: "),
        (b"{nonsense}\n" * 3, "was refused: 3 lines in a row could not be read"),
    ],
    ids=["another protocol", "another version", "a frame too large", "lines"],
)  # fmt: skip
def test_a_refused_connection_is_said(server: Server, data: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with gevent.socket.create_connection(("127.0.0.1", server.client_port)) as connection, gevent.Timeout(10):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
        yield_until(lambda: "refused" in caplog.text, "the line")
    assert said in caplog.text
    assert caplog.text.count("refused") == 1


def test_a_connection_too_many_is_said(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    kept = []
    with gevent.Timeout(10):
        for _ in range(3):
            connection = gevent.socket.create_connection(("127.0.0.1", server.client_port))
            kept.append(connection)
            connection.sendall(hello())
            connection.recv(4096)
        yield_until(lambda: "refused" in caplog.text, "the line")
    assert "was refused: this server has as many connections as it takes" in caplog.text
    for connection in kept:
        connection.close()


def test_a_storm_of_refused_connections_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    said = Journal(lambda conn: "", journal.log)
    for _ in range(1_000):
        said.refuse("10.0.0.7", "client", "it does not speak the protocol")
    gevent.sleep(0)
    assert len(caplog.records) == 10
    said.close()
    assert caplog.records[-1].getMessage() == "990 more connections from 10.0.0.7 that were refused, within 10 s"
