"""Lines of plugins and of other processes, in a host whose logging a job changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from waits import yield_until

from givalia_core import WorkModule, hookimpl
from givalia_core.hooks import Hooks
from givalia_core.loggers import Logging
from givalia_core.modules import describe
from givalia_core.protocol.messages import Dispatch
from givalia_core.worker.attempt.runner import Runner
from givalia_core.worker.notes import Logged
from givalia_core.worker.page import SharedPage

HALF_WAY: list[Callable[[], None]] = []


class Mute(WorkModule):
    """Has nothing logged any more, and lets others go on before it ends."""

    def process(self) -> None:
        logging.disable(logging.CRITICAL)
        HALF_WAY[0]()


class Plugin:
    """Logs by a logger of its own."""

    @hookimpl
    def after_run(self) -> None:
        logging.getLogger("somebodys.plugin").warning("after the job")


@pytest.fixture
def logs() -> Iterator[Logging]:
    logs = Logging()
    yield logs
    logs.restore()


def test_a_job_that_mutes_all_loggers_mutes_no_plugin_and_no_other_process(
    logs: Logging, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[Any] = []
    runner = Runner({"Mute": describe("Mute", "test", "0", Mute)}, Hooks([Plugin()]), said.append, SharedPage(), Mock())
    fields = {"name": "givalia.job", "levelno": logging.WARNING, "levelname": "WARNING", "msg": "of a job apart"}
    HALF_WAY[:] = [lambda: runner.take(Logged(fields))]
    runner.open(restore_logs=logs.restore)
    try:
        runner.take(Dispatch(b"i" * 16, 1, "Mute", 1, 0, payload=b"\xc0"))
        yield_until(lambda: len(said) >= 2, "both messages")
    finally:
        runner.close()

    assert [record.getMessage() for record in caplog.records] == ["of a job apart", "after the job"]
