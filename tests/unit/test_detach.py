"""A fork replaces the parent's sockets by a silent one."""

from __future__ import annotations

import socket

import pytest

from givalia_core import forks


def test_a_detached_socket_is_out_of_reach_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    silent: list[socket.socket] = []
    monkeypatch.setattr(forks, "_silent", silent)
    ours, theirs = socket.socketpair()
    theirs.sendall(b"for the parent")

    forks.detach(ours.fileno())

    with pytest.raises(BlockingIOError):  # A loop that shares its epoll with the parent's reads here for what arrives there.
        ours.recv(10)
    for each in (ours, theirs, *silent):
        each.close()
