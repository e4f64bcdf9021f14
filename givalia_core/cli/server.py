"""`givalia-server`: the queue, for clients and workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import gevent

from givalia_core import hooks, program
from givalia_core.cli import common, endings
from givalia_core.cli.notify import Notifier
from givalia_core.cli.requests import Requests
from givalia_core.server import Server
from givalia_core.settings import ServerSettings
from givalia_core.stray_errors import log_stray_errors
from givalia_core.streams import outlast_readers

PROG = "givalia-server"
WORDS = """The Givalia server: keeps jobs until they are due and hands them to workers.

It listens on loopback, for clients on one port and for workers on another, and keeps the queue in one file (see --store).
SIGTERM or SIGINT: take no new job, finish what is under way, sync, exit; one more than a second later exits at once,
equally safe. SIGUSR1 or SIGHUP: read the settings again; a SIGHUP because its terminal is gone: stop."""

log = logging.getLogger("givalia.server")


def main(arguments: list[str] | None = None) -> int:
    """Run the console script."""
    return endings.run(PROG, _main, arguments, is_daemon=True)


def _main(arguments: list[str]) -> int:
    settings, read_settings, notices = common.begin(
        PROG, WORDS, ServerSettings, "givalia_core.cli.server", arguments, "listens"
    )
    notifier = Notifier.from_environment()
    # Everything acknowledged is on disk, so an immediate end loses nothing.
    requests = Requests(lambda: os._exit(0))
    requests.note()
    outlast_readers()
    os.umask(0o077)
    program.spare_the_collector()
    program.start_log(settings.log_level, settings.log_file, settings.plugins)
    stray = log_stray_errors(log, gevent.get_hub(), gevent.spawn)
    server = Server(settings)
    server.open()
    common.log_all(log, (*notices, *hooks.missing(settings.plugins, program.LOG_FORMATS)))
    # Handle signals before the log says that the server listens: a SIGTERM sent at that line must drain the server.
    requests.listen(lambda _: _read_again(server, read_settings, notifier))
    server.listen()
    common.tell_ready()
    notifier.ready(f"listening: clients {server.client_port}, workers {server.worker_port}")
    watching = gevent.spawn(notifier.watch_forever, server.is_turning)
    requests.stop.wait()
    notifier.stopping("draining")
    server.stop()
    watching.kill()
    stray.close()
    log.info("stopped")
    return 0


def _read_again(server: Server, read_settings: Callable[[], ServerSettings], notifier: Notifier) -> None:
    notifier.reloading()
    try:
        settings = read_settings()
        program.start_log(settings.log_level, settings.log_file, settings.plugins)
    except Exception as error:
        log.error("the settings are as they were: %s", error)
        notifier.reloaded(f"the settings are as they were: {error}")
        return
    notifier.reloaded(common.say_read_again(log, server.reload(settings)))


if __name__ == "__main__":
    raise SystemExit(main())
