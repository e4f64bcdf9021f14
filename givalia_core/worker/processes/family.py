"""The supervisor's side of the nursery: processes that it can talk to, send signals to, and hear the end of."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent import monkey, socket
from gevent.event import Event

from givalia_core import forks
from givalia_core.worker import notes
from givalia_core.worker.channel import Channel
from givalia_core.worker.page import LastWords, SharedPage, nameless_file, page_file
from givalia_core.worker.processes.nursery import BORN, ENDED, FOR_SUPERVISOR, FORK, RECORD, ROLES, SIGNAL

RECEIVE_BYTES: Final = 65_536
NOTES_BYTES_MAX: Final = {"greenlets": 64 << 20, "job": 1 << 20}  # In one write: of all jobs that end at once, or of one.
CLOSE_S: Final = 2.0
KILLED_S: Final = 3.0  # So long a process may take to be gone that was sent SIGKILL.
NURSERY_FD: Final = 3  # Of its socket, in the nursery.
UNBORN: Final = -1  # In place of a status: it could not be made.
LINGER_S: Final = 0.5  # How long what a dead process has said may take to arrive.
CUT_S: Final = 0.3  # One that is silent for good and not known to be dead by then has closed its channel, and lives.


log = logging.getLogger("givalia.worker")


class Member:
    """One process: what is said to it, what it says, and its end.

    Args:
        role: What it is for, one of `ROLES`.
        heard: Told what the process says, in its order, a batch at a time.
        ended: Told once when it is gone and everything it said was heard; with the status that `os.waitpid` gives.
    """

    def __init__(self, role: str, heard: Callable[[list[Any]], None], ended: Callable[[int], None]) -> None:
        self.role = role
        self.pid = 0  # Until it is born.
        self.since = time.time()  # For people and installers; lengths are measured from `started_s`.
        self.started_s = time.monotonic()
        self.memory_bytes = 0
        """Its resident memory when that was last looked at."""
        self._heard, self._ended = heard, ended
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours.detach(), RECEIVE_BYTES)
        self.given = [theirs.detach()]
        forks.register(self)  # At once: in a program of its own this is a thread beside the one that forks.
        with contextlib.ExitStack() as undone:  # Where there are no more file descriptors, none is to be lost.
            undone.callback(os.close, self.given[0])
            page = page_file()
            undone.callback(os.close, page)
            self._file = last_words = nameless_file()
            undone.callback(os.close, last_words)
            self.page, self.last_words = SharedPage(page), LastWords(last_words)
            undone.pop_all()
        self.given += [page, last_words]
        self._out: list[Any] = []
        self._signals: list[int] = []
        self._nursery: NurseryHandle | None = None
        self._rung = Event()
        self.is_open = True
        self.last_current = 0
        self.recent: frozenset[int] = frozenset()  # What it has run shortly before its end, or before it was given up.
        self.is_orphan = False
        self._fault = ""  # What it was killed for, if that was done here or by the end of its nursery.
        self._gone = Event()
        self._reading = gevent.spawn(self._read_forever)
        self._sending = gevent.spawn(self._send_forever)

    def after_fork(self) -> None:
        """In a fork of a program that has a worker in it: the process is the parent's alone."""
        forks.detach(self._channel.fileno(), *self.given[:1])

    @property
    def backlog(self) -> int:
        """How many notes the process has not taken yet."""
        return len(self._out)

    def tell(self, *said: Any) -> None:
        """Say something to the process; returns at once, what it does not take waits."""
        self._out += said
        self._rung.set()

    def _send_forever(self) -> None:
        with contextlib.suppress(OSError):  # It is gone, or about to be: its end will be told.
            while True:
                self._rung.wait()
                self._rung.clear()
                out, self._out = self._out, []
                self._channel.sendall(self._packed(out))

    def _packed(self, out: list[Any]) -> bytes:
        """Notes as they travel, but for those that cannot: job code has a say in some, and the others are not to suffer."""
        try:
            return notes.pack(out)
        except Exception as error:
            if len(out) > 1:
                return b"".join(self._packed([note]) for note in out)
            log.error("process %d cannot be told what it should be: %s: %s", self.pid, type(error).__name__, error)
            return b""

    def _read_forever(self) -> None:
        reader = notes.NoteReader(NOTES_BYTES_MAX[self.role])
        unfinished: frozenset[int] | None = None  # What had run shortly before the first piece of a record came.
        try:
            while data := self._channel.receive():
                if heard := reader.feed(data):
                    self._heard(heard)
                if not reader.has_part:
                    unfinished = None
                elif unfinished is None:
                    unfinished = self.page.recent()
        except OSError:
            pass
        except Exception as error:  # Job code can write whatever it likes to any file of its process.
            log.error("process %d says what cannot be understood, and is ended: %s: %s", self.pid, type(error).__name__, error)
            self._give_up("it wrote nonsense to the connection to its worker", unfinished or frozenset())
            return
        if not self._gone.wait(CUT_S) and self.is_open and self.pid:
            self._give_up("it closed the connection to its worker")

    def _give_up(self, words: str, before: frozenset[int] = frozenset()) -> None:
        """Kill it, for nothing that it does can be heard of any more; it may have been any of those that ran then."""
        self._fault, self.recent = words, before | self.page.recent()
        self.signal(signal.SIGKILL)

    def stack(self) -> str:
        """What it has written of where it is, or was, since this was last asked."""
        return self.last_words.take()

    def close(self) -> None:
        """Tell it that nothing more will come: it ends when it has done what it was told."""
        with contextlib.suppress(OSError):
            self._channel.finish()

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it has started."""
        if self._nursery is not None and self.pid:
            self._nursery.signal(self.pid, number)
        else:
            self._signals.append(number)

    def be_born(self, nursery: NurseryHandle, pid: int) -> None:
        """The nursery has made it."""
        self._nursery, self.pid = nursery, pid
        for number in self._signals:
            nursery.signal(pid, number)

    def lose_nursery(self) -> None:
        """Note that it ends because its nursery has: the job whose code it is in is not to blame."""
        self.is_orphan = True
        self._fault = self._fault or "the process that had made it is gone"

    def end(self, status: int) -> None:
        """It is gone."""
        self._gone.set()
        self._reading.join(LINGER_S)  # Somebody it has left behind may hold its end open.
        self.is_open = False
        self._reading.kill()
        self._sending.kill()
        if not self._fault:
            self.last_current, self.recent = self.page.current, self.page.recent()
        self._channel.close()
        self._ended(status)
        os.close(self._file)
        self.page.close()
        for fd in self.given:  # The process was never made.
            os.close(fd)

    def words_for(self, status: int) -> str:
        """How it ended, in words."""
        return self._fault or words_for(status)


class NurseryHandle:
    """The nursery process, and the members that it has made."""

    def __init__(self, lost: Callable[[], None], environ: dict[str, str] | None = None) -> None:
        """Start it; `lost` is told if it ends without being asked."""
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._lost = lost
        self._tickets: dict[int, Member] = {}
        self._members: dict[int, Member] = {}
        self._last = 0
        self._is_closed = False
        # Not by `subprocess`, which in a program that gevent has patched works in its main thread only.
        self.pid = monkey.get_original("os", "posix_spawn")(
            sys.executable,
            [sys.executable, "-P", "-m", "givalia_core.worker.processes.nursery", str(NURSERY_FD)],
            os.environ if environ is None else environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), NURSERY_FD),
            ],
            setpgroup=0,  # What a terminal sends is for the supervisor alone.
            setsigmask=FOR_SUPERVISOR,  # Until it can ignore them.
            setsigdef=(signal.SIGPIPE,),
        )
        theirs.close()
        self._reading = gevent.spawn(self._read_forever)
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: the nursery ends when the parent does, and must not wait for this process."""
        forks.detach(self._socket.fileno())

    def fork(self, member: Member) -> None:
        """Make the process of a member."""
        self._last += 1
        self._tickets[self._last] = member
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", member.given))
        with contextlib.suppress(OSError):  # If it is gone, that will be told in a moment.
            self._socket.sendmsg([RECORD.pack(FORK, self._last, ROLES.index(member.role))], [rights])
        *given, _ = member.given  # The last one is read when the process is gone.
        member.given = []  # First: a fork must not mistake for these what takes their numbers next.
        for fd in given:
            os.close(fd)

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the group of a member."""
        with contextlib.suppress(OSError):
            self._socket.sendall(RECORD.pack(SIGNAL, pid, number))
        if number == signal.SIGKILL:
            gevent.spawn_later(KILLED_S, self._look_whether_killed, pid)

    def _look_whether_killed(self, pid: int) -> None:
        """A nursery that does not do as told is stopped itself, perhaps; on Linux all that it has made ends with it."""
        if pid in self._members:
            log.error("the nursery of the worker's processes has not killed one that it should have, and is ended")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _read_forever(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while arrived := self._socket.recv(RECEIVE_BYTES):
                data += arrived
                whole = len(data) - len(data) % RECORD.size
                for what, a, b in RECORD.iter_unpack(data[:whole]):
                    self._take(what, a, b)
                data = data[whole:]
        _wait_for(self.pid)
        members = [*self._members.values(), *self._tickets.values()]
        self._members, self._tickets = {}, {}
        self._socket.close()
        if not self._is_closed:
            self._lost()  # Before anybody hears of an end, and has another process made by one that is not there.
            for member in members:
                member.lose_nursery()
        gevent.joinall([gevent.spawn(member.end, signal.SIGKILL) for member in members])

    def _take(self, what: int, a: int, b: int) -> None:
        if what == BORN:
            member = self._tickets.pop(a)
            if not b:
                gevent.spawn(member.end, UNBORN)
                return
            self._members[b] = member
            member.be_born(self, b)
        elif what == ENDED and (member_ := self._members.pop(a, None)) is not None:
            gevent.spawn(member_.end, b)

    def close(self) -> None:
        """Let it end, and with it, after half a second, all that it has made."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._reading.join(CLOSE_S)
        if not self._reading.dead:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reading.join(CLOSE_S)


def _wait_for(pid: int) -> None:
    """Let the system forget a process that has ended, or is just about to."""
    with contextlib.suppress(ChildProcessError):
        monkey.get_original("os", "waitpid")(pid, 0)


def words_for(status: int) -> str:
    """How a process ended, from the status that `os.waitpid` gives."""
    if status == UNBORN:
        return "the system makes no more processes now"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
