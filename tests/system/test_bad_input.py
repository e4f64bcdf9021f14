"""Bytes of strangers, broken clients and attackers: each is refused or closed, none runs, and other clients are served.

One server takes all of them, one test after the other; a test towards the end measures the cost to the server.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgpack
import psutil
import pytest
from system_rig import Rig
from system_wire import Framed, Lines, Raw, answers, enq
from waits import await_true

from givalia_core import BadRequest, Busy, Client, GivaliaError, TooLarge
from givalia_core.protocol import codec, frames
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind

T = TypeVar("T")

MIB = 1 << 20
RSS_GROWTH_MAX = 32 * MIB
CANARY_S = 1.0

SHORT_DEADLINES = """
import givalia_core.server.connection as connection
connection.HANDSHAKE_US = 1_000_000
connection.FRAME_US = 2_000_000
connection.WRITE_DEADLINE_S = 2.0
"""


class House:
    """The server, a worker, and a client that behaves."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.server = rig.start_patched_server(SHORT_DEADLINES, "--connections-per-peer-max", 60)
        self.port, self.worker_port = self.server.port, self.server.worker_port
        rig.start_worker()
        self.canary: Client = rig.client()
        assert self.canary.enq("Echo", params="warm").wait(10) == "warm"
        with Framed(self.port) as wire:  # What one large frame needs is kept by the allocator; it is no leak.
            wire.begin(Kind.ENQ, enq(payload=bytes(frames.PARAMS_BYTES_MAX), delay_us=10**12))
            wire.read()
        self.process = psutil.Process(self.server.pid)
        self.rss = self.process.memory_info().rss

    def check(self) -> None:
        """Others are served, at once."""
        started = time.monotonic()
        assert self.canary.enq("Echo", params=1).wait(10) == 1
        assert time.monotonic() - started < CANARY_S

    def live(self) -> int:
        count: int = self.canary.info()["live"]
        return count


@pytest.fixture(scope="module")
def house(shared_rig: Rig) -> House:
    return House(shared_rig)


@pytest.fixture(autouse=True)
def _others_are_served(house: House) -> Iterator[None]:
    yield
    house.check()


# Values that cannot be.


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf, -1, -1e-6, 1e9, 1e300, 10**400, True, "5", b"5", [], None])
def test_a_client_refuses_a_time_that_cannot_be(house: House, time: Any) -> None:
    before = house.live()
    if time is None:
        assert house.canary.enq("Echo", time=time, params=0).wait(10) == 0  # Nothing said is now.
        return

    with pytest.raises(BadRequest):
        house.canary.enq("Echo", time=time)

    assert house.live() == before


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf, 1e300, 5e9, "tomorrow", True])
def test_a_client_refuses_an_instant_that_cannot_be(house: House, at: Any) -> None:
    with pytest.raises(BadRequest):
        house.canary.enq("Echo", at=at)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 1.5, 1 << 60, 1 << 63, True, "1", b"1", [1], {}, None])
@pytest.mark.parametrize("place", [2, 5])
def test_a_server_refuses_a_time_that_cannot_be_whoever_sends_it(house: House, place: int, value: Any) -> None:
    fields = [os.urandom(16), "Echo", 0, None, "any", None]
    if value is None and place == 5:
        return
    if place == 5 and value == -1:
        value = -(1 << 62)
    fields[place] = value
    with Framed(house.port) as wire:
        (answer,) = wire.ask_raw(Kind.ENQ, msgpack.packb(fields))
        assert isinstance(answer, BadRequest)
        assert wire.ask(Kind.INFO, m.Info())


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e400", "-1", "1e300", '"5"', "true", "null", "[]", "9" * 300]
)
def test_a_line_with_a_time_that_cannot_be_is_refused(house: House, text: str) -> None:
    before = house.live()
    with Lines(house.port) as lines:
        lines.send(b'{"action":"enq","job":{"module":"Echo","time":%s}}\n' % text.encode())
        assert lines.read()["response"] == "fail"
        assert lines.ask("stat", key="nobody") == {"response": "success", "desc": {"que": False}}
    assert house.live() == before


