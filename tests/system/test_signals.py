"""The effects of SIGTERM, SIGINT, SIGHUP and SIGUSR1 on server and worker, with and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
from system_rig import Rig, lines_of
from system_wire import Framed, answers, enq
from waits import await_true

from givalia_core import ShuttingDown
from givalia_core.cli import requests
from givalia_core.protocol.messages import Kind
from givalia_core.views import text_id


class Flood:
    """One connection that asks for jobs faster than they are answered, until one is refused: some are always under way."""

    def __init__(self, port: int) -> None:
        self.wire = Framed(port)
        self.acknowledged: list[str] = []
        self.refused: list[BaseException] = []
        self._sending = threading.Thread(target=self._send, daemon=True)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._sending.start()
        self._reading.start()

    def _send(self) -> None:
        try:
            while not self.refused:
                self.wire.begin(Kind.ENQ, enq(delay_us=600_000_000))
        except OSError:
            pass

    def _read(self) -> None:
        try:
            while True:
                (told,) = answers(self.wire.read())
                if isinstance(told, tuple):
                    self.acknowledged.append(text_id(told[0]))
                else:
                    self.refused.append(told)
        except (OSError, AssertionError):
            pass

    def end(self) -> None:
        """Return the time at which the server is gone."""
        self._reading.join(10)
        self.wire.socket.close()
        self._sending.join(10)


_STOPPED_BY_ITS_LOG: Final = """
import logging, os, signal

def stop(record):
    if record.getMessage().startswith("listening on"):
        os.kill(os.getpid(), signal.SIGTERM)
    return True

