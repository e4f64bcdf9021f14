"""One attempt, as a line of steps over one record: load, before_run, process, classify, after_run, report.

A step never raises: what goes wrong is a value that later steps read, so the line does not fork, and whatever job code or a
plugin does fails this attempt and nothing else.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

import gevent
import msgpack

from givalia_core.clock import SECOND_US
from givalia_core.hooks import Hooks
from givalia_core.model import OutcomeKind
from givalia_core.modules import Fail, FoundModule, Retry, Run, WorkModule
from givalia_core.protocol import messages
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import Dispatch, Progress, Succeed
from givalia_core.views import Outcome, RunningJobView, text_id, to_datetime

ERROR_BYTES_MAX: Final = 16 << 10

log = logging.getLogger("givalia.worker")
job_log = logging.getLogger("givalia.job")


class LeaseLost(BaseException):
    """Raised inside a job whose lease is over: another attempt may begin elsewhere, so this one must end."""


class WorkerStopping(BaseException):
    """Raised inside a job that has not ended in the time a stopping worker gives it."""


class Attempt:
    """One attempt from its dispatch to its report; each step reads and fills its part."""

    def __init__(self, dispatch: Dispatch, found: FoundModule | None, hooks: Hooks, send: Callable[[Any], None]) -> None:
        self.dispatch = dispatch
        self.found = found
        self.hooks = hooks
        self.send = send
        self.greenlet: gevent.Greenlet[..., None] | None = None
        self.is_stop_asked = False
        self.is_in_process = False
        self.ended_by: LeaseLost | WorkerStopping | None = None
        self.job: RunningJobView | None = None
        self.run: Run | None = None
        self.work: WorkModule | None = None
        self.value: Any = None
        self.raised: BaseException | None = None
        self.is_timeout = False
        self.seconds = 0.0
        self.result = b""
        self.result_error: str | None = None
        self.outcome = Outcome(OutcomeKind.FAILED)

    def ask_stop(self) -> bool:
        """Let the job see that it was cancelled; whether this is news."""
        is_news, self.is_stop_asked = not self.is_stop_asked, True
        if self.run is not None:
            self.run.is_cancelled = True
        return is_news

    def end_by(self, error: LeaseLost | WorkerStopping) -> None:
        """End the attempt from outside: raised inside the job's code, and only there, so that no plugin swallows it."""
        self.ended_by = error
        if self.is_in_process and self.greenlet is not None:
            self.greenlet.kill(error, block=False)

    def tell(self, fraction: float, words: str) -> None:
        """Send a hint of how far the job is."""
        self.send(Progress(self.dispatch.id, self.dispatch.fence, fraction, words))


def execute(attempt: Attempt) -> None:
    """Take an attempt through the steps."""
    for step in STEPS:
        step(attempt)


def view(dispatch: Dispatch, params: Any = None) -> RunningJobView:
    """A dispatched job as its module and the plugins see it."""
    return RunningJobView(
        text_id(dispatch.id), dispatch.key, dispatch.module, dispatch.target_worker, dispatch.priority,
        dispatch.attempt, to_datetime(dispatch.due_us), dispatch.fence, params,
    )  # fmt: skip


def load(attempt: Attempt) -> None:
    """Decode the params and make the module's instance."""
    dispatch = attempt.dispatch
    params = None
    try:
        params = msgpack.unpackb(dispatch.payload, strict_map_key=False) if dispatch.payload else None
    except Exception as error:
        attempt.raised = Fail(f"the params are not msgpack: {error}")
    job = attempt.job = view(dispatch, params)
    lines = logging.LoggerAdapter(job_log, {"job_id": job.id, "key": job.key, "attempt": job.attempt, "job_module": job.module})
    attempt.run = Run(job, lines, attempt.tell)
    attempt.run.is_cancelled = attempt.is_stop_asked
    if attempt.found is None or attempt.found.work is None:
        attempt.raised = RuntimeError(f"this worker does not serve {dispatch.module}")
    elif attempt.raised is None:
        try:
            attempt.work = attempt.found.work(attempt.run)
        except BaseException as error:  # The constructor is job code, too.
            attempt.raised = error


