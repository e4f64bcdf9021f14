"""With -d a program goes to the background, prints its PID when it serves, and writes its log to a file."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat

import psutil
import pytest
from system_rig import Rig, free_port
from waits import await_true

from givalia_core import Client


def _end(pid: int) -> None:
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGTERM)
    await_true(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, f"the end of {pid}")


def test_a_server_prints_its_pid_once_its_ports_are_open_and_logs_to_a_file(rig: Rig) -> None:
    port, worker_port = free_port(), free_port()

    done = rig.run("givalia-server", "-d", "-p", port, "-w", worker_port)
    pid = rig.own_daemon(int(done.stdout))

    for each in (port, worker_port):
        socket.create_connection(("127.0.0.1", each), timeout=1).close()
    assert done.returncode == 0
    with Client("127.0.0.1", port) as client:
        assert client.info()["pid"] == pid
        assert client.info()["store"]["url"] == f"sqlite://{rig.folder}/state/givalia/queue.db"
    log = rig.folder / "state" / "givalia" / "givalia-server.log"
    await_true(lambda: "listening on" in log.read_text(), "the log file")
    assert os.getsid(pid) == pid
    _end(pid)
    await_true(lambda: "stopped" in log.read_text(), "the last line of the log file")


def test_a_worker_prints_its_pid_once_it_is_connected(rig: Rig) -> None:
    server = rig.start_server()
    log = rig.folder / "worker.log"

    done = rig.run("givalia-worker", "--daemon", "-w", server.worker_port, "-n", "behind", "--log-file", log)
    pid = rig.own_daemon(int(done.stdout))

    (worker,) = rig.client().workers()
    assert (worker["name"], worker["pid"]) == ("behind", pid)
    assert rig.client().enq("Echo", params=1).wait(10) == 1
    _end(pid)
    assert "connected to" in log.read_text()


def test_files_that_a_server_makes_are_for_its_owner_alone(rig: Rig) -> None:
    done = rig.run("givalia-server", "-d", "-p", 0, "-w", 0)
    pid = rig.own_daemon(int(done.stdout))

    folder = rig.folder / "state" / "givalia"
    for path in (folder, *folder.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    _end(pid)


def test_a_folder_for_the_log_that_cannot_be_made_is_said_with_a_code(rig: Rig) -> None:
    done = rig.run("givalia-server", "-d", "-p", 0, "-w", 0, XDG_STATE_HOME="/proc/nowhere")

    assert done.returncode == 78
    assert re.search("SETTINGS_INVALID: log_file is a file .*/proc/nowhere/.*--log-file names another one", done.stderr)


def test_what_cannot_start_in_the_background_says_why_and_fails(rig: Rig) -> None:
    server = rig.start_server()

    done = rig.run("givalia-server", "-d", "-p", server.port, "-w", 0, "--store", "memory:")

    assert done.returncode == 69
    assert done.stdout == ""
    log = rig.folder / "state" / "givalia" / "givalia-server.log"
    assert str(log) in done.stderr
    assert "in use" in log.read_text()


@pytest.mark.parametrize("flags", [("-dp", "0"), ("--daem", "-p", "0")])
def test_the_flag_however_it_is_written_starts_one_process(rig: Rig, flags: tuple[str, ...]) -> None:
    """`-dp 0` is `-d -p 0`. Each must start one server, not one that starts one that starts one."""
    starting = rig.start("givalia-server", *flags, "-w", 0, "--store", "memory:")
    first = psutil.Process(starting.pid)
    chain = [first]
    try:
        await_true(lambda: not starting.is_alive or len(first.children(recursive=True)) > 2, "the PID")
        assert not starting.is_alive, "it starts itself again and again"
        assert starting.wait() == 0
        rig.own_daemon(int(starting.out))
    finally:
        if starting.is_alive:
            # Stopped from the first on, so that none of them can start another while they are ended.
            chain += first.children(recursive=True)
            for process in chain:
                process.suspend()
            chain += [process for process in first.children(recursive=True) if process not in chain]
            for process in chain:
                process.kill()


def test_the_background_runs_what_is_installed_whatever_the_folder_holds(rig: Rig) -> None:
    (rig.folder / "gevent.py").write_text("raise SystemExit('the wrong gevent')\n")

    done = rig.run("givalia-server", "-d", "-p", 0, "-w", 0)

    assert done.returncode == 0, done.stderr
    rig.own_daemon(int(done.stdout))
