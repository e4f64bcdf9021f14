"""A job's own process: takes one job at a time, runs it as any Python program would, and reports its end.

The process has no thread and no loop: it reads a cancel from the shared page, and a stop comes as SIGTERM, which raises
`Stopped` in the job. A job that leaves the process in another state has spoiled it for the next job; the process reports this
and ends.
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

from givalia_core import forks, job_servers
from givalia_core.frozen import BUILTINS, OwnClock
from givalia_core.installed import version_of
from givalia_core.log_handler import be_last_resort, take_over_root
from givalia_core.loggers import Loggers
from givalia_core.modules import Stopped, WorkModule
from givalia_core.printable import message_of, traceback_of
from givalia_core.protocol.messages import Dispatch, Succeed
from givalia_core.stray_errors import StrayErrors, log_stray_errors
from givalia_core.streams import let_go_of_readers, outlast_readers
from givalia_core.worker.attempt.collector import Collector
from givalia_core.worker.attempt.pipeline import STEPS_WITHOUT_PLUGINS, Attempt, report, say_left_out
from givalia_core.worker.attempt.surroundings import Contents, Surroundings
from givalia_core.worker.notes import Begin, ChildReported, JobServers, Logged, NoteReader, Outdated, Serve, Spoiled, pack
from givalia_core.worker.page import ASIDE_SIGNAL, DUMP_SIGNAL, LastWords, SharedPage, page_of
from givalia_core.worker.reasons import WORDS, timed_out

__builtins__ = BUILTINS

RECEIVE_BYTES: Final = 65_536
LOST_MS: Final = 50
_EXTRA: Final = ("job_id", "key", "attempt", "job_module")


def main(channel: int, page: int, last_words: int) -> int:
    """Run jobs until the supervisor closes the connection; return the exit code."""
    LastWords(last_words).listen()
    supervisor = socket(fileno=channel)  # The class of the module `socket` has Python methods, which a job can replace.
    try:
        return Child(supervisor, page_of(page)).serve()
    except ConnectionError:
        return 1  # The supervisor is gone, and nobody hears a report.


class _Alone(Attempt):
    """An attempt in a process of its own, which reads a cancel from the page."""

    def __init__(self, dispatch: Dispatch, send: Callable[[Any], None], page: SharedPage) -> None:
        super().__init__(dispatch, None, None, send)
        self._page = page

    def is_cancelled(self) -> bool:
        return self._page.cancelled == self.dispatch.fence


class Child:
    """The process of one job at a time."""

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
        self._saying = RLock()  # Objects that the collector finalizes during a send may send something, too.
        self._is_saying = False

    def serve(self) -> int:
        """Take notes until the supervisor closes the connection."""
        signal(SIGTERM, self._stop)
        forks.register(self)
        outlast_readers()
        self._channel.setblocking(True)  # gevent, at the other end, has made both ends non-blocking.
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
                        return 0  # A job that this process was given meanwhile starts in another process.
                elif isinstance(note, Serve):
                    log_to(self.say, note.settings["log_level"])
                    self._stray = log_stray_errors(getLogger("givalia.job"))
                    self._surroundings.close()
                    self._keep()
                elif isinstance(note, JobServers):
                    job_servers.tell_process(note.servers)
            say_left_out()  # Logs the counts after a storm; an idle process does so with its next job.
            if self._stray is not None:
                self._stray.look()
        return 0

    def after_fork(self) -> None:
        """In a fork that the job has made: replace the lock, which another thread of the job may have held."""
        self._saying = RLock()
        be_stopped_by_signals()

    def say(self, *said: Any) -> None:
        """Send notes to the supervisor, from any thread of the job."""
        is_main = get_ident() == self._main
        with self._saying:
            self._is_saying = is_main
            try:
                self._channel.sendall(pack(said))
            finally:  # An error in packing must not prevent a stop of the job.
                self._is_saying = False
        attempt = self._attempt
        if is_main and attempt is not None and attempt.stopped is not None and attempt.is_in_process and not self._has_raised:
            self._raise(attempt.stopped)

    def _run(self, dispatch: Dispatch, source: str) -> list[str]:
        """Run a job and report its end; return in words what spoils this process for another job."""
        attempt = _Alone(dispatch, self.say, self._page)
        self._attempt, self._has_raised = attempt, False
        self._page.current = dispatch.fence  # From here on, the end of this process is the end of this job.
        if self._page.why:  # The signal came while the process was still busy with the previous job.
            self._stop(SIGTERM, None)
        try:
            attempt.found = self._classes.get(source) or self._import(source)
        except BaseException as error:  # The import of a package may raise anything.
            attempt.raised = error
        threads = len(_current_frames())
        for step in STEPS_WITHOUT_PLUGINS:
            step(attempt)
        ended = report(attempt)
        self._let_go(attempt)
        self._page.current = 0
        self._attempt = None
        try:
            self._channel.setblocking(True)  # The job may have changed the mode of all its files.
            self.say(ChildReported(isinstance(ended, Succeed), ended, attempt.seconds))
        except OSError:
            while True:  # The job has closed the channel; the supervisor sees that, and kills this process.
                pause()
        # After the report: the checks take as long as all the rest, and matter only to the next job.
        with suppress(Exception):  # The job has broken functions of Python, as the checks below find.
            if not self._surroundings.logs.are_kept():
                self._surroundings.logs.restore()
        spoiled = _changes(self._surroundings, self._contents)
        if len(_current_frames()) > threads:
            spoiled.append("threads")
        if _has_children():
            spoiled.append("processes")
        return spoiled

    def _let_go(self, attempt: Attempt) -> None:
        """Free the objects of the job before its report: this runs job code, which can be stopped until then.

        After the report, a `__del__` that does not end would block the next job of this process.
        """
        self._collector.note(is_bad=attempt.raised is not None)
        try:
            attempt.is_in_process = True
            attempt.let_go()
            self._collector.run(OwnClock.monotonic())
        except BaseException as error:  # `Stopped`, unless it was raised in a `__del__`.
            error.__traceback__ = None
        finally:
            attempt.is_in_process = False

    def _has_announced_code(self, begin: Begin) -> bool:
        """Return whether the installed code is the announced code: packages may have been installed since."""
        if begin.source in self._classes or not begin.version or not _has_changed_since(begin.since):
            return True
        return version_of(begin.distribution) == begin.version

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
        """Note the state that every job finds. A process whose state a job has changed ends; only loggers are restored."""
        self._contents, self._surroundings = Contents(), Surroundings()

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - The caller gives it.
        attempt = self._attempt
        if attempt is None or attempt.stopped is not None:
            return
        why = self._page.why
        if not why and not self._has_lost_supervisor():
            return  # A person has sent the signal to all processes of the worker; the supervisor decides when jobs stop.
        words = timed_out(attempt.dispatch) if why == "timeout" else WORDS[why]
        attempt.stopped = Stopped(why or "shutdown", words)
        if attempt.is_in_process and not self._is_saying:  # A note that is sent in part would spoil all that follow.
            self._raise(attempt.stopped)

    def _has_lost_supervisor(self) -> bool:
        """Return whether the supervisor has closed the channel; SIGTERM of the nursery may come a moment earlier."""
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
    except Exception:  # The job has broken functions of Python that the checks call.
        return ["what cannot be looked at"]


def _let_hub_hand_on() -> None:
    """Make gevent's hub pass `Stopped` on, because `Stopped` may be raised there while the job waits."""
    hub: Any = getattr(modules.get("gevent.hub"), "Hub", None)
    if hub is not None and Stopped not in hub.SYSTEM_ERROR:
        hub.SYSTEM_ERROR = (*hub.SYSTEM_ERROR, Stopped)
        hub.NOT_ERROR = (*hub.NOT_ERROR, Stopped)


