"""The page shows whose code runs, even if a job has removed the code that notes this."""

from __future__ import annotations

from typing import Any

import gevent
import greenlet
from job_code import run_out, runner_of
from waits import yield_until

from givalia_core.protocol.messages import Dispatch
from givalia_core.worker.page import SharedPage


def test_whose_code_runs_is_noted_again_when_a_job_has_stopped_that() -> None:
    def process(_: Any) -> None:
        greenlet.settrace(None)
        gevent.sleep(60)

    page = SharedPage()
    with runner_of(process, said=[], page=page) as runner:
        runner.take(Dispatch(bytes(16), 7, "Work", 1, 0, timeout_us=1_000_000))
        yield_until(lambda: page.current == 7, "the job runs, and its pulse has noted that again")
        yield_until(lambda: not page.current, "nobody's code runs")
        run_out(runner)


def test_a_greenlet_that_a_job_starts_runs_that_jobs_code() -> None:
    page = SharedPage()
    seen: list[int] = []

    def process(_: Any) -> None:
        gevent.spawn(lambda: seen.append(page.current)).join()

    with runner_of(process, said=[], page=page) as runner:
        runner.take(Dispatch(bytes(16), 7, "Work", 1, 0))
        run_out(runner)

    assert seen == [7]
