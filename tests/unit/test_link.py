"""The worker's link: from one server to the next with all held jobs; it keeps reports until a server takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, TypeVar

import gevent
import pytest
from scripted_server import (
    LEASE_US,
    PATIENCE_S,
    Line,
    Script,
    ScriptedServer,
    closed_address,
    every,
    first,
    hang_up,
    lose,
    refuse,
    say_nothing,
    serve,
)

from givalia_core.errors import Busy, ShuttingDown, Stale
from givalia_core.protocol import addresses, pulse
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item, refusal
from givalia_core.protocol.messages import (
    Announce,
    Credit,
    Dispatch,
    FailReport,
    Heard,
    Join,
    Kind,
    NamedLease,
    Succeed,
)
from givalia_core.protocol.session import Port
from givalia_core.worker.link import Connected, Disconnected, Dispatched, FailAnswered, Follows, Link, Lost
from givalia_core.worker.link import line as line_room
from givalia_core.worker.link import servers as servers_room
from givalia_core.worker.link.servers import BACKOFF_FIRST_S

JOB = Dispatch(b"j" * 16, 5, "Sample", 1, 0)
HOLD = NamedLease(JOB.id, JOB.fence)
REPORT = Succeed(JOB.id, JOB.fence, payload=b"\x07")
BUSY = Busy("later", retry_after=0.05)
STOPPING = ShuttingDown("the server is draining", retry_after=60.0)

T = TypeVar("T")


def lend(line: Line, ask: Asked) -> None:
    """Send a job as soon as there is room for one."""
    serve(line, ask)
    if ask.messages[0].capacity:
        line.tell(Kind.DISPATCH, [item(Heard(ask.request, LEASE_US)), item(JOB)])


def lending(kind: Kind, act: Script) -> Script:
    """Lend the job, and do something else with each thing of a kind."""
    return every(Kind.CREDIT, lend, then=every(kind, act))


class Rig:
    """A link in a thread of its own, and what it tells the job side."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self.told: queue.Queue[Any] = queue.Queue()

    def server(self, script: Script = serve) -> ScriptedServer:
        server = ScriptedServer(Port.WORKER, script)
        self._opened.callback(server.close)
        return server

    def start(self, *servers: ScriptedServer | str) -> Link:
        known = addresses.parse([each if isinstance(each, str) else each.address for each in servers], 1)
        join = Join("worker", b"i" * 16)
        self.link = Link(known, join, [Announce("Sample", "example", "1")], self.told.put)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._opened.callback(self.stop)
        return self.link

    def _run(self) -> None:
        try:
            self.link.run()
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    def stop(self) -> None:
        self.link.stop()
        self.thread.join(PATIENCE_S)

    def next(self, kind: type[T]) -> T:
        """The next thing of this kind that it tells."""
        while True:
            event = self.told.get(timeout=PATIENCE_S)
            if isinstance(event, kind):
                return event

    def take_the_job(self) -> None:
        self.link.send(Credit(1))
        assert self.next(Dispatched).jobs == [JOB]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Servers are tried in the order in which a test names them."""
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    with ExitStack() as opened:
        yield Rig(opened)


def test_a_server_that_is_not_there_is_passed_over_at_once(rig: Rig) -> None:
    there = rig.server()
    rig.start(closed_address(), there)

    assert rig.next(Disconnected).retry_s == 0
    assert str(rig.next(Connected).address) == there.address


def test_a_worker_that_loses_its_server_takes_its_leases_to_the_next_at_once(rig: Rig) -> None:
    lost, there = rig.server(every(Kind.CREDIT, lend)), rig.server()
    rig.start(lost, there)
    rig.take_the_job()

    lost.close()

    assert there.next(Kind.RESUME).messages == [HOLD]
    gone = rig.next(Disconnected)
    assert (str(gone.address), str(gone.next), gone.retry_s) == (lost.address, there.address, 0)
    assert str(rig.next(Connected).address) == there.address
    rig.link.send(REPORT)
    assert there.next(Kind.SUCCEED).messages == [REPORT]


def test_a_report_whose_answer_is_lost_is_made_to_the_next_server(rig: Rig) -> None:
    lost, there = rig.server(lending(Kind.SUCCEED, hang_up)), rig.server()
    rig.start(lost, there)
    rig.take_the_job()

    rig.link.send(REPORT)

    assert there.next(Kind.RESUME).messages == [HOLD]
    assert there.next(Kind.SUCCEED).messages == [REPORT]


def test_a_worker_that_stops_makes_its_last_report_to_the_next_server(rig: Rig) -> None:
    lost, there = rig.server(lending(Kind.SUCCEED, say_nothing)), rig.server()
    rig.start(lost, there)
    rig.take_the_job()
    rig.link.send(REPORT)
    lost.next(Kind.SUCCEED)

    rig.link.stop()
    lost.close()

    assert there.next(Kind.SUCCEED).messages == [REPORT]
    rig.thread.join(PATIENCE_S)
    assert not rig.thread.is_alive()


def test_a_worker_that_stops_while_no_server_is_there_ends(rig: Rig) -> None:
    lost = rig.server(lending(Kind.SUCCEED, say_nothing))
    rig.start(lost, closed_address())
    rig.take_the_job()
    rig.link.send(REPORT)
    lost.next(Kind.SUCCEED)

    lost.close()
    rig.link.stop()

    rig.thread.join(PATIENCE_S)
    assert not rig.thread.is_alive()


@pytest.mark.parametrize("answer", [[refusal(BUSY)], [refusal(BUSY)] * 2], ids=["the frame", "each"])
def test_a_report_that_a_busy_server_does_not_take_is_made_again(rig: Rig, answer: list[Any]) -> None:
    others = [JOB._replace(id=bytes([number]) * 16) for number in range(2)]
    reports = [REPORT._replace(id=job.id) for job in others]

    def lend_two(line: Line, ask: Asked) -> None:
        serve(line, ask)
        if ask.messages[0].capacity:
            line.tell(Kind.DISPATCH, [item(Heard(ask.request, LEASE_US)), *map(item, others)])

    busy = rig.server(every(Kind.CREDIT, lend_two, then=first(Kind.SUCCEED, lambda line, ask: line.say(ask, answer))))
    rig.start(busy)
    rig.link.send(Credit(2))
    assert rig.next(Dispatched).jobs == others
    rig.link.send(*reports)

    assert busy.next(Kind.SUCCEED).messages == reports
    assert busy.next(Kind.SUCCEED).messages == reports
    rig.stop()
    assert not rig.thread.is_alive()
    assert rig.told.empty(), "the link has stayed up, and the leases its own"


def test_a_worker_that_stops_waits_until_a_busy_server_has_taken_its_report(rig: Rig) -> None:
    busy = rig.server(every(Kind.CREDIT, lend, then=first(Kind.SUCCEED, refuse(BUSY))))
    rig.start(busy)
    rig.take_the_job()

    rig.link.send(REPORT)
    rig.stop()

    assert not rig.thread.is_alive()
    assert [busy.next(Kind.SUCCEED).messages for _ in range(2)] == [[REPORT]] * 2


def test_a_report_that_a_server_refuses_because_it_stops_is_made_to_the_next(rig: Rig) -> None:
    stopping, there = rig.server(lending(Kind.SUCCEED, refuse(STOPPING))), rig.server()
    rig.start(stopping, there)
    rig.take_the_job()

    rig.link.send(REPORT)

    assert there.next(Kind.RESUME).messages == [HOLD]
    assert there.next(Kind.SUCCEED).messages == [REPORT]


def test_a_report_on_a_lease_that_is_anothers_is_made_once(rig: Rig) -> None:
    server = rig.server(lending(Kind.SUCCEED, refuse(Stale("not yours"))))
    rig.start(server)
    rig.take_the_job()

    rig.link.send(REPORT)
    server.next(Kind.SUCCEED)
    rig.stop()

    assert not rig.thread.is_alive()
    assert all(ask.kind is not Kind.SUCCEED for ask in server.asks.queue)


FAILURE = FailReport(JOB.id, JOB.fence, "failed", "boom")


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ([(("OK", "dead", 5), b"")], FailAnswered(JOB.fence, Follows("dead", 5, None), is_taken=True)),
        ([(("OK",), b"")], FailAnswered(JOB.fence, None, is_taken=True)),
        ([refusal(Stale("not yours"))], FailAnswered(JOB.fence, None, is_taken=False)),
    ],
    ids=["dead", "an old server", "stale"],
)
def test_what_a_server_says_follows_a_failure_is_told(rig: Rig, answer: list[Any], known: FailAnswered) -> None:
    script = lending(Kind.FAIL, first(Kind.FAIL, refuse(BUSY), then=lambda line, ask: line.say(ask, answer)))
    rig.start(rig.server(script))
    rig.take_the_job()

    rig.link.send(FAILURE)

    assert rig.next(FailAnswered) == known


HEARD = item(Heard(1, LEASE_US))


@pytest.mark.parametrize(
    ("kind", "items", "words"),
    [
        (Kind.DISPATCH, [], "no items"),
        (Kind.DISPATCH, [((1,), b"")], "HEARD has 2 to 2 fields"),
        (Kind.DISPATCH, [((1, 0), b"")], "lease is 1e-06 s to 1000 years, not 0"),
        (Kind.DISPATCH, [HEARD, ((b"i" * 16, 1), b"")], "DISPATCH has 5 to 10 fields"),
        (
            Kind.DISPATCH,
            [HEARD, ((b"i" * 16, 1, "Sample", "first", 0), b"")],
            "attempt is 1 to 4611686018427387904, not ",
        ),
        (Kind.STOP, [((b"i" * 16,), b"")], "STOP has 2 to 3 fields"),
        (Kind.STOP, [(([], 1), b"")], "id is 16 bytes, not list"),
    ],
)
def test_a_server_that_sends_what_no_server_sends_is_left(rig: Rig, kind: Kind, items: list[Any], words: str) -> None:
    there = rig.server()
    rig.start(rig.server(every(Kind.CREDIT, lambda line, ask: line.tell(kind, items))), there)

    assert words in rig.next(Disconnected).why
    assert there.next(Kind.RESUME).messages == []


def told(*port: Any) -> Script:
    """Answer to JOIN as a server that tells this port for clients."""
    return every(Kind.JOIN, lambda line, ask: line.say(ask, [(("OK", LEASE_US, *port), b"")]))


@pytest.mark.parametrize(
    ("answer", "port"),
    [((4_000,), 4_000), ((), 12_322), ((0,), 12_322), ((70_000,), 12_322), (("x",), 12_322), ((4_000, "later"), 4_000)],
)
def test_a_server_tells_where_it_takes_clients_and_an_earlier_one_means_the_default(
    rig: Rig, answer: tuple[Any, ...], port: int
) -> None:
    rig.start(rig.server(told(*answer)))

    assert rig.next(Connected).clients == (Address("127.0.0.1", port),)


def test_of_several_servers_the_present_one_is_first_and_others_are_there_once_their_ports_are_known(rig: Rig) -> None:
    leaving = rig.server(told(4_000))
    rig.start(leaving, rig.server(told(5_000)), closed_address())
    assert rig.next(Connected).clients == (Address("127.0.0.1", 4_000),)

    leaving.lines[0].hang_up()

    assert rig.next(Connected).clients == (Address("127.0.0.1", 5_000), Address("127.0.0.1", 4_000))


def test_servers_with_the_same_worker_port_are_taken_to_have_the_same_client_port(rig: Rig) -> None:
    here = rig.server(told(4_000))
    _, port = here.address.split(":")
    rig.start(here, f"another:{port}", "another:1")

    assert rig.next(Connected).clients == (Address("127.0.0.1", 4_000), Address("another", 4_000))


@pytest.mark.parametrize("answer", [("OK",), ("OK", "long"), ("OK", 0)])
def test_a_server_that_does_not_say_how_long_a_lease_is_is_left(rig: Rig, answer: tuple[Any, ...]) -> None:
    there = rig.server()
    rig.start(rig.server(every(Kind.JOIN, lambda line, ask: line.say(ask, [(answer, b"")]))), there)

    assert "how long a lease is" in rig.next(Disconnected).why
    assert there.next(Kind.RESUME).messages == []


@pytest.mark.parametrize("error", [BUSY, STOPPING], ids=["busy", "stopping"])
@pytest.mark.parametrize("kind", [Kind.JOIN, Kind.ANNOUNCE, Kind.RESUME, Kind.CREDIT])
def test_a_server_that_does_not_want_the_worker_is_passed_over(rig: Rig, kind: Kind, error: Busy) -> None:
    there = rig.server()
    rig.start(rig.server(every(kind, refuse(error))), there)

    assert there.next(Kind.RESUME).messages == []
    assert rig.next(Disconnected).retry_s == 0
    assert str(rig.next(Connected).address) == there.address


def test_a_lease_outlives_a_server_that_is_too_busy_to_take_it_back(rig: Rig) -> None:
    lost = rig.server(every(Kind.CREDIT, lend))
    busy, there = rig.server(every(Kind.RESUME, refuse(BUSY))), rig.server()
    rig.start(lost, busy, there)
    rig.take_the_job()

    lost.close()

    assert busy.next(Kind.RESUME).messages == [HOLD]
    assert there.next(Kind.RESUME).messages == [HOLD]
    assert not [event for event in rig.told.queue if isinstance(event, Lost)]


def test_only_when_all_servers_have_failed_is_there_a_rest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.start(closed_address(), closed_address(), closed_address())

    rests = [rig.next(Disconnected).retry_s for _ in range(6)]

    assert [rest > 0 for rest in rests] == [False, False, True] * 2
    assert rests[2] == BACKOFF_FIRST_S <= rests[5] <= 2 * BACKOFF_FIRST_S


def test_servers_that_take_the_worker_and_drop_it_are_given_rests(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_room, "STEADY_S", 60.0)
    rig.start(rig.server(every(Kind.CREDIT, hang_up)), rig.server(every(Kind.CREDIT, hang_up)))

    rests = [rig.next(Disconnected).retry_s for _ in range(6)]

    assert [rest > 0 for rest in rests] == [False, True] * 3


def test_a_link_that_lasted_is_replaced_at_once_whatever_failed_before_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_room, "STEADY_S", 0.0)
    lost, there = rig.server(), rig.server()
    rig.start(closed_address(), lost, there)
    rig.next(Connected)
    while rig.told.qsize():
        rig.told.get()

    lost.close()

    assert rig.next(Disconnected).retry_s == 0
    assert str(rig.next(Connected).address) == there.address


def test_the_only_server_is_tried_again_after_a_rest(rig: Rig) -> None:
    rig.start(rig.server(first(Kind.RESUME, hang_up)))

    gone = rig.next(Disconnected)
    assert gone.why == "ConnectionLost: the server closed the connection"
    assert gone.retry_s == BACKOFF_FIRST_S
    assert gone.next == gone.address == rig.next(Connected).address


# A path that dies without a word.


@pytest.fixture
def _tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of the pulse are tenths."""
    monkeypatch.setattr(pulse, "DEAD_S", pulse.DEAD_S / 10)
    monkeypatch.setattr(line_room, "PING_COMMAND_S", line_room.PING_COMMAND_S / 10)
    monkeypatch.setattr(line_room, "PING_WAIT_S", line_room.PING_WAIT_S / 10)


