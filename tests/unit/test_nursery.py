"""The nursery: what it makes leads a group of its own, and nothing of it is left when it ends or the supervisor is gone."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from waits import await_true

from givalia_core.worker.processes.nursery import BORN, ENDED, FOR_SUPERVISOR, FORK, RECORD, ROLES, SIGNAL

PATIENCE_S = 30.0
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of what its children leave")

# The processes do what they are told over their connections, in place of their roles.
PROGRAM = """
import os, signal, socket, sys, time
from givalia_core.worker.attempt import child
from givalia_core.worker.processes import nursery

def act(channel, *_):
    sock = socket.socket(fileno=channel)
    exec(sock.recv(65_536).decode(), here := {**globals(), "sock": sock, "code": 0})
    return here["code"]

nursery._role = lambda role: act
exec(sys.argv[2])
nursery.main(int(sys.argv[1]))
"""
STAY = "\nwhile True: time.sleep(0.005)\n"
LEAVE_ORPHAN = """
if not os.fork():
    before = os.getpid()
    if not os.fork():
        while os.getppid() == before: time.sleep(0.005)
        sock.sendall(f"{os.getppid()}\\n".encode())
    os._exit(0)
os.wait()
"""


class Rig:
    """A nursery of which this test is the supervisor."""

    def __init__(self, first: str = "") -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(PATIENCE_S)
        self._others: list[tuple[int, int, int]] = []
        self._tickets = 0
        self._open = ExitStack()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()), first],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.setblocking(False)  # As gevent makes both ends.
        theirs.close()

    def send(self, what: int, a: int, b: int, *fds: int, cut: int = RECORD.size) -> None:
        """Send a command, in two pieces if it is to be cut."""
        data = RECORD.pack(what, a, b)
        socket.send_fds(self._sock, [data[:cut]], fds)
        if data[cut:]:
            await_true(lambda: not self._unread_bytes(), "the nursery has read the first piece", PATIENCE_S, 0.001)
            self._sock.sendall(data[cut:])

    def _unread_bytes(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def order(self, role: str = "job", cut: int = RECORD.size) -> tuple[int, socket.socket]:
        """Ask for a process; return the number of the order and the connection to the process."""
        ours, theirs = socket.socketpair()
        self._open.enter_context(ours)
        ours.settimeout(PATIENCE_S)
        self._tickets += 1
        with theirs, open(os.devnull) as nothing:  # noqa: PTH123
            self.send(FORK, self._tickets, ROLES.index(role), theirs.fileno(), nothing.fileno(), nothing.fileno(), cut=cut)
        return self._tickets, ours

    def make(self, code: str, role: str = "job") -> tuple[int, socket.socket]:
        """Make a process that runs this code; return its pid and the connection to it."""
        ticket, sock = self.order(role)
        pid = self.told(BORN, ticket)
        sock.sendall(code.encode())
        return pid, sock

    def told(self, what: int, a: int) -> int:
        """What the nursery says of this order or this process."""
        while True:
            for record in self._others:
                if record[:2] == (what, a):
                    self._others.remove(record)
                    return record[2]
            data = self._sock.recv(RECORD.size, socket.MSG_WAITALL)
            assert data, "the nursery has ended"
            self._others.append(RECORD.unpack(data))

    def exit_code(self, pid: int) -> int:
        return os.waitstatus_to_exitcode(self.told(ENDED, pid))

    def leave(self) -> None:
        """Be gone, as the supervisor."""
        self._sock.close()

    def close(self) -> None:
        """End the nursery; it ends the rest."""
        self.leave()
        self._open.close()
        try:
            self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()


Make = Callable[..., Rig]


@pytest.fixture
def nursery() -> Iterator[Make]:
    """Start nurseries."""
    with ExitStack() as opened:

        def start(first: str = "") -> Rig:
            rig = Rig(first)
            opened.callback(rig.close)
            return rig

        yield start


def lines(sock: socket.socket, count: int) -> list[str]:
    """So many lines that the process, or what it has started, has written."""
    data = b""
    while data.count(b"\n") < count:
        arrived = sock.recv(1_000)
        assert arrived, data
        data += arrived
    return data.decode().split()


def has_ended(sock: socket.socket) -> bool:
    """Wait until nobody has the other end of the connection."""
    while sock.recv(1_000):
        pass
    return True


def test_a_process_leads_a_group_of_its_own(nursery: Make) -> None:
    pid, sock = nursery().make("sock.sendall(f'{os.getpid()}\\n{os.getpgrp()}\\n{os.getppid()}\\n'.encode())" + STAY)

    me, group, parent = map(int, lines(sock, 3))

    assert (me, group) == (pid, pid)
    assert parent != os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a connection does not tell what its peer has read")
def test_a_command_may_come_in_pieces(nursery: Make) -> None:
    rig = nursery()

    ticket, _ = rig.order(cut=5)

    assert rig.told(BORN, ticket) > 0


def test_a_process_does_not_have_the_connection_of_its_nursery(nursery: Make) -> None:
    rig = nursery()

    pid, _ = rig.make("try: os.fstat(int(sys.argv[1]))\nexcept OSError: code = 6")

    assert rig.exit_code(pid) == 6


def test_a_process_that_cannot_be_made_is_told_and_its_files_are_closed(nursery: Make) -> None:
    rig = nursery("def no(): raise BlockingIOError\nnursery.os.fork = no")

    ticket, sock = rig.order()

    assert rig.told(BORN, ticket) == 0
    assert has_ended(sock)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("code = 3", 3, ""),
        ("sys.exit(4)", 4, ""),
        ("sys.exit('no such cart')", 70, ""),
        ("raise ValueError('no such cart')", 70, "ValueError: no such cart"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_the_end_of_a_process_is_told_with_its_status(nursery: Make, code: str, status: int, words: str) -> None:
    rig = nursery()

    pid, _ = rig.make(code)

    assert rig.exit_code(pid) == status
    rig.leave()
    assert words in rig.process.communicate(timeout=PATIENCE_S)[1]


@pytest.mark.parametrize(
    ("first", "leaves"),
    [
        ("nursery.Nursery._end_strays = lambda _: None", "pass"),
        pytest.param("", "os.setsid()", marks=ON_LINUX),
    ],
    ids=["in its group", "in a session of its own"],
)
def test_what_a_process_leaves_behind_ends_with_it(nursery: Make, first: str, leaves: str) -> None:
    rig = nursery(first)
    pid, sock = rig.make(
        f"if not os.fork():\n  {leaves}\n  sock.sendall(b'there\\n')\n  while True: time.sleep(9)\nsock.recv(1)"
    )
    assert lines(sock, 1) == ["there"]

    sock.sendall(b"x")

    assert rig.exit_code(pid) == 0
    assert has_ended(sock)


@ON_LINUX
@pytest.mark.parametrize("role", ROLES)
def test_only_the_process_of_a_job_gets_what_its_children_leave(nursery: Make, role: str) -> None:
    rig = nursery()
    pid, sock = rig.make(LEAVE_ORPHAN + STAY, role)

    (parent,) = map(int, lines(sock, 1))

    assert parent == (pid if role == "job" else rig.process.pid)


def test_a_signal_goes_to_all_of_a_group(nursery: Make) -> None:
    rig = nursery()
    pid, sock = rig.make(
        "def say(*_): sock.sendall(f'{os.getpid()}\\n'.encode())\n"
        "signal.signal(signal.SIGUSR2, say)\nif not os.fork(): say()  # A signal to a fork that is not yet whole is lost."
        + STAY
    )
    (fork,) = map(int, lines(sock, 1))

    rig.send(SIGNAL, pid, signal.SIGUSR2)

    assert set(map(int, lines(sock, 2))) == {pid, fork}


def test_a_signal_for_a_process_of_others_is_not_sent(nursery: Make) -> None:
    rig = nursery()
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    try:
        rig.send(SIGNAL, other.pid, signal.SIGKILL)
        rig.make("")  # The command before it is carried out.

        said, _ = other.communicate(b"there", PATIENCE_S)
    finally:
        other.kill()
        other.wait()

    assert (said, other.returncode) == (b"there", 0)


def test_signals_for_the_supervisor_end_neither_the_nursery_nor_its_processes(nursery: Make) -> None:
    rig = nursery()
    ignored = "sock.sendall(f'{signal.SIG_IGN in map(signal.getsignal, nursery.FOR_SUPERVISOR)}\\n'.encode())"
    pid, sock = rig.make(ignored + "\nsock.recv(1)\ncode = 5")
    assert lines(sock, 1) == ["False"]  # Programs that a job starts would inherit that.

    for number in FOR_SUPERVISOR:
        rig.process.send_signal(number)
        os.kill(pid, number)
    sock.sendall(b"x")

    assert rig.exit_code(pid) == 5
    assert rig.make("")[0]


def test_processes_of_a_supervisor_that_is_gone_are_told_and_then_killed(nursery: Make) -> None:
    rig = nursery()
    _, sock = rig.make("signal.signal(signal.SIGTERM, lambda *_: sock.sendall(b'told\\n'))\nsock.sendall(b'there\\n')" + STAY)
    assert lines(sock, 1) == ["there"]

    rig.leave()

    assert lines(sock, 1) == ["told"]
    assert has_ended(sock)
    assert rig.process.wait(PATIENCE_S) == 0


@ON_LINUX
def test_processes_do_not_outlive_a_nursery_that_is_killed(nursery: Make) -> None:
    rig = nursery()
    _, sock = rig.make("sock.sendall(b'there\\n')" + STAY)
    assert lines(sock, 1) == ["there"]

    rig.process.kill()

    with suppress(ConnectionResetError):
        assert has_ended(sock)