KEYS = ["", "a\x00b", "a\nb", "a\x1bb", "\x7f", "k" * 256, "é" * 128]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_cannot_be_is_refused_everywhere(house: House, key: str) -> None:
    with pytest.raises(BadRequest):
        house.canary.enq("Echo", key=key)
    with pytest.raises(BadRequest):
        house.canary.stat(key)
    with Framed(house.port) as wire:
        (answer,) = wire.ask_raw(Kind.ENQ, msgpack.packb([os.urandom(16), "Echo", 0, key]))
        assert isinstance(answer, BadRequest)
        (answer,) = wire.ask_raw(Kind.STAT, msgpack.packb([key]))
        assert isinstance(answer, BadRequest)
    with Lines(house.port) as lines:
        assert lines.ask("enq", module="Echo", time=0, key=key)["response"] == "fail"


def test_a_lone_surrogate_as_key_is_refused(house: House) -> None:
    with pytest.raises(BadRequest):
        house.canary.enq("Echo", key="\udc80")
    with Framed(house.port) as wire:
        packed = b"\x94\xc4\x10" + os.urandom(16) + b"\xa4Echo\x00\xa3\xed\xb2\x80"
        (answer,) = wire.ask_raw(Kind.ENQ, packed)
        assert isinstance(answer, BadRequest)
    with Lines(house.port) as lines:
        lines.send(b'{"action":"enq","job":{"module":"Echo","time":0,"key":"\\udc80"}}\n')
        assert lines.read()["response"] == "fail"


# Sizes.


def test_a_frame_of_two_megabytes_is_refused_and_the_connection_goes_on(house: House) -> None:
    with Framed(house.port) as wire:
        number, _ = wire.caller.ask(Kind.ENQ, [])
        length = 2 * MIB
        wire.send(length.to_bytes(4) + bytes([Kind.ENQ]) + number.to_bytes(4) + bytes(length - 5))
        answer = wire.read()
        (error,) = answers(answer)
        assert (answer.request, type(error)) == (number, TooLarge)
        (made,) = wire.ask(Kind.ENQ, enq(delay_us=10**12))
        assert made[2] == "fsync"


def test_a_length_of_32_megabytes_ends_the_connection_before_it_is_sent(house: House) -> None:
    with Framed(house.port) as wire:
        wire.send((32 * MIB).to_bytes(4) + bytes([Kind.ENQ]) + (7).to_bytes(4))
        (error,) = answers(wire.read())
        assert isinstance(error, TooLarge)
        assert wire.read_to_end() == b""


def test_more_cancels_than_a_frame_may_hold_are_refused_and_none_of_them_is_done(house: House) -> None:
    job = house.canary.enq("Echo", time=600, key="kept")
    before = house.live()
    with Framed(house.port) as wire:
        asked = [m.Cancel(os.urandom(16), "kept"), *(m.Cancel(os.urandom(16), f"k{n}") for n in range(frames.ITEMS_MAX))]
        (answer,) = wire.ask(Kind.CANCEL, *asked)
        assert isinstance(answer, TooLarge)
        assert house.live() == before
        assert wire.ask(Kind.CANCEL, asked[0]) == [("cancelled",)]
    assert job.stat().state == "cancelled"


def test_among_many_cancels_those_that_cannot_be_are_refused_in_their_place(house: House) -> None:
    house.canary.enq("Echo", time=600, key="called-off")
    with Framed(house.port) as wire:
        long, unnamed, known, strange = wire.ask(
            Kind.CANCEL,
            m.Cancel(os.urandom(16), "k" * 60_000),
            m.Cancel(os.urandom(16)),
            m.Cancel(os.urandom(16), "called-off"),
            m.Cancel(b"short", "called-off"),
        )
    assert [type(answer) for answer in (long, unnamed, strange)] == [BadRequest] * 3
    assert known == ("cancelled",)


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_length_that_is_less_than_a_head_ends_the_connection(house: House, length: int) -> None:
    with Framed(house.port) as wire:
        wire.send(length.to_bytes(4) + bytes(20))
        wire.read_to_end()


