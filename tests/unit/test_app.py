"""A worker within a program of its own: the messages between its two threads."""

from __future__ import annotations

import logging

import pytest
from waits import yield_until

from givalia_core.worker.app import Relayed
from givalia_core.worker.link import Bell


def test_a_line_of_the_links_thread_keeps_what_belongs_to_it(caplog: pytest.LogCaptureFixture) -> None:
    bell = Bell(lambda left: None)
    try:
        Relayed(bell).warning("job %s took its process with it", 7, extra={"block": "a stack"})
        yield_until(lambda: caplog.records, "the line")
    finally:
        bell.close()

    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "job 7 took its process with it")
    assert record.block == "a stack"  # type: ignore[attr-defined]
