"""A job's own process: takes one job at a time, runs it as any Python program would, and says what came of it.

There is no thread here and no loop: whether the job was cancelled is read from the shared page, and a stop comes as SIGTERM,
which raises `Stopped` inside the job. A job that leaves the process other than it was has spoiled it for the next one; then
the process says so and ends.
"""

from __future__ import annotations

import sys
from _socket import socket
from collections.abc import Callable
from contextlib import suppress
from faulthandler import unregister
from importlib import import_module
from logging import Handler, LogRecord, getLogger
from os import WNOHANG, waitpid
from pathlib import Path
from select import POLLHUP, poll
from signal import SIG_DFL, SIGHUP, SIGINT, SIGTERM, SIGUSR1, pause, signal
from sys import _current_frames, modules
from threading import RLock, get_ident
from types import FrameType
from typing import Any, Final

from importlib_metadata import PackageNotFoundError, version

from givalia_core import forks, job_servers
from givalia_core.frozen import BUILTINS, Clock
from givalia_core.log_handler import be_last_resort, take_over_root
from givalia_core.loggers import Loggers
from givalia_core.modules import Stopped, WorkModule
from givalia_core.printable import message_of, traceback_of
from givalia_core.protocol.messages import Dispatch, Succeed
from givalia_core.stray_errors import StrayErrors, log_stray_errors
from givalia_core.streams import let_go_of_readers, outlast_readers
from givalia_core.worker.attempt.collector import Collector
from givalia_core.worker.attempt.pipeline import STEPS_IN_CHILD, Attempt, report_of, say_left_out
from givalia_core.worker.attempt.surroundings import Contents, Surroundings
from givalia_core.worker.notes import Begin, JobEnded, JobServers, Logged, NoteReader, Outdated, Serve, Spoiled, pack
from givalia_core.worker.page import ASIDE_SIGNAL, DUMP_SIGNAL, LastWords, SharedPage, page_of
from givalia_core.worker.reasons import WORDS, timed_out

__builtins__ = BUILTINS

RECEIVE_BYTES: Final = 65_536
LOST_MS: Final = 50
_EXTRA: Final = ("job_id", "key", "attempt", "job_module")


def main(channel: int, page: int, last_words: int) -> int:
    """Run jobs until the supervisor wants no more; the exit code."""
    LastWords(last_words).listen()
    supervisor = socket(fileno=channel)  # That of the module `socket` has methods of Python, which a job may replace.
    try:
        return Child(supervisor, page_of(page)).serve()
    except ConnectionError:
        return 1  # The supervisor is gone: there is nobody to tell.


class _Alone(Attempt):
    """An attempt that has this process for itself, and is told over the page what its supervisor wants."""

    def __init__(self, dispatch: Dispatch, send: Callable[[Any], None], page: SharedPage) -> None:
        super().__init__(dispatch, None, None, send)
        self._page = page

    def is_cancelled(self) -> bool:
        return self._page.cancelled == self.dispatch.fence