def test_a_line_of_more_than_64_kilobytes_is_refused_and_the_connection_ends(house: House) -> None:
    with Lines(house.port) as lines:
        lines.send(b'{"action":"' + b"x" * 70_000)
        assert lines.read()["response"] == "fail"
        assert lines.read_to_end() == b""


def test_params_beyond_their_limit_are_refused(house: House) -> None:
    with pytest.raises(TooLarge):
        house.canary.enq("Echo", params=bytes(600 << 10))
    with Framed(house.port) as wire:
        (answer,) = wire.ask(Kind.ENQ, enq(payload=bytes(600 << 10)))
        assert isinstance(answer, TooLarge)


def test_ten_thousand_levels_are_refused_wherever_they_stand(house: House) -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(BadRequest):
        house.canary.enq("Echo", params=deep)
    with Framed(house.port) as wire:
        (answer,) = wire.ask_raw(Kind.ENQ, b"\x91" * 10_000 + b"\xc0")
        assert isinstance(answer, BadRequest)
    with Lines(house.port) as lines:
        lines.send(b'{"action":"enq","job":{"module":"Echo","time":0,"params":' + b"[" * 10_000 + b"]" * 10_000 + b"}}\n")
        assert lines.read()["response"] == "fail"


@pytest.mark.parametrize(
    "payload", [b"\x91" * 10_000 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\xa5ab", b"\xd4\x01\x00", b"\xa1\xff"]
)
def test_params_that_are_no_msgpack_fail_their_job_for_good_and_nothing_else(house: House, payload: bytes) -> None:
    """Nobody but the worker ever looks at them."""
    with Framed(house.port) as wire:
        ((job_id, *_),) = wire.ask(Kind.ENQ, enq(payload=payload))

    job = str(uuid.UUID(bytes=job_id))
    assert await_true(lambda: house.canary.stat(id=job).state in ("dead", "done"), "its end")


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"\x90",
        b"\xc0",
        b"\x81\xa1a\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc1",
        b"\x91\xd4\x01\x00",
    ],
)
def test_fields_that_are_none_are_refused_and_the_connection_goes_on(house: House, fields: bytes) -> None:
    with Framed(house.port) as wire:
        (answer,) = wire.ask_raw(Kind.ENQ, fields)
        assert isinstance(answer, BadRequest)
        assert wire.ask(Kind.INFO, m.Info())


@pytest.mark.parametrize("kind", [0, 1, 21, 99, 255, *(int(kind) for kind in (Kind.JOIN, Kind.SUCCEED, Kind.DISPATCH))])
def test_a_kind_that_is_not_for_the_port_is_refused(house: House, kind: int) -> None:
    with Framed(house.port) as wire:
        (answer,) = wire.ask_raw(kind, b"\x90")
        assert isinstance(answer, GivaliaError)
        assert wire.ask(Kind.INFO, m.Info())


def test_a_worker_that_reports_without_joining_is_refused(house: House) -> None:
    with Framed(house.worker_port) as wire:
        (answer,) = wire.ask(Kind.CREDIT, m.Credit(100))
        assert isinstance(answer, BadRequest)
        (answer,) = wire.ask(Kind.SUCCEED, m.Succeed(os.urandom(16), 1))
        assert answer.code == "STALE"


# Pieces.


def test_one_byte_at_a_time_is_as_good_as_all_at_once(house: House) -> None:
    with Framed(house.port, hello=False) as wire:
        number_of_hello = wire.caller.hello("slow")
        number, data = wire.caller.ask(Kind.ENQ, [codec.item(enq(delay_us=10**12))])
        for byte in number_of_hello + data:
            wire.send(bytes([byte]))
        assert answers(wire.read())[0][0] == 1
        assert wire.read().request == number


def test_a_thousand_commands_in_one_packet_are_all_answered_in_order(house: House) -> None:
    with Framed(house.port) as wire:
        asked = [wire.caller.ask(Kind.STAT, [codec.item(m.Stat("nobody"))]) for _ in range(1_000)]
        wire.send(b"".join(data for _, data in asked))
        assert [wire.read().request for _ in asked] == [number for number, _ in asked]


