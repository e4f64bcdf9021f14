"""Messages of server and worker to the service manager that started them; the test plays the manager."""

from __future__ import annotations

import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system_rig import Rig, free_port, lines_of
from waits import await_true

Facts = dict[str, str]

WATCHDOG = {"WATCHDOG_USEC": "600000"}  # A sign of life every 0.3 s.


class Manager:
    """A datagram socket, and what arrived there."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.environ = {"NOTIFY_SOCKET": address}

    def close(self) -> None:
        self._socket.close()

    def next(self, seconds: float = 20.0) -> Facts:
        """The facts of the next message; none if none comes."""
        self._socket.settimeout(seconds)
        try:
            message = self._socket.recv(4096).decode()
        except TimeoutError:
            return {}
        return dict(line.split("=", 1) for line in message.split("\n"))

    def await_fact(self, name: str, seconds: float = 20.0) -> Facts:
        """The next message that says this, past others."""
        deadline = time.monotonic() + seconds
        while facts := self.next(max(deadline - time.monotonic(), 0.01)):
            if name in facts:
                return facts
        raise AssertionError(f"{name} was not said within {seconds:g} s")

    def forget(self) -> None:
        """Discard all messages so far."""
        while self.next(0.01):
            pass


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def _cannot_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def test_a_server_is_ready_when_its_ports_are_open(rig: Rig, manager: Manager) -> None:
    port, worker_port = free_port(), free_port()

    rig.start("givalia-server", "-p", port, "-w", worker_port, "--store", "memory:", **manager.environ)

    facts = manager.next()
    assert not _cannot_connect(port)
    assert not _cannot_connect(worker_port)
    assert facts == {"READY": "1", "STATUS": f"listening: clients {port}, workers {worker_port}"}


def test_a_server_that_cannot_open_its_ports_is_never_ready(rig: Rig, manager: Manager) -> None:
    taken = rig.start_server()

    refused = rig.run("givalia-server", "-p", taken.port, "-w", 0, "--store", "memory:", **manager.environ)

    assert refused.returncode == 69
    assert manager.next(0.01) == {}


def test_an_abstract_socket_will_do(rig: Rig) -> None:
    manager = Manager(f"@givalia-{uuid.uuid4()}")

    server = rig.start_server(**manager.environ)

    assert manager.next()["READY"] == "1"
    assert server.stop() == 0
    assert manager.next()["STOPPING"] == "1"
    manager.close()


def test_a_server_gives_signs_of_life_until_its_process_is_held(rig: Rig, manager: Manager) -> None:
    server = rig.start_server(**manager.environ, **WATCHDOG)
    manager.await_fact("READY")

    for _ in range(4):
        assert manager.next() == {"WATCHDOG": "1"}

    server.send(signal.SIGSTOP)
    manager.forget()
    assert manager.next(1.5) == {}
    server.send(signal.SIGCONT)
    assert manager.next() == {"WATCHDOG": "1"}


def _hang(rig: Rig, how: str) -> Callable[[], None]:
    """Start a server whose turns do this from the moment on that the function is called."""
    mark = rig.folder / "hang"
    rig.start_patched_server(
        "import time, pathlib, gevent, givalia_core.server.app as app\n"
        "app.ROUND_US = 1_200_000\n"
        "turn = app.turn.turn\n"
        "def hanging(*args):\n"
        f"    if pathlib.Path({str(mark)!r}).exists():\n"
        f"        {how}\n"
        "    return turn(*args)\n"
        "app.turn.turn = hanging\n"
    )
    return mark.touch


@pytest.mark.parametrize("how", ["time.sleep(600)", "gevent.sleep(600)"])
def test_a_server_whose_queue_no_longer_turns_gives_no_sign_of_life(rig: Rig, manager: Manager, how: str) -> None:
    """One holds the whole hub, the other only the loop of the queue: sockets are still read, and nothing comes of it."""
    rig.environ |= manager.environ | WATCHDOG
    hang = _hang(rig, how)
    manager.await_fact("WATCHDOG")

    hang()

    await_true(lambda: manager.next(2.0) == {}, "silence")
    assert rig.server is not None
    assert rig.server.is_alive


def test_a_server_that_waits_for_a_shared_store_is_alive(rig: Rig, manager: Manager) -> None:
    rig.environ |= manager.environ | WATCHDOG
    hang = _hang(rig, "args[1].is_shared = True; gevent.sleep(600)")
    manager.await_fact("WATCHDOG")

    hang()
    # For 4 s, longer than the turns of a healthy queue need, and than it takes to be known as stuck.
    for _ in range(13):
        assert manager.next() == {"WATCHDOG": "1"}


def test_a_server_says_when_it_reloads_and_when_it_stops(rig: Rig, manager: Manager) -> None:
    config = rig.folder / "settings.toml"
    config.write_text("[server]\nretain = 500\n")
    server = rig.start_server("--config", config, **manager.environ)
    manager.await_fact("READY")
    before_us = time.monotonic_ns() // 1000

    server.send(signal.SIGHUP)
    reloading, ready = manager.next(), manager.next()

    assert reloading["RELOADING"] == "1"
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert ready == {"READY": "1", "STATUS": "settings read again"}

    config.write_text("[server]\nretain = 'for\\never'\n")
    server.send(signal.SIGHUP)
    assert manager.next()["RELOADING"] == "1"
    assert "the settings are as they were" in manager.next()["STATUS"]

    server.send(signal.SIGTERM)
    assert manager.next() == {"STOPPING": "1", "STATUS": "draining"}
    assert server.wait() == 0


def test_a_server_outlives_a_manager_that_does_not_listen(rig: Rig) -> None:
    server = rig.start_server(NOTIFY_SOCKET=str(rig.folder / "nobody"), **WATCHDOG)

    server.await_log("the service manager cannot be reached")
    assert rig.client().enq("Echo").stat().state == "ready"
    assert server.stop() == 0
    assert server.log.count("cannot be reached") == 1


def test_a_worker_is_ready_when_it_is_connected_for_the_first_time(rig: Rig, manager: Manager) -> None:
    port = free_port()
    worker = rig.start("givalia-worker", "-w", port, **manager.environ)
    worker.await_log("not connected")
    worker.send(signal.SIGHUP)
    worker.await_log("settings read again")
    assert manager.next(0.01) == {}

    server = rig.start_server("-w", port)
    assert manager.next(30) == {"READY": "1", "STATUS": "connected"}

    worker.send(signal.SIGHUP)
    assert manager.next()["RELOADING"] == "1"
    assert manager.next()["READY"] == "1"
    worker.send(signal.SIGTERM)
    assert manager.next()["STOPPING"] == "1"
    assert worker.wait() == 0
    assert server.is_alive


def test_a_worker_gives_signs_of_life_while_a_job_computes(rig: Rig, manager: Manager) -> None:
    rig.start_server()
    worker = rig.start_worker(**manager.environ, WATCHDOG_USEC="1000000")
    file = rig.folder / "spins"
    rig.client().enq("Spin", params={"file": str(file), "seconds": 4})
    await_true(lambda: lines_of(file), "the job runs")
    manager.forget()
    started = time.monotonic()

    for _ in range(3):
        assert manager.next() == {"WATCHDOG": "1"}

    assert time.monotonic() - started < 3.5
    assert worker.stop() == 0
