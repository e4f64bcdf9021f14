"""Unread answers: their cost to the server is limited, and every peer that reads gets all its answers."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from waits import yield_until

from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.caller import Answer, Caller, Told
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.session import Session
from givalia_core.server import Server, connection, delivery
from givalia_core.server.unread import Unread
from givalia_core.settings import ServerSettings

MIB = 1 << 20
WORDS = bytes(RESULT_BYTES_MAX)
OPENED: list[Any] = []  # Sockets of the test that runs.


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(ServerSettings(port=0, worker_port=0, store="memory:", plugins=""))
    made.start()
    yield made
    for each in OPENED:
        each.close()
    OPENED.clear()
    made.stop()


class Peer:
    """A connection that speaks frames and reads when it is told to."""

    def __init__(self, port: int) -> None:
        self.socket = gevent.socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(20)
        OPENED.append(self.socket)
        self.caller = Caller()
        self._arrived: list[Answer | Told] = []
        self.socket.sendall(self.caller.hello("test"))
        self.read()

    def begin(self, kind: Kind, *asked: Any) -> int:
        """Send a frame; its number."""
        number, data = self.caller.ask(kind, [item(each) for each in asked])
        self.socket.sendall(data)
        return number

    def read(self, wanted: type = Answer) -> Any:
        """The next answer, or the next frame that was not asked for."""
        while True:
            for place, arrived in enumerate(self._arrived):
                if isinstance(arrived, wanted):
                    return self._arrived.pop(place)
            data = self.socket.recv(1 << 18)
            assert data, "closed"
            self._arrived += self.caller.feed(data)

    def ask(self, kind: Kind, *asked: Any) -> Answer:
        """Send a frame and return its answer."""
        number = self.begin(kind, *asked)
        answer: Answer = self.read()
        assert answer.request == number
        return answer


class Worker(Peer):
    """A worker that serves `Large`, and whose jobs end when it is told."""

    def __init__(self, server: Server, capacity: int = 100) -> None:
        super().__init__(server.worker_port)
        self.ask(Kind.JOIN, m.Join("large", os.urandom(16)))
        self.ask(Kind.ANNOUNCE, m.Announce("Large", "d", "1"))
        self.ask(Kind.CREDIT, m.Credit(capacity))

    def take(self, count: int) -> list[m.Succeed]:
        """The successes of so many jobs that are lent to it, to be sent."""
        taken: list[m.Succeed] = []
        while len(taken) < count:
            taken += [m.Succeed(*fields[:2], payload=WORDS) for fields, _ in self.read(Told).items[1:]]
        return taken


def running(server: Server, worker: Worker, count: int) -> list[m.Succeed]:
    """Jobs that run; what ends them."""
    with_client = Peer(server.client_port)
    with_client.ask(Kind.ENQ, *(m.Enq(os.urandom(16), "Large") for _ in range(count)))
    return worker.take(count)


def done(server: Server, count: int = 1) -> list[bytes]:
    """The ids of jobs that are done, each with a result as large as one may be."""
    worker = Worker(server)
    ended = running(server, worker, count)
    for each in ended:
        worker.ask(Kind.SUCCEED, each)
    worker.socket.close()
    return [each.id for each in ended]


def unsent(server: Server) -> int:
    """The bytes that the server keeps for its peers."""
    return sum(each.unsent.bytes for each in server._connections)


def most_unsent(server: Server, holds: Callable[[], bool]) -> int:
    """The most bytes that the server keeps until something is so and for a few turns afterwards."""
    most = 0
    with gevent.Timeout(15):
        while not holds():
            most = max(most, unsent(server))
            gevent.sleep(0.001)
    for _ in range(100):
        most = max(most, unsent(server))
        server.info()  # A turn later.
    return most


def is_idle(server: Server) -> Callable[[], bool]:
    """Whether every command that arrived has been taken, or waits for its peer to read."""
    return lambda: unsent(server) > 0 and not server._inbox


def test_waits_for_a_large_result_cost_a_peer_that_reads_nothing_its_share_and_no_more(server: Server) -> None:
    (job,) = done(server)
    peer = Peer(server.client_port)
    for _ in range(400):
        peer.begin(Kind.WAIT, m.Wait(id=job))

    assert most_unsent(server, is_idle(server)) < 3 * MIB


def test_waits_that_end_later_cost_a_peer_that_reads_nothing_its_share_and_no_more(server: Server) -> None:
    worker = Worker(server)
    (ending,) = running(server, worker, 1)
    peer = Peer(server.client_port)
    for _ in range(400):
        peer.begin(Kind.WAIT, m.Wait(id=ending.id))
    peer.ask(Kind.INFO, m.Info())  # A turn later.

    worker.ask(Kind.SUCCEED, ending)

    assert most_unsent(server, is_idle(server)) < 3 * MIB


def test_jobs_that_end_together_cost_those_who_wait_and_read_nothing_their_share_and_no_more(server: Server) -> None:
    worker = Worker(server)
    ending = running(server, worker, 60)
    peers = [Peer(server.client_port) for _ in range(4)]
    for peer, each in itertools.product(peers, ending):
        peer.begin(Kind.WAIT, m.Wait(id=each.id))
    for peer in peers:
        peer.ask(Kind.INFO, m.Info())

    for each in ending:
        worker.begin(Kind.SUCCEED, each)

    assert most_unsent(server, is_idle(server)) < 3 * MIB * len(peers)


def test_stats_of_many_peers_that_read_nothing_cost_each_its_share_and_no_more(server: Server) -> None:
    (job,) = done(server)
    peers = [Peer(server.client_port) for _ in range(10)]
    for peer, _ in itertools.product(peers, range(8)):
        peer.begin(Kind.STAT, *[m.Stat(id=job)] * 4)

    assert most_unsent(server, is_idle(server)) < 2 * MIB * len(peers)


def test_refusals_that_are_not_read_are_bounded(server: Server) -> None:
    peer = Peer(server.client_port)
    peer.socket.setblocking(False)
    empty = [((), b"")] * 5_000
    data = memoryview(b"".join(peer.caller.ask(Kind.ENQ, empty)[1] for _ in range(200)))

    with contextlib.suppress(BlockingIOError):  # The server reads no more.
        while data:
            data = data[peer.socket._sock.send(data) :]
            server.info()

    assert data

    assert unsent(server) < 2 * MIB


def test_whoever_reads_gets_the_results_of_all_its_waits_each_once(server: Server) -> None:
    past = done(server, 30)
    worker = Worker(server)
    ending = running(server, worker, 30)
    peer = Peer(server.client_port)
    asked = {peer.begin(Kind.WAIT, m.Wait(id=job)): job for job in [*past, *(each.id for each in ending)] for _ in range(4)}
    for each in ending:
        worker.begin(Kind.SUCCEED, each)
    yield_until(
        lambda: unsent(server) and not server._inbox, "unread answers", 15
    )  # It begins to read when it has fallen behind.

    answers = [peer.read() for _ in asked]

    assert {answer.request for answer in answers} == asked.keys()
    assert all(answer.items == [(["OK", "done", None], WORDS)] for answer in answers)


def test_whoever_ends_its_side_and_reads_gets_the_results_of_what_had_ended(server: Server) -> None:
    jobs = done(server, 30)
    peer = Peer(server.client_port)
    asked = [peer.begin(Kind.WAIT, m.Wait(id=job)) for job in jobs]
    peer.socket.shutdown(gevent.socket.SHUT_WR)
    yield_until(lambda: unsent(server), "unread answers", 15)

    assert {peer.read().request for _ in asked} == set(asked)


def test_commands_behind_answers_that_were_not_read_are_done_in_their_order_when_they_are(server: Server) -> None:
    (job,) = done(server)
    peer = Peer(server.client_port)
    stats = [peer.begin(Kind.STAT, *[m.Stat(id=job)] * 4) for _ in range(6)]
    enq = peer.begin(Kind.ENQ, m.Enq(os.urandom(16), "Later", key="k", delay_us=10**9))
    stat = peer.begin(Kind.STAT, m.Stat("k"))
    yield_until(lambda: unsent(server), "unread answers", 15)

    assert [peer.read().request for _ in range(8)] == [*stats, enq, stat]


def test_a_peer_that_takes_a_byte_now_and_then_is_closed_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_DEADLINE_S", 0.3)
    (job,) = done(server)
    peer = Peer(server.client_port)
    for _ in range(100):
        peer.begin(Kind.WAIT, m.Wait(id=job))
    (served,) = yield_until(lambda: [each for each in server._connections if each.unsent.bytes], "unread answers", 15)
    with gevent.Timeout(15):
        while not served.is_closed:
            peer.socket.recv(1)
            gevent.sleep(0.02)  # The pace of the peer.

    assert unsent(server) == server._connections.unread.bytes == 0


def test_when_the_budget_is_used_up_the_peer_that_stood_still_for_longest_makes_room(server: Server) -> None:
    server._connections.unread = Unread(4 * MIB)
    (job,) = done(server)
    peers = [Peer(server.client_port) for _ in range(8)]
    for peer, _ in itertools.product(peers, range(8)):
        peer.begin(Kind.STAT, *[m.Stat(id=job)] * 4)
    yield_until(lambda: server._connections.unread.bytes >= 2 * MIB, "unread answers", 15)

    reader = Peer(server.client_port)
    with gevent.Timeout(5):
        assert reader.ask(Kind.ENQ, m.Enq(os.urandom(16), "Small")).items[0][0][0] == "OK"  # At once.
        assert reader.ask(Kind.STAT, *[m.Stat(id=job)] * 4).items[0][1] == WORDS  # When one of them is gone.

    assert server._connections.unread.bytes < 6 * MIB


def test_many_who_wait_for_one_job_are_told_in_several_turns_and_each_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "DELIVERED_ENDS", 50)
    worker = Worker(server)
    (ending,) = running(server, worker, 1)
    peers = [Peer(server.client_port) for _ in range(4)]
    asked = {(peer, peer.begin(Kind.WAIT, m.Wait(id=ending.id))) for peer in peers for _ in range(100)}
    for peer in peers:
        peer.ask(Kind.INFO, m.Info())

    assert worker.ask(Kind.SUCCEED, ending._replace(payload=b"")).items[0][0] == ["OK"]

    assert {(peer, peer.read().request) for peer in peers for _ in range(100)} == asked


def test_small_frames_of_one_peer_are_taken_a_few_at_a_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = connection.Connection._take

    def noted(self: connection.Connection, data: bytes) -> int:
        taken.append(take(self, data))
        return taken[-1]

    monkeypatch.setattr(connection.Connection, "_take", noted)
    peer = Peer(server.client_port)
    waits = [peer.caller.ask(Kind.WAIT, [item(m.Wait("nobody"))])[1] for _ in range(3_000)]

    peer.socket.sendall(b"".join(waits))

    assert sum(len(peer.read().items) for _ in waits) == 3_000
    assert max(taken) < 200


@pytest.mark.parametrize("kind", [Kind.CLOCK, 99], ids=["clocks", "refusals"])
def test_frames_that_are_answered_at_once_are_taken_a_few_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    taken: list[int] = []
    receive, feed = connection.Connection._receive, Session.feed

    def noted(self: connection.Connection) -> None:
        taken.append(0)
        receive(self)

    def fed(self: Session, data: bytes) -> list[Asked]:
        taken[-1] += len(data)
        return feed(self, data)

    monkeypatch.setattr(connection.Connection, "_receive", noted)
    monkeypatch.setattr(Session, "feed", fed)
    peer = Peer(server.client_port)

    peer.socket.sendall(b"".join(peer.caller.ask(kind, [item(m.ClockAsked())])[1] for _ in range(10_000)))

    assert sum(len(peer.read().items) for _ in range(10_000)) == 10_000
    assert max(taken) < 10_000


def test_waits_are_counted_and_beyond_their_number_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from givalia_core.engine import desk

    monkeypatch.setattr(desk, "WAITS_MAX", 150)
    worker = Worker(server)
    (ending,) = running(server, worker, 1)
    greedy, modest = Peer(server.client_port), Peer(server.client_port)

    asked = [greedy.begin(Kind.WAIT, m.Wait(id=ending.id)) for _ in range(160)]
    refused = [greedy.read() for _ in range(10)]
    waiting = modest.begin(Kind.WAIT, m.Wait(id=ending.id))
    worker.ask(Kind.SUCCEED, ending)

    assert [(each.request, each.items[0][0][0]) for each in refused] == [(number, "BUSY") for number in asked[150:]]
    assert modest.read().request == waiting
