"""A proxy that loses the bytes of existing connections, though TCP takes them, and a slow proxy.

This needs no root. A network that really drops, and so loses the acknowledgements too, is in `test_silent_network`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from system_proxy import Proxy
from system_rig import Rig, ServerProcess, lines_of
from waits import await_true

COMMAND_S = 7.0  # Within which a command is answered over a new connection,
WAIT_S = 11.0  # and a wait.
BUSY_S = 4.0  # A machine that is busy with other things may take so much longer.
CHUNK_BYTES = 16 << 10


class SilentProxy(Proxy):
    """Once told to, it loses whatever comes on the connections that it has; those that are made afterwards are good."""

    def __init__(self, port: int, bytes_per_s: int | None = None) -> None:
        self._bytes_per_s = bytes_per_s  # That clients may send; None: as much as they like.
        self._pause = threading.Event()
        self._lost: set[int] = set()
        self.connections: list[dict[int, Any]] = []
        super().__init__(port)
        if bytes_per_s is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK_BYTES)

    def fall_silent(self) -> None:
        """Lose everything on each connection that is there."""
        self._lost.update(map(id, self.connections))

    def ask(self, near: socket.socket, far: socket.socket, asked: dict[int, Any]) -> None:
        self.connections.append(asked)
        with contextlib.suppress(OSError):
            while data := near.recv(CHUNK_BYTES):
                if id(asked) not in self._lost:
                    far.sendall(data)
                if self._bytes_per_s is not None:
                    self._pause.wait(len(data) / self._bytes_per_s)
        self.cut(near, far)

    def answer(self, far: socket.socket, near: socket.socket, asked: dict[int, Any]) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                if id(asked) not in self._lost:
                    near.sendall(data)
        if id(asked) not in self._lost:
            self.cut(near, far)

    def close(self) -> None:
        self._pause.set()
        super().close()


@pytest.fixture
def server(rig: Rig) -> ServerProcess:
    return rig.start_server()


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[SilentProxy]:
    with contextlib.closing(SilentProxy(server.port)) as proxy:
        yield proxy


@pytest.fixture
def client(any_client: Any, proxy: SilentProxy) -> Iterator[Any]:
    with any_client("127.0.0.1", proxy.port) as client:
        client.info()
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_a_command_is_answered_over_a_new_connection(rig: Rig, proxy: SilentProxy, client: Any) -> None:
    proxy.fall_silent()
    began = time.monotonic()

    job = client.enq("Waits", time=600, key="k")

    assert time.monotonic() - began < COMMAND_S + BUSY_S
    assert [each.id for each in rig.client().list("waiting")] == [job.id]
    assert len(proxy.connections) == 2


def test_a_wait_hears_of_the_end_over_a_new_connection(
    rig: Rig, proxy: SilentProxy, client: Any, pool: ThreadPoolExecutor
) -> None:
    rig.start_worker()
    job = client.enq("Echo", params="heard", time=2)
    waiting = pool.submit(job.wait, 60)
    connection = getattr(client, "_inner", client)._transport.delivery.connection
    await_true(lambda: connection.waits, "the wait is sent")
    proxy.fall_silent()
    began = time.monotonic()

    assert waiting.result(30) == "heard"

    assert time.monotonic() - began < WAIT_S + BUSY_S
    assert len(proxy.connections) == 2


def test_a_worker_reports_over_a_new_connection_what_it_went_on_with(rig: Rig, server: ServerProcess) -> None:
    with contextlib.closing(SilentProxy(server.worker_port)) as proxy:
        worker = rig.start("givalia-worker", "-w", proxy.port)
        worker.await_log("connected to")
        file = rig.folder / "stays"
        job = rig.client().enq("Stay", params={"file": str(file), "seconds": 2})
        await_true(lambda: lines_of(file), "the job runs")
        proxy.fall_silent()
        began = time.monotonic()

        assert job.wait(60) == 1

        assert time.monotonic() - began - 2 < COMMAND_S + BUSY_S
        assert len(lines_of(file)) == 1
        assert job.stat().attempts == 1
        assert len(proxy.connections) == 2


def test_what_leaves_slowly_leaves_on_one_connection(any_client: Any, server: ServerProcess) -> None:
    with (
        contextlib.closing(SilentProxy(server.port, bytes_per_s=150_000)) as proxy,
        any_client("127.0.0.1", proxy.port) as client,
    ):
        began = time.monotonic()

        made = client.enq_many([{"module": "Waits", "time": 600, "params": bytes(450_000)} for _ in range(4)])

        assert time.monotonic() - began > 8
        assert len(made) == 4
        assert len(proxy.connections) == 1


BEFORE = """
from givalia_core.errors import BadRequest
from givalia_core.protocol import session
from givalia_core.protocol.messages import Kind

take = session.Session._take

def take_as_before(self, frame):
    if frame.kind != Kind.STAT or frame.items:
        return take(self, frame)
    if Kind.STAT in self._rules:
        return session.Asked(self._conn, frame.request, Kind.STAT, [], self._until_us)
    self._refuse(frame.request, BadRequest("STAT is not for this port"))
    return None

session.Session._take = take_as_before
"""


def test_a_server_of_the_version_before_answers_pings_too(any_client: Any, rig: Rig) -> None:
    server = rig.start_patched_server(BEFORE)
    with (
        contextlib.closing(SilentProxy(server.port)) as proxy,
        contextlib.closing(SilentProxy(server.worker_port)) as worker_proxy,
        any_client("127.0.0.1", proxy.port) as client,
    ):
        worker = rig.start("givalia-worker", "-w", worker_proxy.port)
        worker.await_log("connected to")

        assert client.enq("Echo", params="heard", time=11.5).wait(60) == "heard"

        assert len(proxy.connections) == 1
        assert len(worker_proxy.connections) == 1
