"""One attempt, as a line of steps over one record: load, before_run, process, classify, after_run, report.

A step never raises: an error is a value that later steps read, so the line does not fork, and an error of job code or of a
plugin fails this attempt alone. The same steps run in a greenlet beside others and, without those for plugins, in a job's own
process; this module does not know which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger, LoggerAdapter, getLogger
from os import _exit, getpid
from types import CoroutineType, GeneratorType
from typing import Any, Final

from givalia_core.frozen import BUILTINS, OwnClock
from givalia_core.hooks import Hooks
from givalia_core.model import OutcomeKind
from givalia_core.modules import NOT_RUN_ADVICE, PLAIN, Fail, Stopped, WorkModule, not_run
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import Dispatch, FailReport, Progress, Succeed
from givalia_core.protocol.values import CannotPack, pack, unpack
from givalia_core.repeats import Repeats
from givalia_core.steady import quietly
from givalia_core.times import to_datetime
from givalia_core.views import Outcome, RunningJobView, running_view, text_id
from givalia_core.worker.attempt.raised import asked_for, shown
from givalia_core.worker.attempt.wary import is_a, name_of
from givalia_core.worker.reasons import about, clipped

__builtins__ = BUILTINS

ERROR_BYTES_MAX: Final = 16 << 10
WRONG_PROCESS: Final = 70  # The exit code of a fork of a job that returns into the worker's code.

job_log = getLogger("givalia.job")
_repeats: Final = Repeats()


class JobLog(LoggerAdapter[Logger]):
    """The log of a job. A line that cannot be written is lost, and the job goes on: another job may have closed the stream."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line as `logging.Logger.log` does."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # Show the line of the job's code, not of this method.
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            return


class Filled:
    """The fields that the steps of an attempt fill, with their initial values."""

    pid = 0  # The pid of its process, if that was looked up once for all attempts.
    is_stop_asked = False  # A client has cancelled the job.
    is_in_process = False
    has_run = False  # Its code has ended.
    is_left = False  # It was reported while its code goes on; what the code does then is ignored.
    stopped: Stopped | None = None
    params: Any = None
    work: WorkModule | None = None
    value: Any = None
    raised: BaseException | None = None
    asked: tuple[bool, int | None] = False, None  # The wishes of the exception: see `asked_for`.
    words = ""  # The words of the exception, if they could be shown.
    seconds = 0.0
    kind = OutcomeKind.FAILED
    error: str | None = None
    result = b""
    result_error: str | None = None
    _job: RunningJobView | None = None


@dataclass(eq=False)
class Attempt(Filled):
    """One attempt from its dispatch to its report; each step reads and fills its part. The module sees it as its `Run`.

    Args:
        dispatch: What the server lent.
        found: The class of the module; None if this worker does not have it.
        hooks: The plugins to tell; None if there are none, or if another process tells them.
        send: Takes reports and hints on their way to the server.
    """

    dispatch: Dispatch
    found: type[WorkModule] | None
    hooks: Hooks | None
    send: Callable[[Any], None]

    @property
    def job(self) -> RunningJobView:
        """The job as modules and plugins see it; made on demand, because making it takes longer than most steps."""
        if self._job is None:
            self._job = view(self.dispatch, self.params)
        return self._job

    @property
    def log(self) -> JobLog:
        """The log of the job; its lines carry the job's id, key and attempt."""
        job = self.job
        return JobLog(job_log, {"job_id": job.id, "key": job.key, "attempt": job.attempt, "job_module": job.module})

    @property
    def outcome(self) -> Outcome:
        """The end of the attempt as plugins see it; made on demand."""
        result = None if self.raised is not None or self.result_error else self.value
        return Outcome(self.kind, result, self.error, self.seconds)

    def is_cancelled(self) -> bool:
        """Return whether a client has cancelled the job."""
        return self.is_stop_asked

    def tell(self, fraction: float, words: str) -> None:
        """Send a hint of the job's progress."""
        self.send(Progress(self.dispatch.id, self.dispatch.fence, fraction, words))

    def begin(self) -> None:
        """Start the timer of a job with a timeout: its code runs next."""

    def finish(self) -> None:
        """Stop the timer of a job with a timeout: its code has ended."""

    def let_go(self) -> None:
        """Forget the objects of the job: they refer to the attempt, so otherwise only the collector would free them."""
        self.work = self.value = self.raised = self.stopped = None


def execute(attempt: Attempt) -> None:
    """Take an attempt through the steps, and send its report."""
    for step in STEPS_WITHOUT_PLUGINS if attempt.hooks is None else STEPS:
        step(attempt)
        if attempt.is_left:
            return
    attempt.send(report(attempt))


def view(dispatch: Dispatch, params: Any = None) -> RunningJobView:
    """Return a dispatched job as its module and the plugins see it."""
    return running_view(
        {
            "id": text_id(dispatch.id),
            "key": dispatch.key,
            "module": dispatch.module,
            "target_worker": dispatch.target_worker,
            "priority": dispatch.priority,
            "attempt": dispatch.attempt,
            "due": to_datetime(dispatch.due_us),
            "version": dispatch.version,
            "fence": dispatch.fence,
            "params": params,
        }
    )


def load(attempt: Attempt) -> None:
    """Decode the params."""
    try:
        attempt.params = unpack(attempt.dispatch.payload)
    except Exception as error:
        attempt.raised = Fail(f"the params are not msgpack: {error}")
    if attempt.found is None and attempt.raised is None:
        attempt.raised = RuntimeError(f"this worker does not serve {attempt.dispatch.module}")


