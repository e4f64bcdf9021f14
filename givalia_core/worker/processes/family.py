"""The supervisor's side of the nursery: notes and signals to its processes, notes from them, and their ends."""

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
NOTES_BYTES_MAX: Final = {"greenlets": 64 << 20, "job": 1 << 20}  # In one write: for all jobs that end at once, or for one.
CLOSE_S: Final = 2.0
KILLED_S: Final = 3.0  # Time for a process to be gone after SIGKILL.
NURSERY_FD: Final = 3  # The descriptor of the socket in the nursery.
UNBORN: Final = -1  # In place of a status: the process could not be made.
LINGER_S: Final = 0.5  # Time for the last notes of a dead process to arrive.
CUT_S: Final = 0.3  # A process that is not dead so long after its channel ended has closed the channel, and lives.


log = logging.getLogger("givalia.worker")


class Member:
    """One process: the notes to it and from it, and its end.

    Args:
        role: Its role, one of `ROLES`.
        heard: Takes the notes of the process in order, a batch at a time.
        ended: Called once with the status of `os.waitpid`, when the process is gone and all its notes are heard.
    """

    def __init__(self, role: str, heard: Callable[[list[Any]], None], ended: Callable[[int], None]) -> None:
        self.role = role
        self.pid = 0  # 0 until the process is born.
        self.since = time.time()  # For people, and for comparisons with files; lengths start at `started_s`.
        self.started_s = time.monotonic()
        self.memory_bytes = 0
        """Its resident memory at the last check."""
        self._heard, self._ended = heard, ended
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours.detach(), RECEIVE_BYTES)
        self.given = [theirs.detach()]
        forks.register(self)  # At once: in a program with its own worker, another thread may fork now.
        with contextlib.ExitStack() as undone:  # If descriptors run out, none leaks.
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
        self.recent: frozenset[int] = frozenset()  # The code that ran shortly before its end, or before it was given up.
        self.is_orphan = False
        self._fault = ""  # The reason, if the supervisor or the end of the nursery killed the process.
        self._gone = Event()
        self._reading = gevent.spawn(self._read_forever)
        self._sending = gevent.spawn(self._send_forever)

    def after_fork(self) -> None:
        """In a fork of a program with its own worker: leave the process to the parent."""
        forks.detach(self._channel.fileno(), *self.given[:1])

    @property
    def backlog(self) -> int:
        """The number of notes that the process has not taken yet."""
        return len(self._out)

    def tell(self, *said: Any) -> None:
        """Send notes to the process, and return at once; the notes wait until the process takes them."""
        self._out += said
        self._rung.set()

    def _send_forever(self) -> None:
        with contextlib.suppress(OSError):  # The process is gone, or about to be: its end is reported elsewhere.
            while True:
                self._rung.wait()
                self._rung.clear()
                out, self._out = self._out, []
                self._channel.sendall(self._packed(out))

    def _packed(self, out: list[Any]) -> bytes:
        """Return the notes as bytes; skip notes that cannot be packed, since job code fills some of them."""
        try:
            return notes.pack(out)
        except Exception as error:
            if len(out) > 1:
                return b"".join(self._packed([note]) for note in out)
            log.error("process %d cannot be told what it should be: %s: %s", self.pid, type(error).__name__, error)
            return b""

    def _read_forever(self) -> None:
        reader = notes.NoteReader(NOTES_BYTES_MAX[self.role])
        unfinished: frozenset[int] | None = None  # The code that ran shortly before the first part of a record came.
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
        except Exception as error:  # Job code can write anything to any file of its process.
            log.error("process %d says what cannot be understood, and is ended: %s: %s", self.pid, type(error).__name__, error)
            self._give_up("it wrote nonsense to the connection to its worker", unfinished or frozenset())
            return
        if not self._gone.wait(CUT_S) and self.is_open and self.pid:
            self._give_up("it closed the connection to its worker")

    def _give_up(self, words: str, before: frozenset[int] = frozenset()) -> None:
        """Kill the process, whose notes cannot be read any more; any job that ran recently may be to blame."""
        self._fault, self.recent = words, before | self.page.recent()
        self.signal(signal.SIGKILL)

    def stack(self) -> str:
        """Return the stack that the process has written since the last call."""
        return self.last_words.take()

    def close(self) -> None:
        """Tell the process that nothing more will come; it ends after its present notes."""
        with contextlib.suppress(OSError):
            self._channel.finish()

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it has started."""
        if self._nursery is not None and self.pid:
            self._nursery.signal(self.pid, number)
        else:
            self._signals.append(number)

    def be_born(self, nursery: NurseryHandle, pid: int) -> None:
        """Note that the nursery has made the process."""
        self._nursery, self.pid = nursery, pid
        for number in self._signals:
            nursery.signal(pid, number)

    def lose_nursery(self) -> None:
        """Note that the process ends with its nursery, and no job is to blame."""
        self.is_orphan = True
        self._fault = self._fault or "the process that had made it is gone"

    def end(self, status: int) -> None:
        """Hear the last notes of the process, which is gone, and report its end."""
        self._gone.set()
        self._reading.join(LINGER_S)  # A process that the dead one has left behind may hold the connection open.
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
        """Return in words how the process ended."""
        return self._fault or words_for(status)


class NurseryHandle:
    """The nursery process, and the members that it has made."""

    def __init__(self, lost: Callable[[], None], environ: dict[str, str] | None = None) -> None:
        """Start the nursery; `lost` is called if it ends without being asked."""
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._lost = lost
        self._tickets: dict[int, Member] = {}
        self._members: dict[int, Member] = {}
        self._last = 0
        self._is_closed = False
        # Not `subprocess`, which works only in the main thread of a program that gevent has patched.
        self.pid = monkey.get_original("os", "posix_spawn")(
            sys.executable,
            [sys.executable, "-P", "-m", "givalia_core.worker.processes.nursery", str(NURSERY_FD)],
            os.environ if environ is None else environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), NURSERY_FD),
            ],
            setpgroup=0,  # Signals of a terminal are for the supervisor alone.
            setsigmask=FOR_SUPERVISOR,  # Blocked until the nursery can ignore them.
            setsigdef=(signal.SIGPIPE,),
        )
        theirs.close()
        self._reading = gevent.spawn(self._read_forever)
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: leave the socket, because the nursery ends with the parent and must not wait for this process."""
        forks.detach(self._socket.fileno())

    def fork(self, member: Member) -> None:
        """Make the process of a member."""
        self._last += 1
        self._tickets[self._last] = member
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", member.given))
        with contextlib.suppress(OSError):  # If the nursery is gone, its end is reported in a moment.
            self._socket.sendmsg([RECORD.pack(FORK, self._last, ROLES.index(member.role))], [rights])
        *given, _ = member.given  # The last file is read after the end of the process.
        member.given = []  # First: other files may take these numbers, and a fork must not close them.
        for fd in given:
            os.close(fd)

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the group of a member."""
        with contextlib.suppress(OSError):
            self._socket.sendall(RECORD.pack(SIGNAL, pid, number))
        if number == signal.SIGKILL:
            gevent.spawn_later(KILLED_S, self._look_whether_killed, pid)

    def _look_whether_killed(self, pid: int) -> None:
        """Kill a nursery that does not obey (it may be stopped); on Linux all its processes end with it."""
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
            self._lost()  # First, because the listener may want another process at once, which needs another nursery.
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
        """End the nursery, and after half a second all its processes."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._reading.join(CLOSE_S)
        if not self._reading.dead:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reading.join(CLOSE_S)


def _wait_for(pid: int) -> None:
    """Reap a process that has ended, or is about to."""
    with contextlib.suppress(ChildProcessError):
        monkey.get_original("os", "waitpid")(pid, 0)


def words_for(status: int) -> str:
    """Return in words how a process ended, from the status of `os.waitpid`."""
    if status == UNBORN:
        return "the system makes no more processes now"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