class Child:
    """The process itself."""

    def __init__(self, channel: socket, page: SharedPage) -> None:
        self._channel = channel
        self._page = page
        self._reader = NoteReader()
        self._classes: dict[str, type[WorkModule]] = {}
        self._keep()
        self._collector = Collector()
        self._attempt: Attempt | None = None
        self._main = get_ident()
        self._stray: StrayErrors | None = None
        self._saying = RLock()  # What the collector ends while something is being said may have something to say.
        self._is_saying = False

    def serve(self) -> int:
        """Take what comes, until nothing more will."""
        signal(SIGTERM, self._stop)
        forks.register(self)
        outlast_readers()
        self._channel.setblocking(True)  # At its other end is gevent, which makes both otherwise.
        code = self._serve()
        say_left_out(is_last=True)
        if self._stray is not None:
            self._stray.close()
        return code

    def _serve(self) -> int:
        while data := self._channel.recv(RECEIVE_BYTES):
            for note in self._reader.feed(data):
                if isinstance(note, Begin):
                    with suppress(OSError):
                        if let_go_of_readers(poll):
                            self._surroundings.take_streams()
                    if not self._has_announced_code(note):
                        self.say(Outdated())
                        return 0
                    if spoiled := self._run(Dispatch(*note.job), note.source):
                        self.say(Spoiled(", ".join(spoiled)))
                        return 0  # A job that was given to this process meanwhile starts in another one.
                elif isinstance(note, Serve):
                    log_to(self.say, note.settings["log_level"])
                    self._stray = log_stray_errors(getLogger("givalia.job"))
                    self._surroundings.close()
                    self._keep()
                elif isinstance(note, JobServers):
                    job_servers.tell_process(note.servers)
            say_left_out()  # Of storms that are over; a process that waits for its next job says it then.
            if self._stray is not None:
                self._stray.look()
        return 0

    def after_fork(self) -> None:
        """In a fork that the job has made: it may log, whichever of the job's threads was just doing so."""
        self._saying = RLock()
        be_stopped_by_signals()

    def say(self, *said: Any) -> None:
        """Send notes to the supervisor; any thread of the job may."""
        is_main = get_ident() == self._main
        with self._saying:
            self._is_saying = is_main
            try:
                self._channel.sendall(pack(said))
            finally:  # What cannot be packed must not keep the job from being stopped.
                self._is_saying = False
        attempt = self._attempt
        if is_main and attempt is not None and attempt.stopped is not None and attempt.is_in_process and not self._has_raised:
            self._raise(attempt.stopped)

    def _run(self, dispatch: Dispatch, source: str) -> list[str]:
        """Run a job and report its end; return in words what keeps this process from running another."""
        attempt = _Alone(dispatch, self.say, self._page)
        self._attempt, self._has_raised = attempt, False
        self._page.current = dispatch.fence  # From here on the end of this process is the end of this job.
        if self._page.why:  # The signal has come while the process was busy with what the job before has left.
            self._stop(SIGTERM, None)
        try:
            attempt.found = self._classes.get(source) or self._import(source)
        except BaseException as error:  # Somebody else's import may raise anything.
            attempt.raised = error
        threads = len(_current_frames())
        for step in STEPS_IN_CHILD:
            step(attempt)
        report = report_of(attempt)
        self._let_go(attempt)
        self._page.current = 0
        self._attempt = None
        try:
            self._channel.setblocking(True)  # The job may have changed that for all its files.
            self.say(JobEnded(isinstance(report, Succeed), report, attempt.seconds))
        except OSError:
            while True:  # The job has closed the channel; who listened at its other end sees that, and kills this process.
                pause()
        # Behind the report, for it takes as long as all the rest, and only the next job needs to know.
        with suppress(Exception):  # It has broken functions of Python, which shows below.
            if not self._surroundings.logs.are_kept():
                self._surroundings.logs.restore()
        spoiled = _changes(self._surroundings, self._contents)
        if len(_current_frames()) > threads:
            spoiled.append("threads")
        if _has_children():
            spoiled.append("processes")
        return spoiled

    def _let_go(self, attempt: Attempt) -> None:
        """Free what the job has made, before its end is reported: that runs code of the job, which can be stopped until then.

        Behind the report a `__del__` that does not end would hold up the next job of this process.
        """
        self._collector.note(is_bad=attempt.raised is not None)
        try:
            attempt.is_in_process = True
            attempt.let_go()
            self._collector.run(Clock.monotonic())
        except BaseException as error:  # `Stopped`, if it was not raised inside a `__del__`.
            error.__traceback__ = None
        finally:
            attempt.is_in_process = False

    def _has_announced_code(self, begin: Begin) -> bool:
        """Whether what is about to be imported is what the server was told of: packages may have been installed since."""
        if begin.source in self._classes or not begin.version or not _has_changed_since(begin.since):
            return True
        try:
            return version(begin.distribution) == begin.version
        except PackageNotFoundError:
            return False

    def _import(self, source: str) -> type[WorkModule]:
        loggers = Loggers()
        try:
            module, _, name = source.partition(":")
            found: Any = import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            self._classes[source] = found
            return self._classes[source]
        finally:
            loggers.restore()
            take_over_root()
            self._surroundings.close()
            self._keep()

    def _keep(self) -> None:
        """Note what every job is to find; a process in which one has changed it ends, but loggers are put back."""
        self._contents, self._surroundings = Contents(), Surroundings()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        attempt = self._attempt
        if attempt is None or attempt.stopped is not None:
            return
        why = self._page.why
        if not why and not self._has_lost_supervisor():
            return  # Somebody has sent it to every process of the worker: the supervisor says when jobs stop.
        words = timed_out(attempt.dispatch) if why == "timeout" else WORDS[why]
        attempt.stopped = Stopped(why or "shutdown", words)
        if attempt.is_in_process and not self._is_saying:  # Half a note said would spoil all that come after it.
            self._raise(attempt.stopped)

    def _has_lost_supervisor(self) -> bool:
        """Return whether the other end of the channel is closed; the nursery sends SIGTERM then, perhaps a moment earlier."""
        polled = poll()
        polled.register(self._channel, POLLHUP)
        return any(what & POLLHUP for _, what in polled.poll(LOST_MS))

    def _raise(self, stopped: Stopped) -> None:
        self._has_raised = True
        _let_hub_hand_on()
        raise stopped


