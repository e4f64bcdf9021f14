"""A port in use: the server names the process that has it."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from givalia_core import ports
from givalia_core.errors import AddressInUse
from givalia_core.server import Server
from givalia_core.settings import ServerSettings


def refusal(server: Server) -> tuple[str, int, str]:
    """How a start is refused for a port: the code, the exit code, and the words."""
    with pytest.raises(OSError, match="in use") as refused:
        server.start()
    told = refused.value
    assert isinstance(told, AddressInUse)
    return told.code, told.exit_code, str(told)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a command is named")
@pytest.mark.parametrize(("setting", "flag"), [("port", "-p"), ("worker_port", "-w")])
def test_port_in_use_is_refused_with_who_has_it(setting: str, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = replace(ServerSettings(port=0, worker_port=0, store="memory:", plugins=""), **{setting: number})

        code, exit_code, words = refusal(Server(settings))

    assert (code, exit_code) == ("ADDRESS_IN_USE", 69)
    assert f"127.0.0.1 port {number}, is in use" in words
    assert f"(pid {os.getpid()}) has it" in words
    assert f"with {flag}" in words


@pytest.mark.parametrize("setting", ["port", "worker_port"])
def test_a_server_whose_port_is_in_use_makes_no_store(setting: str, tmp_path: Path) -> None:
    store = tmp_path / "queue.db"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServerSettings(port=0, worker_port=0, store=f"sqlite://{store}", plugins="")

        code, _, _ = refusal(Server(replace(settings, **{setting: taken.getsockname()[1]})))

    assert code == "ADDRESS_IN_USE"
    assert list(tmp_path.iterdir()) == []


def test_holder_that_cannot_be_seen_is_left_to_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_PROC", tmp_path)

    error = ports.in_use("127.0.0.1", 12322, "clients", "-p")

    assert ":12322" in str(error)
    assert "as root, says who has it" in str(error)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/opt/givalia/bin/python3", "-P", "/opt/givalia/bin/givalia-server", "-p", "1"], "givalia-server"),
        (["nginx: master process"], "nginx: master process"),
        (["/usr/bin/python3.11"], "python3.11"),
    ],
)
def test_process_is_named_after_what_it_runs(words: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_bytes("\0".join(words).encode() + b"\0")

    assert ports._name(tmp_path) == expected