# Silence.


def test_a_hello_that_is_never_finished_is_closed(house: House) -> None:
    starts = (b"\x93", b"\x93GV", b"\x93GV1", b"\x93GV1\x00\x00")
    waiting = [Raw(port) for port in (house.port, house.worker_port) for _ in starts]
    started = time.monotonic()
    for raw, start in zip(waiting, starts * 2, strict=True):
        raw.send(start)

    for raw in waiting:
        with raw:
            assert raw.read_to_end(6) == b""

    assert time.monotonic() - started > 0.9


def test_half_a_frame_and_silence_is_closed_and_a_silent_connection_is_not(house: House) -> None:
    with Framed(house.port) as half, Framed(house.port) as idle, Lines(house.port) as line, Raw(house.port) as mute:
        half.send((100).to_bytes(4) + bytes([Kind.ENQ]) + bytes(10))
        line.send(b'{"action":"enq"')
        started = time.monotonic()
        assert half.read_to_end(8) == b""
        assert line.read_to_end(8) == b""
        assert time.monotonic() - started > 1.5
        assert idle.ask(Kind.INFO, m.Info())
        mute.send(b'{"action":"stat","job":{"key":"nobody"}}\n')
        assert mute.socket.recv(100).startswith(b'{"response":"success"')


def test_the_deadlines_are_those_of_the_contract() -> None:
    """They were shortened above; this test has the real values."""
    from givalia_core.server import connection

    assert (connection.HANDSHAKE_US, connection.FRAME_US) == (5_000_000, 30_000_000)
    assert (connection.SLOW_AFTER_US, connection.SLOW_BYTES_PER_S) == (5_000_000, 1024)
    assert (connection.WRITE_DEADLINE_S, connection.UNSENT_BYTES_MAX) == (10.0, MIB)
    assert connection.IN_FLIGHT_MAX == 128


# Strangers.


@pytest.mark.parametrize("port", ["port", "worker_port"])
@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n\r\n{"action":"enq","job":{"module":"Echo","time":0}}\n',
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b'\n{"action":"enq","job":{"module":"Echo","time":0}}\n',
        b'[{"action":"enq"}]\n',
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x00",
        b"\x93GV2",
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else value,
)
def test_a_stranger_is_closed_without_a_word_and_nothing_runs(house: House, port: str, request_: bytes) -> None:
    before = house.live()
    with Raw(getattr(house, port)) as raw:
        raw.send(request_)
        assert raw.read_to_end(5) == b""
    assert house.live() == before


def test_lines_on_the_port_for_workers_are_closed(house: House) -> None:
    with Raw(house.worker_port) as raw:
        raw.send(b'{"action":"stat","job":{"key":"k"}}\n')
        assert raw.read_to_end(5) == b""


def test_three_lines_of_rubbish_end_the_connection(house: House) -> None:
    with Lines(house.port) as lines:
        lines.send(b"{\n{]\n{\x00}\n" + b'{"action":"enq","job":{"module":"Echo","time":0}}\n')
        assert [lines.read()["response"] for _ in range(3)] == ["fail"] * 3
        assert lines.read_to_end() == b""


# Those who take and never give.


def test_a_client_that_never_reads_is_cut_off_and_others_are_served_meanwhile(house: House) -> None:
    big = house.canary.enq("Echo", params=bytes(200 << 10))
    big.wait(10)

    with Framed(house.port) as greedy:
        greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.socket.settimeout(0.2)
        number = 0
        started = time.monotonic()
        closed = False
        while not closed and time.monotonic() - started < 12:
            stat = codec.item(m.Stat(None, uuid.UUID(big.id).bytes))
            data = b"".join(greedy.caller.ask(Kind.STAT, [stat])[1] for _ in range(50))
            try:
                with contextlib.suppress(TimeoutError):
                    greedy.socket.sendall(data)
            except OSError:
                closed = True
            number += 1
            house.check()
        assert closed
    assert "does not read" in house.server.log