def _has_changed_since(instant: float) -> bool:
    """Return whether packages may have been installed since then: installers add and remove entries of these folders."""
    for folder in sys.path:
        with suppress(OSError):
            if Path(folder).stat().st_mtime >= instant:
                return True
    return False


def take_no_notice(_: int, __: FrameType | None) -> None:
    """Ignore a signal. Programs that jobs start would inherit `SIG_IGN`, but not this handler."""


def be_stopped_by_signals() -> None:
    """In a process that a job has forked: restore the signals, because the job decides when that process ends."""
    for number in (DUMP_SIGNAL, ASIDE_SIGNAL):
        unregister(number)
    for number in (SIGINT, SIGTERM, SIGHUP, SIGUSR1):
        signal(number, SIG_DFL)


def _has_children() -> bool:
    """Return whether the job has left child processes; on Linux, also their children."""
    try:
        waitpid(-1, WNOHANG)
    except ChildProcessError:
        return False
    return True


def _has_greenlets() -> bool:
    """Return whether gevent's loop has watchers: they would go on in the next job, or wake it."""
    hub_local: Any = modules.get("gevent._hub_local")
    hub = hub_local.get_hub_if_exists() if hub_local is not None else None
    return hub is not None and bool(hub.loop.activecnt)


def _fits(value: Any) -> bool:
    """Return whether a value can be sent as it is."""
    return isinstance(value, (str, float)) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


class Forwarding(Handler):
    """A handler that sends each line to the supervisor, which logs it with the lines of the worker."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: LogRecord) -> None:
        """Send a line; show an error as the handlers of `logging` do, and fail no job."""
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
    """Send the lines of jobs to the supervisor, and warnings of loggers without a handler."""
    root = getLogger("givalia")
    root.handlers[:] = [Forwarding(say)]
    root.propagate = False
    root.setLevel(level.upper())
    be_last_resort(Forwarding(say))