def _changes(surroundings: Surroundings, contents: Contents) -> list[str]:
    """Return in words what a job has changed in its process."""
    try:
        return surroundings.changed() + contents.changed() + (["greenlets"] if _has_greenlets() else [])
    except Exception:  # It has broken functions of Python that are asked.
        return ["what cannot be looked at"]


def _let_hub_hand_on() -> None:
    """Have `Stopped` reach the job though it is raised in the loop of gevent, which the job may be waiting for."""
    hub: Any = getattr(modules.get("gevent.hub"), "Hub", None)
    if hub is not None and Stopped not in hub.SYSTEM_ERROR:
        hub.SYSTEM_ERROR = (*hub.SYSTEM_ERROR, Stopped)
        hub.NOT_ERROR = (*hub.NOT_ERROR, Stopped)


def _has_changed_since(instant: float) -> bool:
    """Whether anything may have been installed since then: installers make and remove entries of these folders."""
    for folder in sys.path:
        with suppress(OSError):
            if Path(folder).stat().st_mtime >= instant:
                return True
    return False


def take_no_notice(_: int, __: FrameType | None) -> None:
    """In place of `SIG_IGN`, which programs that jobs start would inherit."""


def be_stopped_by_signals() -> None:
    """In a process that a job has forked: it is for the job to say when that ends, and its stack is not the job's."""
    for number in (DUMP_SIGNAL, ASIDE_SIGNAL):
        unregister(number)
    for number in (SIGINT, SIGTERM, SIGHUP, SIGUSR1):
        signal(number, SIG_DFL)


def _has_children() -> bool:
    """Whether the job has left processes behind, its own or, on Linux, theirs."""
    try:
        waitpid(-1, WNOHANG)
    except ChildProcessError:
        return False
    return True


def _has_greenlets() -> bool:
    """Return whether something waits in gevent's loop: it would go on in the next job, or wake that instead."""
    hub_local: Any = modules.get("gevent._hub_local")
    hub = hub_local.get_hub_if_exists() if hub_local is not None else None
    return hub is not None and bool(hub.loop.activecnt)


def _fits(value: Any) -> bool:
    """Whether it can be said as it is."""
    return isinstance(value, (str, float)) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


class Forwarding(Handler):
    """Sends each line to the supervisor, who has it come out with those of the worker."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: LogRecord) -> None:
        """Send the line; what keeps one from being sent is shown as the handlers of `logging` do, and fails no job."""
        try:
            self._say(Logged(_fields_of(record)))
        except OSError:
            raise  # The supervisor is gone.
        except Exception:
            self.handleError(record)


def _fields_of(record: LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": record.name, "levelno": record.levelno, "levelname": record.levelname,
        "msg": message_of(record)[:16_384], "created": record.created,
    }  # fmt: skip
    if record.exc_info:
        fields["exc_text"] = traceback_of(record)[-16_384:]
    if record.stack_info:
        fields["stack_info"] = str(record.stack_info)[-16_384:]
    extra = {name: value for name in _EXTRA if (value := getattr(record, name, None)) is not None}
    return {name: value if _fits(value) else str(value) for name, value in {**fields, **extra}.items()}


def log_to(say: Any, level: str) -> None:
    """Let the lines of jobs go to the supervisor, and warnings of loggers that nobody has set up."""
    root = getLogger("givalia")
    root.handlers[:] = [Forwarding(say)]
    root.propagate = False
    root.setLevel(level.upper())
    be_last_resort(Forwarding(say))
