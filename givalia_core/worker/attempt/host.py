"""The process that runs jobs as greenlets, hundreds at a time, and all plugins of the worker.

The supervisor can replace this process at any moment: the link to the server, with all leases, is in the supervisor. At worst,
a job that harms this process interrupts the attempts of the other jobs, and those attempts do not count.
"""

from __future__ import annotations

from gevent import monkey

# First of all: job code must find the patched standard library, whatever it imports first.
monkey.patch_all()

import logging  # noqa: E402
from os import _exit, getpid  # noqa: E402
from signal import getsignal, signal  # noqa: E402
from typing import Any, Final  # noqa: E402

from gevent import Timeout, get_hub, sleep, spawn, wait  # noqa: E402
from gevent.event import Event  # noqa: E402

from givalia_core import forks  # noqa: E402
from givalia_core import hooks as hooks_room  # noqa: E402
from givalia_core import modules as modules_room  # noqa: E402
from givalia_core.frozen import BUILTINS, OwnClock  # noqa: E402
from givalia_core.headline import headline  # noqa: E402
from givalia_core.hooks import Hooks  # noqa: E402
from givalia_core.log_handler import take_over_root  # noqa: E402
from givalia_core.loggers import Loggers  # noqa: E402
from givalia_core.modules import FoundModule  # noqa: E402
from givalia_core.program import spare_the_collector, start_log  # noqa: E402
from givalia_core.protocol.messages import Progress  # noqa: E402
from givalia_core.repeats import Repeats  # noqa: E402
from givalia_core.settings import WorkerSettings  # noqa: E402
from givalia_core.steady import quietly  # noqa: E402
from givalia_core.stray_errors import StrayErrors, log_stray_errors  # noqa: E402
from givalia_core.streams import let_go_of_readers, outlast_readers  # noqa: E402
from givalia_core.worker.attempt.child import be_stopped_by_signals  # noqa: E402
from givalia_core.worker.attempt.collector import Collector  # noqa: E402
from givalia_core.worker.attempt.pipeline import WRONG_PROCESS, say_left_out  # noqa: E402
from givalia_core.worker.attempt.runner import Runner  # noqa: E402
from givalia_core.worker.attempt.surroundings import Surroundings  # noqa: E402
from givalia_core.worker.channel import Channel  # noqa: E402
from givalia_core.worker.notes import Importing, NoteReader, Serve, Spoiled, pack  # noqa: E402
from givalia_core.worker.page import LastWords, SharedPage, page_of  # noqa: E402

__builtins__ = BUILTINS

AT_ONCE: Final = 256
_make_poll: Final = monkey.get_original("select", "poll")
LAST_S: Final = 0.4  # Time for jobs to end when the supervisor is gone.

log = logging.getLogger("givalia.worker")


def main(channel: int, page: int, last_words: int) -> int:
    """Run jobs until the supervisor ends the process, or is gone; return the exit code."""
    words = LastWords(last_words)
    words.listen()
    words.listen_aside()
    return Host(Channel(channel), page_of(page), words).serve()


