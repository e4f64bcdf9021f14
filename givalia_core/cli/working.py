"""The worker's process behind its door: signals, the worker, and the way out. Imported once everything is patched."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

import gevent
from gevent.event import Event

from givalia_core.cli import common
from givalia_core.settings import WorkerSettings
from givalia_core.worker import Worker

log = logging.getLogger("givalia.worker")


def work(settings: WorkerSettings, read_settings: Callable[[], WorkerSettings]) -> int:
    """Work until asked to stop."""
    common.start_log(settings.log_level, settings.log_file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    common.spare_the_collector()
    worker = Worker(settings)
    worker.start()
    asked_to_stop = Event()

    def stop(number: int) -> None:
        if asked_to_stop.is_set():
            # The leases of what runs will end by themselves, and the jobs run again elsewhere.
            os._exit(1)
        log.info("%s: draining", signal.Signals(number).name)
        asked_to_stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop, number)
    gevent.signal_handler(signal.SIGHUP, gevent.spawn, _read_again, read_settings)
    gevent.spawn(_tell_when_connected, worker)
    asked_to_stop.wait()
    worker.stop()
    log.info("stopped")
    return 0


def _read_again(read_settings: Callable[[], WorkerSettings]) -> None:
    try:
        again = read_settings()
        common.start_log(again.log_level, again.log_file)
        log.info("log settings read again")
    except Exception as error:
        log.error("the settings are as they were: %s", error)


def _tell_when_connected(worker: Worker) -> None:
    worker.connected.wait()
    common.tell_ready()
