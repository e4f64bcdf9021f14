"""`givalia-worker`: runs the WorkModules that are installed beside it."""

from __future__ import annotations

from gevent import monkey

from givalia_core.cli import common
from givalia_core.settings import WorkerSettings

PROG = "givalia-worker"
WORDS = """A Givalia worker: runs jobs with the WorkModules of the packages that are installed in its environment.

It connects to the worker port of its server, or of one of several that share a store (-m HOST,HOST), and again, to the
next of them, for as long as it takes. Jobs run as greenlets of one process.
SIGTERM or SIGINT: take no more, let running jobs end (see --grace), report, exit; a second one exits at once.
SIGHUP: read the log settings again."""


def main(arguments: list[str] | None = None) -> int:
    """The console script."""
    return common.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    settings, read_again = common.begin(PROG, WORDS, WorkerSettings, "givalia_core.cli.worker", arguments, "is connected")
    # The worker's door: from here on job code, whatever it imports first, finds the patched standard library.
    monkey.patch_all()
    from givalia_core.cli.working import work

    return work(settings, read_again)


if __name__ == "__main__":
    raise SystemExit(main())
