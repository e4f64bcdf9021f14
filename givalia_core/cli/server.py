"""`givalia-server`: the queue, for clients and workers."""

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
from givalia_core.server import Server
from givalia_core.settings import ServerSettings

PROG = "givalia-server"
WORDS = """The Givalia server: keeps jobs until they are due and hands them to workers.

It listens on loopback, for clients on one port and for workers on another, and keeps the queue in one file (see --store).
SIGTERM or SIGINT: take no new job, finish what is under way, sync, exit; a second one exits at once, equally safe.
SIGHUP: read the settings again."""

log = logging.getLogger("givalia.server")


def main(arguments: list[str] | None = None) -> int:
    """The console script."""
    return common.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    settings, read_settings, notices = common.begin(
        PROG, WORDS, ServerSettings, "givalia_core.cli.server", arguments, "listens"
    )
    notifier = Notifier.from_environment()
    os.umask(0o077)
    program.spare_the_collector()
    program.start_log(settings.log_level, settings.log_file)
    server = Server(settings)
    server.start()
    common.log_all(log, notices)
    asked_to_stop = Event()

    def stop(number: int) -> None:
        if asked_to_stop.is_set():
            # Nothing acknowledged is only in memory, so there is nothing to lose by leaving now.
            os._exit(0)
        log.info("%s: draining", signal.Signals(number).name)
        asked_to_stop.set()

    def read_again() -> None:
        gevent.spawn(_read_again, server, read_settings, notifier)

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    gevent.signal_handler(signal.SIGHUP, read_again)
    common.tell_ready()
    notifier.ready(f"listening: clients {server.client_port}, workers {server.worker_port}")
    watching = gevent.spawn(notifier.watch_forever, server.is_turning)
    asked_to_stop.wait()
    notifier.stopping("draining")
    server.stop()
    watching.kill()
    log.info("stopped")
    return 0


def _read_again(server: Server, read_settings: Callable[[], ServerSettings], notifier: Notifier) -> None:
    notifier.reloading()
    try:
        settings = read_settings()
        program.start_log(settings.log_level, settings.log_file)
    except Exception as error:
        log.error("the settings are as they were: %s", error)
        notifier.reloaded(f"the settings are as they were: {error}")
        return
    server.reload(settings)
    log.info("settings read again")
    notifier.reloaded("settings read again")


if __name__ == "__main__":
    raise SystemExit(main())