def before_run(attempt: Attempt) -> None:
    """Tell the plugins that the attempt starts."""
    if attempt.hooks is not None and attempt.hooks.listens("before_run"):
        attempt.hooks.call("before_run", job=attempt.job, module=attempt.found or WorkModule)


def process(attempt: Attempt) -> None:
    """Run all code of the job: constructor, packing of the result, methods of exceptions. `Stopped` is raised only here."""
    if attempt.raised is None:
        attempt.raised = attempt.stopped
    here, started_s, has_limit = attempt.pid or getpid(), OwnClock.monotonic(), attempt.dispatch.timeout_us is not None
    try:
        if has_limit:
            attempt.begin()
        attempt.is_in_process = True
        if attempt.raised is None:
            _run(attempt)
        if attempt.raised is not None:
            attempt.asked = asked_for(attempt.raised)
            attempt.words = shown(attempt.raised)
    except BaseException as error:  # `Stopped`, or an error in a method of the exception.
        if attempt.raised is None:
            attempt.raised = error
    finally:
        attempt.is_in_process = False
        if getpid() != here:
            _exit(WRONG_PROCESS)  # This is a fork of the job: the parent does the rest.
        attempt.has_run = True
        if has_limit:
            attempt.finish()
        attempt.seconds = OwnClock.monotonic() - started_s


def _run(attempt: Attempt) -> None:
    assert attempt.found is not None
    try:
        attempt.work = attempt.found(attempt)  # type: ignore[arg-type]
        value = attempt.value = attempt.work.process()
        if type(value) not in PLAIN and (kind := not_run(value)) is not None:
            attempt.raised = _not_run(value, kind)
            return
        try:
            attempt.result = packed = pack(value, "result")
        except BaseException as error:  # A result may run code when it is packed.
            _lose_result(attempt, error)
        else:
            if len(packed) > RESULT_BYTES_MAX:
                _lose_result(attempt, len(packed))
    except BaseException as error:  # SystemExit, KeyboardInterrupt, anything fails this attempt alone.
        attempt.raised = error


def _not_run(value: Any, kind: str) -> Fail:
    if is_a(value, CoroutineType) or is_a(value, GeneratorType):
        value.close()  # Else Python would warn that it was never awaited.
    return Fail(f"process returned {kind} that nobody runs; {NOT_RUN_ADVICE}")


def classify(attempt: Attempt) -> None:
    """Classify the end of the attempt."""
    if attempt.raised is None:
        attempt.kind = OutcomeKind.SUCCEEDED
        return
    why = attempt.stopped.why if attempt.stopped is not None else None
    if why == "timeout":
        attempt.kind = OutcomeKind.TIMEOUT
    elif why is not None or attempt.is_cancelled():
        attempt.kind = OutcomeKind.STOPPED
    else:
        attempt.kind = OutcomeKind.FAILED
    attempt.error = _words(attempt, attempt.raised)


def _lose_result(attempt: Attempt, why: BaseException | int) -> None:
    """Drop a result that cannot be packed or is too large: the job's effect happened, so the job has succeeded."""
    if type(why) is int:
        code, words = "TOO_LARGE", f"it has {why} bytes; at most {RESULT_BYTES_MAX} are kept"
    elif is_a(why, MemoryError):
        code, words = "TOO_LARGE", "there was no memory to pack it"
    elif is_a(why, CannotPack):
        code, words = "UNSERIALIZABLE", str(why)
    elif attempt.stopped is not None:
        raise why  # type: ignore[misc]
    else:
        code, words = "UNSERIALIZABLE", f"packing it raised {name_of(why)}"
    attempt.result, attempt.result_error = b"", code
    attempt.error = clipped(f"the result was not kept: {words}")
    say_left_out()
    if _repeats.may_say(f"results of {attempt.dispatch.module} that were not kept", OwnClock.monotonic()):
        quietly(job_log.warning, "%s", attempt.error, extra=about(attempt.dispatch))


def say_left_out(*, is_last: bool = False) -> None:
    """Log how many lost results had no line of their own, if that is due; at once if the process ends."""
    for left_out in _repeats.rest() if is_last else _repeats.left_out(OwnClock.monotonic()):
        quietly(job_log.warning, "%s", left_out)


def _words(attempt: Attempt, raised: BaseException) -> str:
    words = attempt.words or f"{name_of(raised)} (what it says of itself cannot be shown)"
    if attempt.stopped is not None:
        words = f"{attempt.stopped}\n{words}"
    elif is_a(raised, MemoryError):
        words = f"oom: there was no memory for what it did\n{words}"
    return clipped(words)


def after_run(attempt: Attempt) -> None:
    """Tell the plugins of the end."""
    if attempt.hooks is not None and attempt.hooks.listens("after_run"):
        attempt.hooks.call("after_run", job=attempt.job, module=attempt.found or WorkModule, outcome=attempt.outcome)


def report(attempt: Attempt) -> Succeed | FailReport:
    """Return the report for the server; an attempt whose lease was lost has failed, whatever its code did then."""
    dispatch, raised = attempt.dispatch, attempt.raised
    if attempt.stopped is not None and attempt.stopped.why == "lease":
        return FailReport(dispatch.id, dispatch.fence, str(OutcomeKind.DIED), str(attempt.stopped))
    if raised is None:
        return Succeed(dispatch.id, dispatch.fence, attempt.result_error, attempt.result)
    is_permanent, after_us = attempt.asked
    return FailReport(dispatch.id, dispatch.fence, str(attempt.kind), attempt.error or "", after_us, is_permanent)


STEPS: Final = (load, before_run, process, classify, after_run)
STEPS_WITHOUT_PLUGINS: Final = (load, process, classify)