def before_run(attempt: Attempt) -> None:
    """Tell the plugins that the attempt starts."""
    _tell_plugins(attempt, "before_run")


def process(attempt: Attempt) -> None:
    """Run the job's own code, within its time."""
    attempt.raised = attempt.raised or attempt.ended_by
    if attempt.raised is not None:
        return
    assert attempt.work is not None
    timeout_us = attempt.dispatch.timeout_us
    limit = None if timeout_us is None else gevent.Timeout(timeout_us / SECOND_US)
    started = time.monotonic()
    try:
        attempt.is_in_process = True
        if limit is not None:
            limit.start()
        attempt.value = attempt.work.process()
    except BaseException as error:  # SystemExit, KeyboardInterrupt, anything: it fails this attempt and nothing else.
        attempt.raised = error
        attempt.is_timeout = limit is not None and error is limit
    finally:
        attempt.is_in_process = False
        if limit is not None:
            limit.close()
        attempt.seconds = time.monotonic() - started


def classify(attempt: Attempt) -> None:
    """Say in our words how it ended, and pack the result."""
    raised = attempt.raised
    if raised is None:
        _pack_result(attempt)
        result = None if attempt.result_error else attempt.value
        attempt.outcome = Outcome(OutcomeKind.SUCCEEDED, result, None, attempt.seconds)
        return
    kind = OutcomeKind.FAILED
    if attempt.is_timeout:
        kind = OutcomeKind.TIMEOUT
    elif isinstance(raised, (LeaseLost, WorkerStopping)) or attempt.is_stop_asked:
        kind = OutcomeKind.STOPPED
    attempt.outcome = Outcome(kind, None, _words(attempt, raised), attempt.seconds)


def _pack_result(attempt: Attempt) -> None:
    """A result that cannot be kept costs the result, never the job: its effect happened."""
    try:
        packed: bytes = msgpack.packb(attempt.value)
        msgpack.unpackb(packed, strict_map_key=False)
    except MemoryError:
        attempt.result_error = "TOO_LARGE"
    except Exception:
        attempt.result_error = "UNSERIALIZABLE"
    else:
        if len(packed) > RESULT_BYTES_MAX:
            attempt.result_error = "TOO_LARGE"
        else:
            attempt.result = packed


def _words(attempt: Attempt, raised: BaseException) -> str:
    """What was raised, the end of a long traceback; never raises itself, whatever `__str__` does."""
    if attempt.is_timeout:
        return f"timeout: it ran longer than {(attempt.dispatch.timeout_us or 0) / SECOND_US:g} s"
    try:
        shown = [str(raised)] if isinstance(raised, (Fail, Retry)) else traceback.format_exception(raised)
        words = "".join(shown).strip()
    except BaseException:
        words = f"{type(raised).__name__} (what it says of itself cannot be shown)"
    return words.encode("utf-8", "replace")[-ERROR_BYTES_MAX:].decode("utf-8", "ignore")


def after_run(attempt: Attempt) -> None:
    """Tell the plugins how it ended."""
    _tell_plugins(attempt, "after_run", outcome=attempt.outcome)


def report(attempt: Attempt) -> None:
    """Tell the server how it ended; an attempt whose lease was lost has failed, whatever its code made of that."""
    dispatch, outcome, raised = attempt.dispatch, attempt.outcome, attempt.raised
    if isinstance(attempt.ended_by, LeaseLost):
        attempt.send(messages.Fail(dispatch.id, dispatch.fence, str(OutcomeKind.DIED), str(attempt.ended_by)))
        return
    if raised is None:
        attempt.send(Succeed(dispatch.id, dispatch.fence, attempt.result_error, attempt.result))
        return
    after_us = raised.after_us if isinstance(raised, Retry) else None
    attempt.send(
        messages.Fail(dispatch.id, dispatch.fence, str(outcome.kind), outcome.error or "", after_us, isinstance(raised, Fail))
    )


def _tell_plugins(attempt: Attempt, name: str, **extra: Any) -> None:
    if attempt.hooks.listens(name):
        work = attempt.found.work if attempt.found is not None else None
        attempt.hooks.call(name, job=attempt.job, module=work or WorkModule, **extra)


STEPS: Final = (load, before_run, process, classify, after_run, report)
