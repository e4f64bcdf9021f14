"""Threads that share a client and are cut short at any instruction, under load, as a recording proxy sees them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from system_proxy import Proxy
from system_rig import Rig

from givalia_core import Client, tcp
from givalia_core.protocol import codec, frames, values
from givalia_core.protocol.messages import Kind

SEED = int(os.environ.get("GIVALIA_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
CUTS = int(os.environ.get("GIVALIA_CUTS", "150"))
THREADS = 6
CUT_WITHIN_S = 0.1

# A call that is cut before it has put down its socket leaves that to Python, which closes it with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # Here, and not during somebody else's test.


class Cut(BaseException):
    """Cuts a call short."""


class Late(TimeoutError):
    """The same, of a kind that the system raises, too."""


class Recorder(Proxy):
    """Hands everything on, and keeps the key and the params of each job that was asked for, by connection."""

    def __init__(self, port: int) -> None:
        self.asked: list[tuple[int, str, Any]] = []
        self.unreadable: list[object] = []
        self._connections = 0
        super().__init__(port)

    def ask(self, near: socket.socket, far: socket.socket, asked: dict[int, Any]) -> None:
        number = self._connections = self._connections + 1
        reader, start = frames.FrameReader(), b""
        with contextlib.suppress(OSError):
            while data := near.recv(16_384):
                far.sendall(data)
                if len(start) < len(frames.MAGIC):
                    start += data
                    data = start[len(frames.MAGIC) :]
                for frame in reader.feed(data):
                    self._keep(number, frame)
        self.cut(near, far)

    def _keep(self, number: int, frame: frames.Frame | frames.Unreadable) -> None:
        try:
            assert isinstance(frame, frames.Frame)
            for fields, payload in frame.items:
                message = codec.decode(Kind(frame.kind), fields, payload)
                if frame.kind == Kind.ENQ:
                    self.asked.append((number, message.key, values.unpack(message.payload)))
        except Exception as error:
            self.unreadable.append((frame, error))

    def answer(self, far: socket.socket, near: socket.socket, asked: dict[int, Any]) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                near.sendall(data)
        self.cut(near, far)


class Cutter:
    """Throws exceptions into threads while they are in the middle of something."""

    def __init__(self) -> None:
        self.cuts = 0
        self._lock = threading.Lock()
        self._targets: dict[int, tuple[float, type[BaseException]]] = {}
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.001):
            with self._lock:
                for thread, (at, kind) in list(self._targets.items()):
                    if at < time.monotonic():
                        del self._targets[thread]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))

    def stop(self) -> None:
        self._is_over.set()

    @contextlib.contextmanager
    def cutting(self, chance: random.Random) -> Any:
        """Cut the block short after a while, unless it ends before."""
        try:
            try:
                with self._lock:
                    after_s = chance.random() * CUT_WITHIN_S
                    self._targets[threading.get_ident()] = time.monotonic() + after_s, chance.choice((Cut, Late))
                yield
            finally:
                with self._lock:
                    self._targets.pop(threading.get_ident(), None)
            for _ in range(200):  # What was thrown at the last moment is raised here.
                pass
        except (Cut, Late):
            self.cuts += 1


def test_threads_that_are_cut_short_leave_nothing_foreign_on_the_wire(shared_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)  # So that many a frame is cut in the middle.

    monkeypatch.setattr(tcp, "tune", tune)
    proxy, cutter = Recorder(shared_rig.start_server().port), Cutter()
    asked: dict[str, str] = {}

    def enq(key: str, params: str) -> None:
        asked[key] = params
        job = client.enq("Nobody", key=key, params=params, time=3_600, if_exists="keep")
        assert job.stat().key == key, SEED

    def work(lane: int) -> None:
        chance = random.Random(SEED * THREADS + lane)
        number = 0
        while cutter.cuts < CUTS:
            number += 1
            key = f"{lane} {number}"
            with cutter.cutting(chance):
                enq(key, key * chance.choice((1, 40_000)))
            enq(f"after {key}", key)

    with Client("127.0.0.1", proxy.port) as client, ThreadPoolExecutor(THREADS + 1) as pool:
        cutting = pool.submit(cutter.run)
        try:
            for done in [pool.submit(work, lane) for lane in range(THREADS)]:
                done.result()
        finally:
            cutter.stop()
        cutting.result()
        assert not client._transport.delivery.requests
    proxy.close()

    print(f"seed {SEED}: {cutter.cuts} cuts, {len(proxy.asked)} jobs asked for")
    assert proxy.unreadable == [], SEED
    assert all(asked[key] == params for _, key, params in proxy.asked), SEED
    over: dict[str, int] = {}  # The connection by which the call after this one went.
    for connection, key, _ in proxy.asked:
        if key.startswith("after "):
            over.setdefault(key.removeprefix("after "), connection)
        else:
            assert key not in over or connection < over[key], (SEED, key)
