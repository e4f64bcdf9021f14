"""`givalia-worker`: runs the WorkModules that are installed beside it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

import gevent
from gevent.event import Event

from givalia_core import program
from givalia_core.cli import common
from givalia_core.cli.notify import Notifier
from givalia_core.settings import WorkerSettings
from givalia_core.worker.supervisor import Supervisor

PROG = "givalia-worker"
WORDS = """A Givalia worker: runs jobs with the WorkModules of the packages that are installed in its environment.

It connects to the worker port of its server, or of one of several that share a store (-m HOST,HOST), and again, to the
next of them, for as long as it takes. Jobs run as greenlets of one process, or in processes of their own, as their module
says; this process runs none, and replaces those that fail.
SIGTERM or SIGINT: take no more, let running jobs end (see --grace), report, exit; a second one exits at once.
SIGHUP: read the settings again, and replace the processes one by one: packages that were installed meanwhile are
taken up, and no job is stopped. With --watch that happens by itself."""

RELOAD_S = 60.0  # A service manager waits for a reload, and not for ever.

log = logging.getLogger("givalia.worker")


def main(arguments: list[str] | None = None) -> int:
    """The console script."""
    return common.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    settings, read_settings, notices = common.begin(
        PROG, WORDS, WorkerSettings, "givalia_core.cli.worker", arguments, "is connected"
    )
    notifier = Notifier.from_environment()
    program.start_log(settings.log_level, settings.log_file)
    program.spare_the_collector()
    supervisor = Supervisor(settings)
    supervisor.start()
    common.log_all(log, notices)
    asked_to_stop = Event()

    def stop(number: int) -> None:
        if asked_to_stop.is_set():
            # The leases of what runs will end by themselves, and the jobs run again elsewhere; the processes notice and end.
            os._exit(1)
        log.info("%s: draining", signal.Signals(number).name)
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    gevent.signal_handler(signal.SIGHUP, gevent.spawn, _reload, supervisor, read_settings, notifier)
    gevent.spawn(_tell_when_connected, supervisor, notifier)
    watching = gevent.spawn(notifier.watch_forever)
    asked_to_stop.wait()
    notifier.stopping("draining")
    supervisor.stop()
    watching.kill()
    log.info("stopped")
    return 0


def _reload(supervisor: Supervisor, read_settings: Callable[[], WorkerSettings], notifier: Notifier) -> None:
    notifier.reloading()
    try:
        settings = read_settings()
        program.start_log(settings.log_level, settings.log_file)
        supervisor.change(settings)
        log.info("settings read again")
    except Exception as error:
        log.error("the settings are as they were: %s", error)
    replaced = supervisor.reload("SIGHUP")
    has_taken_over = supervisor.connected.is_set() and replaced.wait(RELOAD_S)
    notifier.reloaded("the processes are replaced" if has_taken_over else "the processes before go on until others are ready")


def _tell_when_connected(supervisor: Supervisor, notifier: Notifier) -> None:
    supervisor.connected.wait()
    common.tell_ready()
    notifier.ready("connected")


if __name__ == "__main__":
    raise SystemExit(main())
