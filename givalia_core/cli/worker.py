"""`givalia-worker`: runs the WorkModules installed in its environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import gevent

from givalia_core import hooks, program
from givalia_core.cli import common, endings
from givalia_core.cli.notify import Notifier
from givalia_core.cli.requests import Requests
from givalia_core.settings import WorkerSettings
from givalia_core.stray_errors import log_stray_errors
from givalia_core.streams import outlast_readers
from givalia_core.worker.supervisor import Supervisor

PROG = "givalia-worker"
WORDS = """A Givalia worker: runs jobs with the WorkModules of the packages installed in its environment.

It connects to the worker port of its server, or of one of several that share a store (-m HOST,HOST). If the connection is
lost, it tries the servers in turn until one accepts it. Jobs run as greenlets of one process, or in processes of their own,
as their module says; this process runs none, and replaces those that fail.

SIGTERM or SIGINT: take no more jobs, let running ones end (see --grace), report, exit; another one more than a second later
exits at once. SIGUSR1 or SIGHUP: read the settings again, and replace the processes one by one: newly installed packages
are used, and no job is stopped. --watch does so by itself. A SIGHUP because its terminal is gone: stop."""

RELOAD_S = 60.0  # A service manager waits for a reload, and not for ever.

log = logging.getLogger("givalia.worker")


def main(arguments: list[str] | None = None) -> int:
    """Run the console script."""
    return endings.run(PROG, _main, arguments, is_daemon=True)


def _main(arguments: list[str]) -> int:
    settings, read_settings, notices = common.begin(
        PROG, WORDS, WorkerSettings, "givalia_core.cli.worker", arguments, "is connected"
    )
    notifier = Notifier.from_environment()
    # The leases of running jobs end by themselves, and the jobs run again elsewhere; the processes notice and end.
    requests = Requests(lambda: os._exit(1))
    requests.note()
    outlast_readers()
    program.start_log(settings.log_level, settings.log_file, settings.plugins)
    stray = log_stray_errors(log, gevent.get_hub(), gevent.spawn)
    program.spare_the_collector()
    supervisor = Supervisor(settings)
    supervisor.start()
    common.log_all(log, (*notices, *hooks.missing(settings.plugins, program.LOG_FORMATS)))
    requests.listen(lambda why: _reload(supervisor, read_settings, notifier, why))
    gevent.spawn(_tell_when_connected, supervisor, notifier)
    watching = gevent.spawn(notifier.watch_forever)
    requests.stop.wait()
    notifier.stopping("draining")
    supervisor.stop()
    watching.kill()
    stray.close()
    log.info("stopped")
    return 0


def _reload(supervisor: Supervisor, read_settings: Callable[[], WorkerSettings], notifier: Notifier, why: str) -> None:
    notifier.reloading()
    try:
        settings = read_settings()
        program.start_log(settings.log_level, settings.log_file, settings.plugins)
        common.say_read_again(log, supervisor.change(settings))
        common.log_all(log, hooks.missing(settings.plugins, program.LOG_FORMATS))
    except Exception as error:
        log.error("the settings are as they were: %s", error)
    replaced = supervisor.reload(why)
    has_taken_over = supervisor.connected.is_set() and replaced.wait(RELOAD_S)
    notifier.reloaded("the processes are replaced" if has_taken_over else "the processes before go on until others are ready")


def _tell_when_connected(supervisor: Supervisor, notifier: Notifier) -> None:
    supervisor.connected.wait()
    common.tell_ready()
    notifier.ready("connected")


if __name__ == "__main__":
    raise SystemExit(main())