logging.getLogger("givalia.server").addFilter(stop)
"""


def test_a_server_drains_if_asked_to_stop_at_the_line_that_says_it_listens(rig: Rig) -> None:
    server = rig.start_patched_server(_STOPPED_BY_ITS_LOG)

    assert server.wait(12) == 0
    assert "SIGTERM: draining" in server.log


def test_a_server_that_is_asked_to_stop_refuses_new_jobs_and_keeps_the_others(rig: Rig) -> None:
    server = rig.start_server()
    flood = Flood(server.port)
    await_true(lambda: len(flood.acknowledged) > 500, "jobs are acknowledged")
    started = time.monotonic()

    server.send(signal.SIGTERM)

    assert server.wait(12) == 0
    assert time.monotonic() - started < 10
    flood.end()
    assert flood.refused
    assert {type(error) for error in flood.refused} == {ShuttingDown}
    assert {error.code for error in flood.refused} == {"SHUTTING_DOWN"}  # type: ignore[attr-defined]
    rig.start_server()
    client = rig.client()
    assert {status.id for status in client.list("waiting")} == set(flood.acknowledged)


def test_an_idle_server_stops_at_once(rig: Rig) -> None:
    server = rig.start_server()
    rig.client().enq("Echo", time=600, key="kept")
    started = time.monotonic()

    server.send(signal.SIGINT)

    assert server.wait(5) == 0
    assert time.monotonic() - started < 2
    rig.start_server()
    assert rig.client().stat("kept").state == "waiting"


def test_a_second_signal_ends_a_server_that_still_drains(rig: Rig) -> None:
    """A plugin or an answer that takes its time must not keep anybody from ending the process; nothing is lost by it."""
    server = rig.start_patched_server(
        "import givalia_core.server.app as app, gevent\n"
        "stop = app.Server.stop\n"
        "def slowly(self):\n"
        "    self.drain()\n"
        "    gevent.sleep(30)\n"
        "app.Server.stop = slowly\n"
    )
    job = rig.client().enq("Echo", time=600)
    server.send(signal.SIGTERM)
    server.await_log("draining")
    server.send(signal.SIGINT)  # A moment later it is the same request.
    time.sleep(requests.SAME_REQUEST_S)  # The time after which another signal is another request.
    assert server.is_alive
    started = time.monotonic()

    server.send(signal.SIGTERM)

    assert server.wait(5) == 0
    assert time.monotonic() - started < 3
    rig.server = None
    rig.start_server()
    assert rig.client().stat(id=job.id).state == "waiting"


def test_running_jobs_are_settled_over_a_restart_of_the_server(rig: Rig) -> None:
    server = rig.start_server()
    rig.start_worker()
    file = rig.folder / "stays"
    job = rig.client().enq("Stay", params={"file": str(file), "seconds": 1.5})
    await_true(lambda: lines_of(file), "the job runs")

    assert server.stop() == 0
    rig.start_server()

    client = rig.client()
    assert client.wait(job.id, 20) == 1
    assert len(lines_of(file)) == 1


def test_a_worker_that_is_asked_to_stop_lets_its_job_end_and_reports_it(rig: Rig) -> None:
    rig.start_server()
    worker = rig.start_worker()
    client = rig.client()
    file = rig.folder / "stays"
    job = client.enq("Stay", params={"file": str(file), "seconds": 1})
    await_true(lambda: lines_of(file), "the job runs")

    worker.send(signal.SIGTERM)
    worker.await_log("draining")
    await_true(lambda: client.info()["workers"] == 0 or next(iter(client.workers()))["capacity"] == 0, "it takes no more")
    late = client.enq("Echo")

    assert worker.wait(10) == 0
    status = job.stat()
    assert (status.state, status.result, status.attempts) == ("done", 1, 1)
    assert late.stat().state == "ready"


def test_a_job_that_outlasts_the_grace_of_its_worker_fails_and_runs_again(rig: Rig) -> None:
    rig.start_server("--backoff", "0")
    worker = rig.start_worker("--grace", "0.5")
    client = rig.client()
    file = rig.folder / "stays"
    job = client.enq("StayOnce", params={"file": str(file), "seconds": 600})
    await_true(lambda: lines_of(file), "the job runs")

    assert worker.stop(8) == 0
    status = job.stat()
    assert status.state in ("waiting", "ready")
    assert status.attempts == 1
    assert "shutdown" in (status.error or "")
    rig.start_worker()

    assert job.wait(10) == 2


def test_a_second_signal_ends_a_worker_at_once(rig: Rig) -> None:
    rig.start_server()
    worker = rig.start_worker("--grace", "600")
    file = rig.folder / "stays"
    rig.client().enq("Stay", params={"file": str(file), "seconds": 600})
    await_true(lambda: lines_of(file), "the job runs")
    worker.send(signal.SIGTERM)
    worker.await_log("draining")
    worker.send(signal.SIGINT)  # A moment later it is the same request.
    time.sleep(requests.SAME_REQUEST_S)  # The time after which another signal is another request.
    assert worker.is_alive
    started = time.monotonic()

    worker.send(signal.SIGINT)

    assert worker.wait(5) != 0
    assert time.monotonic() - started < 2


def _write(config: Path, level: str, retain: object) -> None:
    config.write_text(f'[server]\nlog_level = "{level}"\nretain = {retain}\n[worker]\nlog_level = "{level}"\n')


def test_sighup_lets_a_server_read_its_settings_again(rig: Rig) -> None:
    config = rig.folder / "settings.toml"
    _write(config, "info", 500)
    server = rig.start_server("--config", config)
    client = rig.client()
    assert client.info()["defaults"]["retain_us"] == 500_000_000

    _write(config, "error", 700)
    server.send(signal.SIGHUP)
    await_true(lambda: client.info()["defaults"]["retain_us"] == 700_000_000, "the new retention")
    assert "settings read again" not in server.log  # It was said at the level that is no longer logged.
    _write(config, "info", 800)
    server.send(signal.SIGHUP)
    server.await_log("settings read again")
    assert client.info()["defaults"]["retain_us"] == 800_000_000

    _write(config, "info", '"for ever"')
    server.send(signal.SIGHUP)
    server.await_log("the settings are as they were")
    assert client.info()["defaults"]["retain_us"] == 800_000_000
    assert client.enq("Echo").stat().state == "ready"


def test_sighup_lets_a_worker_read_its_log_settings_again(rig: Rig) -> None:
    config = rig.folder / "settings.toml"
    _write(config, "info", 500)
    rig.start_server()
    worker = rig.start_worker("--config", config)

    worker.send(signal.SIGHUP)
    worker.await_log("settings read again")
    config.write_text("no toml at all")
    worker.send(signal.SIGHUP)
    worker.await_log("the settings are as they were")

    assert rig.client().enq("Echo", params="goes on").wait(10) == "goes on"


def test_a_reload_names_the_settings_that_need_a_restart(rig: Rig) -> None:
    config = rig.folder / "settings.toml"
    config.write_text("[server]\nlease = 30\n")
    server = rig.start_server("--config", config)
    worker = rig.start_worker("--config", config)

    config.write_text('[server]\nlease = 60\nplugins = ""\nretain = 700\n[worker]\nname = "other"\nwatch = true\n')
    for program, names in ((server, "lease, plugins"), (worker, "name, watch")):
        program.send(signal.SIGUSR1)
        program.await_log(f"WARNING .*: settings read again; changed, but only a restart takes them over: {names}\\n")

    assert rig.client().info()["defaults"]["retain_us"] == 700_000_000


STAYS = ("Stay", "StayApart")


def _staying(rig: Rig, seconds: float) -> list[Any]:
    """Jobs of both isolations that run for a while, then write to both of their streams."""
    files = {module: rig.folder / module for module in STAYS}
    jobs = [rig.client().enq(module, params={"file": str(file), "seconds": seconds}) for module, file in files.items()]
    await_true(lambda: all(lines_of(file) for file in files.values()), "both jobs run")
    return jobs


def _outcomes(jobs: list[Any]) -> list[tuple[str, int]]:
    return [(status.state, status.attempts) for status in (job.stat() for job in jobs)]


def test_signals_for_all_processes_of_a_worker_fail_no_job(rig: Rig) -> None:
    """`systemctl kill`, a service manager that kills a whole group, and Ctrl+C send them so."""
    rig.start_server()
    worker = rig.start_worker()
    jobs = _staying(rig, 1.5)
    processes = [worker.pid, *(each.pid for each in psutil.Process(worker.pid).children(recursive=True))]
    assert len(processes) >= 4

    for number in (signal.SIGHUP, signal.SIGUSR1):
        for pid in processes:
            os.kill(pid, number)
    worker.await_log("settings read again", count=2)
    os.killpg(worker.pid, signal.SIGTERM)
    for pid in processes[1:]:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)

    assert worker.wait(15) == 0
    assert _outcomes(jobs) == [("done", 1)] * 2


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests themselves may be run by `nohup`.


class OnTerminal:
    """A program that has a terminal of its own, which can be closed under it."""

    def __init__(self, rig: Rig, program: str, *flags: object) -> None:
        self._terminal, its_end = pty.openpty()
        self.process = subprocess.Popen(
            [rig.installed.program(program), *map(str, flags)], env=rig.environ, stdin=its_end, stdout=its_end, stderr=its_end,
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(its_end)
        self.seen = b""

    def await_seen(self, words: bytes) -> None:
        """Read until the terminal has shown these words."""
        while words not in self.seen:
            self.seen += os.read(self._terminal, 65_536)

    def close(self) -> None:
        os.close(self._terminal)


def test_a_terminal_that_is_closed_lets_server_and_worker_drain(rig: Rig) -> None:
    server = rig.start_server()
    worker = OnTerminal(rig, "givalia-worker", "-w", server.worker_port)
    try:
        worker.await_seen(b"connected to")
        worker.process.send_signal(signal.SIGHUP)
        worker.await_seen(b"settings read again")  # The terminal is there.
        jobs = _staying(rig, 1.5)
        other = OnTerminal(rig, "givalia-server", "-p", 0, "-w", 0, "--store", "memory:")
        other.await_seen(b"listening on")

        worker.close()
        other.close()

        assert (worker.process.wait(20), other.process.wait(20)) == (0, 0)
        assert _outcomes(jobs) == [("done", 1)] * 2
    finally:
        worker.process.kill()
        worker.process.wait()


def test_a_pipe_that_is_cut_fails_no_job(rig: Rig) -> None:
    server = rig.start_server()
    command = [rig.installed.program("givalia-worker"), "-w", str(server.worker_port)]
    with subprocess.Popen(command, env=rig.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as worker:
        try:
            assert worker.stdout is not None
            await_true(lambda: rig.client().info()["workers"], "it is connected")
            worker.stdout.close()

            jobs = _staying(rig, 0.1)
            jobs += [rig.client().enq(module, max_attempts=1) for module in ("Chatty", "ChattyApart")]
            for job in jobs:
                job.wait(20)
            worker.send_signal(signal.SIGTERM)

            assert worker.wait(20) == 0
            assert _outcomes(jobs) == [("done", 1)] * 4
        finally:
            worker.kill()