@pytest.mark.usefixtures("_tenths")
def test_a_report_on_a_path_that_died_is_made_over_a_new_connection(rig: Rig) -> None:
    server = rig.server(first(Kind.SUCCEED, lose, then=lending(Kind.BEAT, serve)))
    rig.start(server)
    rig.take_the_job()

    rig.link.send(Credit(0))
    rig.link.send(REPORT)

    assert server.next(Kind.SUCCEED).messages == [REPORT]
    assert server.next(Kind.RESUME).messages == [HOLD]
    assert server.next(Kind.SUCCEED).messages == [REPORT]
    assert "not even an acknowledgement" in rig.next(Disconnected).why
    assert len(server.lines) == 2


@pytest.mark.usefixtures("_tenths")
def test_an_idle_worker_on_a_path_that_died_joins_over_a_new_connection(rig: Rig) -> None:
    server = rig.server(first(Kind.CREDIT, lose))
    rig.start(server)

    assert server.next(Kind.JOIN) is not server.next(Kind.JOIN)


@pytest.mark.usefixtures("_tenths")
def test_a_server_that_takes_long_to_answer_a_report_keeps_its_worker(rig: Rig) -> None:
    answered = threading.Event()

    def answer_later(line: Line, ask: Asked) -> None:
        threading.Timer(1.5, lambda: (serve(line, ask), answered.set())).start()

    server = rig.server(every(Kind.CREDIT, lend, then=every(Kind.SUCCEED, answer_later)))
    rig.start(server)
    rig.take_the_job()
    rig.link.send(REPORT)

    assert answered.wait(PATIENCE_S)
    assert len(server.lines) == 1
