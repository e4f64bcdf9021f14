"""What a job changes for its process: Givalia's loggers go on logging, whatever `logging.config` is told."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable, Iterator

import pytest

from givalia_core.worker.child import Forwarding
from givalia_core.worker.surroundings import Loggers, Surroundings

JOBS = logging.getLogger("givalia.job")


def clear_handlers() -> None:
    logging.getLogger("givalia").handlers.clear()


def raise_level() -> None:
    logging.getLogger("givalia").setLevel(logging.CRITICAL)


CHANGES: dict[str, Callable[[], object]] = {
    "dictConfig": lambda: logging.config.dictConfig({"version": 1}),
    "dictConfig of ours": lambda: logging.config.dictConfig({"version": 1, "loggers": {"givalia": {"level": "ERROR"}}}),
    "disable": lambda: logging.disable(logging.CRITICAL),
    "handlers": clear_handlers,
    "level": raise_level,
}


@pytest.fixture
def said() -> Iterator[list[object]]:
    root = logging.getLogger("givalia")
    before = root.level, root.propagate, list(root.handlers), logging.root.level, list(logging.root.handlers)
    said: list[object] = []
    root.handlers[:] = [Forwarding(said.append)]
    root.propagate = False
    root.setLevel("INFO")
    yield said
    root.level, root.propagate, root.handlers[:], logging.root.level, logging.root.handlers[:] = before
    logging.disable(logging.NOTSET)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.mark.parametrize("how", CHANGES)
def test_what_a_job_does_to_the_loggers_is_noticed_and_put_back(said: list[object], how: str) -> None:
    surroundings = Surroundings()
    CHANGES[how]()
    assert surroundings.changed() == ["loggers"]

    surroundings.restore()

    assert surroundings.changed() == []
    JOBS.info("a line")
    assert len(said) == 1
    surroundings.close()


def test_a_handler_that_is_added_may_stay(said: list[object]) -> None:
    loggers = Loggers()
    added = logging.NullHandler()
    logging.getLogger("givalia").addHandler(added)

    assert loggers.are_kept()
    loggers.restore()
    assert added in logging.getLogger("givalia").handlers


def test_a_line_whose_values_do_not_fit_it_fails_no_job() -> None:
    said: list[object] = []

    Forwarding(said.append).emit(logging.LogRecord("givalia.job", logging.INFO, "file.py", 7, "%s %s", (1,), None))

    assert "%s %s" in str(said)
