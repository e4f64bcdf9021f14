"""Code of jobs that behaves as a test wants, and the report of an attempt at such a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from waits import yield_until

from givalia_core import WorkModule
from givalia_core.hooks import Hooks
from givalia_core.modules import describe
from givalia_core.protocol.messages import Dispatch
from givalia_core.worker.attempt.pipeline import Attempt, execute
from givalia_core.worker.attempt.runner import Runner
from givalia_core.worker.page import SharedPage


def report_of(process: Callable[[Any], Any]) -> Any:
    """The report of an attempt whose module has this for its `process`."""
    said: list[Any] = []
    work = type("Work", (WorkModule,), {"process": process})
    execute(Attempt(Dispatch(bytes(16), 1, "Work", 1, 0), work, Hooks([]), said.append))
    (report,) = said
    return report


def raising(error: BaseException) -> Callable[[Any], Any]:
    def process(_: Any) -> None:
        raise error

    return process


def lying(**parts: Any) -> BaseException:
    error: BaseException = type("Lying", (Exception,), parts)("words")
    return error


def loud(*_: Any) -> Any:
    raise SystemExit(7)


class FakeWorker:
    """What a runner needs of its worker."""

    def __init__(self, stop_grace: float = 5.0, hook_limit: float = 5.0) -> None:
        self.settings = self
        self.stop_grace = stop_grace
        self.hook_limit = hook_limit
        self.counts: dict[str, int] = {}


@contextmanager
def runner_of(
    process: Any, *plugins: object, said: list[Any], page: SharedPage | None = None, **settings: float
) -> Iterator[Runner]:
    """A runner whose one module, `Work`, is this class, or has this for its `process`; it has said that it is ready."""
    work = process if isinstance(process, type) else type("Work", (WorkModule,), {"process": process})
    modules = {"Work": describe("Work", "test", "0", work)}
    runner = Runner(modules, Hooks(plugins), said.append, page or SharedPage(), FakeWorker(**settings))
    runner.open(runner.whose.restore)
    del said[:]
    try:
        yield runner
    finally:
        runner.close()


def run_out(runner: Runner) -> None:
    """Wait until no attempt is under way."""
    yield_until(lambda: not runner.attempts, "all attempts have ended")
