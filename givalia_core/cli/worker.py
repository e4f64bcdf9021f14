"""`givalia-worker`: runs the WorkModules that are installed beside it."""

from __future__ import annotations

import argparse

from gevent import monkey

from givalia_core.cli import common
from givalia_core.settings import WorkerSettings

PROG = "givalia-worker"
WORDS = """A Givalia worker: runs jobs with the WorkModules of the packages that are installed in its environment.

It connects to the server's worker port, and again for as long as it takes. Jobs run as greenlets of one process.
SIGTERM or SIGINT: take no more, let running jobs end (see --grace), report, exit; a second one exits at once.
SIGHUP: read the log settings again."""


def main(arguments: list[str] | None = None) -> int:
    """The console script."""
    return common.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    parser = common.parser(PROG, WORDS)
    parser.add_argument("-d", "--daemon", action="store_true", help="run in the background; print its PID when connected")
    common.add_settings(parser, WorkerSettings)
    given = parser.parse_args(arguments)
    settings = common.read_settings(WorkerSettings, given)
    if given.daemon:
        common.go_to_background("givalia_core.cli.worker", arguments, settings.log_file, PROG)
    return _work(settings, given)


def _work(settings: WorkerSettings, given: argparse.Namespace) -> int:
    """The worker's door: job code, whatever it imports first, finds the patched standard library."""
    monkey.patch_all()
    from givalia_core.cli.working import work

    return work(settings, lambda: common.read_settings(WorkerSettings, given))


if __name__ == "__main__":
    raise SystemExit(main())