class Host:
    """The process; plugins get this object as `worker`."""

    def __init__(self, channel: Channel, page: SharedPage, last_words: LastWords) -> None:
        self._channel = channel
        self._page = page
        self._last_words = last_words
        self._out: list[Any] = []
        self._hints: dict[int, Progress] = {}  # By fence: the newest progress of each job.
        self._rung = Event()
        self._runner: Runner | None = None
        self._pid = getpid()
        self._surroundings: Surroundings | None = None
        self._repeats = Repeats()
        self._stray: StrayErrors | None = None
        self._is_spoiled = False  # Set when a change of a job could not be undone, which is reported once.
        self.settings = WorkerSettings()
        self.hooks = Hooks([])
        self.modules: dict[str, FoundModule] = {}
        self.counts: dict[str, int] = {}
        """The counts of the supervisor: see docs/hooks.md."""

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.settings.name

    def serve(self) -> int:
        """Take and send notes until the end; return the exit code."""
        outlast_readers()
        reader = NoteReader()
        serve, *more = self._first_notes(reader)
        # Now, not at the first fork: gevent would watch that child only afterwards, and a quick child would stay a zombie.
        get_hub().loop.install_sigchld()
        get_hub().SYSTEM_ERROR = ()  # Else `sys.exit` in a greenlet of a job would end this process.
        runner = self._runner = self._open(serve)
        forks.register(self)
        sending = spawn(self._send_forever)
        reading = spawn(self._read_forever, reader, more)
        wait((reading, sending, runner.telling.over), count=1)
        if not runner.telling.over.is_set():
            if reading.successful():
                self._stop_all(runner)
            return 1  # Else a job has broken the connection, and all other jobs go back.
        runner.close()
        self._say_rest()
        self._rung.set()
        sleep(0)
        sending.join(0.5)
        return 0

    def _first_notes(self, reader: NoteReader) -> list[Any]:
        while not (heard := reader.feed(self._channel.receive())):
            pass
        return heard

    def _open(self, serve: Serve) -> Runner:
        self.settings = WorkerSettings(**serve.settings)
        # The folder of the log may be gone since the worker's start; jobs run all the same.
        start_log(self.settings.log_level, self.settings.log_file, self.settings.plugins, must_open=False)
        self._stray = log_stray_errors(log, get_hub(), spawn)
        plugins = [found.plugin for found in hooks_room.discover(self.settings.plugins) if found.plugin is not None]
        self.hooks = Hooks(plugins)
        loggers = Loggers()
        modules = self.modules = modules_room.discover(self._tell_import, serve.deadly)
        loggers.restore()
        take_over_root()
        for found in modules.values():
            if found.broken:
                log.warning("module %s of %s is not served: %s", found.name, found.distribution, headline(found.broken))
        spare_the_collector()
        runner = Runner(modules, self.hooks, self._say, self._page, self)
        runner.open(self._tidy, Collector(), self._keep_surroundings, self._restore_logs)
        return runner

    def _tell_import(self, module: str) -> None:
        """Tell the supervisor at once which import follows, because the import may be the last act of this process."""
        self._channel.sendall(pack([Importing(module)]))

    def _keep_surroundings(self) -> None:
        """Note the state that jobs find from now on; changes by plugins at their start are intended."""
        self._surroundings = Surroundings(getsignal, signal)

    def _tidy(self) -> None:
        """Restore what a job has changed for the whole process."""
        if self._runner is None or self._surroundings is None:
            return  # No job has run yet.
        self._runner.whose.restore()
        try:
            changed = self._surroundings.changed()
        except Exception as error:  # A job has broken functions of Python that the checks call.
            if not self._is_spoiled:
                self._is_spoiled = True
                quietly(log.error, "what jobs have changed cannot be looked at: %s: %s", type(error).__name__, error)
                self._say(Spoiled("functions of Python"))
            return
        for left_out in self._repeats.left_out(OwnClock.monotonic()):
            quietly(log.warning, "%s", left_out)
        say_left_out()
        if changed:
            words = " and the ".join(changed)
            self._surroundings.restore()
            self._tell_change(words)
            self._last_words.listen()
            get_hub().loop.install_sigchld()
            if self._surroundings.changed():  # Lowered limits and closed files cannot be restored.
                self._surroundings.close()
                self._keep_surroundings()  # So that this is reported once.
                self._say(Spoiled(words))

    def _say_rest(self) -> None:
        for left_out in self._repeats.rest():
            quietly(log.warning, "%s", left_out)
        say_left_out(is_last=True)
        if self._stray is not None:
            self._stray.close()

    def _restore_logs(self) -> None:
        """Restore the logging of this process before any line except those of the job that has changed it."""
        surroundings = self._surroundings
        try:
            if surroundings is not None and not surroundings.logs.are_kept():
                surroundings.logs.restore()
                self._tell_change("loggers")
        except Exception:  # A job has broken functions of Python: `_tidy` reports that.
            return

    def _tell_change(self, words: str) -> None:
        if self._repeats.may_say(f"jobs that have changed the {words} of their process", OwnClock.monotonic()):
            quietly(log.warning, "a job has changed the %s of its process; put back", words)

    # The channel.

    def _say(self, note: Any) -> None:
        if isinstance(note, Progress):
            self._hints[note.fence] = note
        else:
            self._out.append(note)
        if not self._rung.is_set():
            self._rung.set()

    def _send_forever(self) -> None:
        try:
            self._send_all()
        except OSError:
            return  # The supervisor is gone; the reading greenlet handles that.

    def _send_all(self) -> None:
        while True:
            self._rung.wait()
            self._rung.clear()
            out, self._out, self._hints = [*self._hints.values(), *self._out], [], {}
            if out:
                self._channel.sendall(pack(out))
            elif self._runner is not None and self._runner.telling.over.is_set():
                return

    def _read_forever(self, reader: NoteReader, notes_: list[Any]) -> None:
        assert self._runner is not None
        while True:
            for start in range(0, len(notes_), AT_ONCE):
                self._runner.take(*notes_[start : start + AT_ONCE])
                if len(notes_) > AT_ONCE:
                    sleep(0)  # Let these run and be reported before the rest start.
            data = self._channel.receive()
            if not data:
                return
            self._let_go_of_readers()
            notes_ = reader.feed(data)

    def _let_go_of_readers(self) -> None:
        try:
            if let_go_of_readers(_make_poll) and self._surroundings is not None:
                self._surroundings.take_streams()
        except Exception:  # No descriptors are left, or a job has broken a function that the check calls.
            return

    def _stop_all(self, runner: Runner) -> None:
        """Stop all jobs: the supervisor is gone, killed perhaps, and nobody would hear their reports."""
        if getpid() != self._pid:
            _exit(WRONG_PROCESS)
        quietly(log.error, "the supervisor is gone; all jobs are stopped")
        runner.end_all("shutdown", "shutdown: the supervisor of its worker is gone")
        with Timeout(LAST_S, False):  # type: ignore[arg-type]
            while runner.attempts:
                sleep(0.01)

    # Jobs that fork.

    def after_fork(self) -> None:
        """In a fork: use neither the channel nor the shared page, which are the parent's."""
        assert self._runner is not None
        be_stopped_by_signals()
        forks.detach(self._channel.fileno())
        self._runner.after_fork()