def test_more_connections_than_one_peer_may_have_are_told_busy(house: House) -> None:
    taken: list[Framed] = []
    refused: GivaliaError | None = None
    try:
        for _ in range(80):
            wire = Framed(house.port, hello=False)
            taken.append(wire)
            wire.send(wire.caller.hello("one more"))
            (answer,) = answers(wire.read())
            if isinstance(answer, GivaliaError):
                refused = answer
                assert wire.read_to_end() == b""
                break
        assert isinstance(refused, Busy)
        assert refused.retry_after > 0
        with Raw(house.port) as raw:
            raw.send(b'{"action":"stat","job":{"key":"k"}}\n')
            assert raw.read_to_end(5) == b""
        house.check()
    finally:
        for wire in taken:
            wire.socket.close()
    await_true(lambda: house.canary.info()["connections"] < 10, "they are counted no more")
    with Framed(house.port) as wire:
        assert wire.ask(Kind.INFO, m.Info())


def test_none_of_it_has_cost_the_server_memory_or_connections(house: House) -> None:
    await_true(lambda: house.canary.info()["connections"] <= 2, "all others are gone")
    assert house.process.memory_info().rss - house.rss < RSS_GROWTH_MAX
    assert house.process.num_fds() < 40
    assert "Traceback" not in house.server.log


FLOOD = """
import sys, threading, os
import msgpack, socket
port, count = int(sys.argv[1]), int(sys.argv[2])
from givalia_core.protocol.caller import Caller
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Enq, Kind
caller = Caller()
data = caller.hello("flood")
data += b"".join(caller.ask(Kind.ENQ, [item(Enq(os.urandom(16), "Flood", 600_000_000))])[1] for _ in range(count))
wire = socket.create_connection(("127.0.0.1", port))
def drain():
    while wire.recv(1 << 20):
        pass
threading.Thread(target=drain, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
wire.sendall(data)
print("sent", flush=True)
sys.stdin.readline()
"""


def _timed(waits: list[float], ask: Callable[[], T]) -> T:
    """Return the answer to one request, and the time it took."""
    started = time.monotonic()
    answer = ask()
    waits.append(time.monotonic() - started)
    return answer


def test_no_canary_waits_for_a_second_while_five_connections_flood_the_server(house: House) -> None:
    """Each sends twenty thousand commands as fast as the server takes them."""
    command = [str(house.rig.installed.python), "-c", FLOOD, str(house.port), "20000"]
    floods = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=house.rig.environ)
        for _ in range(5)
    ]
    waits: list[float] = []
    try:
        for flood in floods:
            assert flood.stdout is not None
            assert flood.stdout.readline() == "ready\n"
        for flood in floods:
            assert flood.stdin is not None
            flood.stdin.write("\n")
            flood.stdin.flush()
        started = time.monotonic()
        flooded = 0
        while flooded < 90_000:
            assert time.monotonic() - started < 30
            job = _timed(waits, lambda: house.canary.enq("Canary", time=600))
            _timed(waits, job.stat)
            flooded = _timed(waits, house.canary.info)["jobs"].get("Flood", {}).get("waiting", 0)
    finally:
        for flood in floods:
            flood.kill()
            flood.communicate()
    assert waits
    assert max(waits) < CANARY_S


def test_no_canary_waits_for_a_second_while_connections_list_in_vain(house: House) -> None:
    """Each listing looks at thousands of jobs, and admits none."""
    house.canary.enq_many([{"module": "Waiting", "time": 600} for _ in range(20_000)])
    wires = [Framed(house.port) for _ in range(10)]
    waits: list[float] = []
    try:
        for number, wire in enumerate(wires):
            for each in range(8):
                wire.begin(Kind.LIST, m.List(module=f"Nobody{number}.{each}"))
        for _ in range(50):
            _timed(waits, lambda: house.canary.enq("Canary", time=600))
            _timed(waits, house.canary.info)
            _timed(waits, house.canary.modules)
        for wire in wires:
            assert [len(answers(wire.read())[0]) for _ in range(8)] == [2] * 8  # Each says where it goes on.
    finally:
        for wire in wires:
            wire.socket.close()
    assert max(waits) < CANARY_S
