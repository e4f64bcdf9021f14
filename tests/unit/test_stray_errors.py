"""Uncaught errors go to the log."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import gevent
import pytest
from waits import yield_until

from givalia_core import stray_errors
from givalia_core.repeats import Repeats
from givalia_core.stray_errors import log_stray_errors

LOG = logging.getLogger("givalia.worker")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    hub = gevent.get_hub()
    before = threading.excepthook, sys.unraisablehook, sys.excepthook
    yield
    vars(hub).pop("print_exception", None)
    threading.excepthook, sys.unraisablehook, sys.excepthook = before
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").handlers.clear()


def fail() -> None:
    raise ValueError("stray")


class Fails:
    def __del__(self) -> None:
        fail()


def in_greenlet() -> None:
    gevent.spawn(fail).join()
    gevent.sleep(0)


def in_thread() -> None:
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def in_destructor() -> None:
    Fails()


def at_end() -> None:
    try:
        fail()
    except ValueError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]


@pytest.mark.parametrize("where", [in_greenlet, in_thread, in_destructor, at_end])
def test_an_error_that_nobody_caught_is_logged_and_not_printed(
    where: Callable[[], None], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = log_stray_errors(LOG, gevent.get_hub(), gevent.spawn)

    for _ in range(20):
        where()

    records = [record for record in caplog.records if record.name == LOG.name]
    assert len(records) == 10  # The others are counted.
    assert all(record.levelno == logging.ERROR and "ValueError" in record.getMessage() for record in records)
    assert "stray" in caplog.text
    assert capsys.readouterr().err == ""

    stray.close()
    assert "10 more errors that nobody caught (ValueError)" in caplog.text


def test_a_storm_that_is_over_is_counted_without_another_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stray_errors, "POLL_S", 0.01)
    monkeypatch.setattr(stray_errors, "Repeats", partial(Repeats, period_s=0.1))
    stray = log_stray_errors(LOG, gevent.get_hub(), gevent.spawn)

    for _ in range(11):
        in_thread()
    yield_until(lambda: "1 more errors that nobody caught (ValueError), within 0.1 s" in caplog.text, "the count")
    stray.close()


def test_a_warning_is_logged_as_by_a_logger_that_nobody_has_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[logging.LogRecord] = []
    last = logging.Handler()
    last.emit = written.append  # type: ignore[method-assign]
    monkeypatch.setattr(logging, "lastResort", last)
    monkeypatch.setattr(logging.root, "handlers", [])
    log_stray_errors(LOG)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("do otherwise", DeprecationWarning, stacklevel=1)

    (record,) = written
    assert "do otherwise" in record.getMessage()
