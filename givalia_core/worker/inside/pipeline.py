"""One attempt, as a line of steps over one record: load, before_run, process, classify, after_run, report.

A step never raises: what goes wrong is a value that later steps read, so the line does not fork, and whatever job code or a
plugin does fails this attempt and nothing else. The same steps run in a greenlet beside others and, without those that call
plugins, in a job's own process; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger, LoggerAdapter, getLogger
from os import _exit, getpid
from traceback import TracebackException
from types import CoroutineType, GeneratorType
from typing import Any, Final

from givalia_core.frozen import BUILTINS, Clock
from givalia_core.headline import headline, own_line
from givalia_core.hooks import Hooks
from givalia_core.model import TEN_YEARS_US, OutcomeKind
from givalia_core.modules import NOT_RUN_ADVICE, Fail, Retry, Stopped, WorkModule, not_run
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import Dispatch, Progress, Succeed
from givalia_core.protocol.messages import Fail as Failed
from givalia_core.protocol.values import CannotPack, pack, unpack
from givalia_core.repeats import Repeats
from givalia_core.steady import quietly
from givalia_core.times import to_datetime
from givalia_core.views import Outcome, RunningJobView, running_view, text_id
from givalia_core.worker.held import about
from givalia_core.worker.inside.wary import is_a, leaves, name_of
from givalia_core.worker.reasons import NOT_ENDED, clipped

__builtins__ = BUILTINS

ERROR_BYTES_MAX: Final = 16 << 10
_HEAD: Final = "Traceback (most recent call last):"
WRONG_PROCESS: Final = 70  # The exit code of a process that a job has forked and that came back to the worker's code.


job_log = getLogger("givalia.job")
_repeats: Final = Repeats()


class Lines(LoggerAdapter[Logger]):
    """The log of a job. A line that cannot be written is lost, and the job goes on: another one may have closed the stream."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line as `logging.Logger.log` does."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # The line is that of the job's code, not of this.
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            return


class _Run:
    """A `Run` whose job and log are made when the module reads them, which most do not."""

    __slots__ = ("_attempt", "is_cancelled", "params", "tell")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self.params = attempt.params
        self.tell = attempt.tell
        self.is_cancelled = attempt.is_stop_asked

    @property
    def job(self) -> RunningJobView:
        return self._attempt.job

    @property
    def log(self) -> Lines:
        job = self._attempt.job
        return Lines(job_log, {"job_id": job.id, "key": job.key, "attempt": job.attempt, "job_module": job.module})


class Attempt:
    """One attempt from its dispatch to its report; each step reads and fills its part.

    Args:
        dispatch: What the server lent.
        work: The class that is to do it; None if this worker has none of the name.
        hooks: The plugins to tell; None where they are told elsewhere.
        send: Takes reports and hints on their way to the server.
    """

    def __init__(
        self, dispatch: Dispatch, work: type[WorkModule] | None, hooks: Hooks | None, send: Callable[[Any], None]
    ) -> None:
        self.dispatch = dispatch
        self.found = work
        self.hooks = hooks
        self.send = send

    # What the steps fill; until then each attempt has this in common with all others.
    is_cancelled = False
    is_in_process = False
    has_run = False  # Its code has ended.
    is_left = False  # It was reported though its code has not ended: what becomes of that is of no interest any more.
    stopped: Stopped | None = None
    params: Any = None
    work: WorkModule | None = None
    value: Any = None
    raised: BaseException | None = None
    asked: tuple[bool, int | None] = False, None  # What was raised asks for: see `_asked_for`.
    words = ""  # What was raised says of itself, if that could be shown.
    seconds = 0.0
    kind = OutcomeKind.FAILED
    error: str | None = None
    result = b""
    result_error: str | None = None
    _job: RunningJobView | None = None

    @property
    def job(self) -> RunningJobView:
        """The job as people's code is shown it; only made when somebody looks, since that takes longer than most steps."""
        if self._job is None:
            self._job = view(self.dispatch, self.params)
        return self._job

    def is_stop_asked(self) -> bool:
        """Whether somebody has cancelled the job."""
        return self.is_cancelled

    @property
    def outcome(self) -> Outcome:
        """How it ended, as people's code is shown it; only made when somebody looks."""
        result = None if self.raised is not None or self.result_error else self.value
        return Outcome(self.kind, result, self.error, self.seconds)

    def begin(self) -> None:
        """The job's own code is about to run: its time counts from now."""

    def finish(self) -> None:
        """The job's own code has ended: nothing is to be raised in it any more."""

    def let_go(self) -> None:
        """Forget what the job's code made, when all is said: it refers to the attempt, so only the collector would free it."""
        self.work = self.value = self.raised = self.stopped = None

    def tell(self, fraction: float, words: str) -> None:
        """Send a hint of how far the job is."""
        self.send(Progress(self.dispatch.id, self.dispatch.fence, fraction, words))


def execute(attempt: Attempt) -> None:
    """Take an attempt through the steps."""
    for step in STEPS:
        step(attempt)
        if attempt.is_left:
            return


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
    """Run the job's own code; what is raised inside from outside (`Stopped`) is raised here and in no other step.

    All of it that runs belongs to this step: the constructor, what packs the result, and what an exception says and asks for.
    """
    if attempt.raised is None:
        attempt.raised = attempt.stopped
    here = getpid()
    started = Clock.monotonic()
    try:
        attempt.begin()
        attempt.is_in_process = True
        if attempt.raised is None:
            _run(attempt)
        if attempt.raised is not None:
            attempt.asked = _asked_for(attempt.raised)
            attempt.words = _shown(attempt.raised)
    except BaseException as error:  # `Stopped`, or what an exception raises when it is shown.
        if attempt.raised is None:
            attempt.raised = error
    finally:
        attempt.is_in_process = False
        if getpid() != here:
            _exit(WRONG_PROCESS)  # The job has forked, and this is the fork: what follows is for the first one to do.
        attempt.has_run = True
        attempt.finish()
        attempt.seconds = Clock.monotonic() - started


def _run(attempt: Attempt) -> None:
    assert attempt.found is not None
    try:
        attempt.work = attempt.found(_Run(attempt))  # type: ignore[arg-type]
        attempt.value = attempt.work.process()
        if (kind := not_run(attempt.value)) is not None:
            attempt.raised = Fail(f"process returned {kind} that nobody runs; {NOT_RUN_ADVICE}")
            if is_a(attempt.value, CoroutineType) or is_a(attempt.value, GeneratorType):
                attempt.value.close()  # Or Python would warn that it was never awaited.
        else:
            _pack_result(attempt)
    except BaseException as error:  # SystemExit, KeyboardInterrupt, anything: it fails this attempt and nothing else.
        attempt.raised = error


def classify(attempt: Attempt) -> None:
    """Say in our words how it ended."""
    if attempt.raised is None:
        attempt.kind = OutcomeKind.SUCCEEDED
        return
    why = attempt.stopped.why if attempt.stopped is not None else None
    if why == "timeout":
        attempt.kind = OutcomeKind.TIMEOUT
    elif why is not None or attempt.is_stop_asked():
        attempt.kind = OutcomeKind.STOPPED
    else:
        attempt.kind = OutcomeKind.FAILED
    attempt.error = _words(attempt, attempt.raised)


def _pack_result(attempt: Attempt) -> None:
    """A result that cannot be kept costs the result, never the job: its effect happened."""
    try:
        packed = pack(attempt.value, "result")
    except MemoryError:
        _lose_result(attempt, "TOO_LARGE", "there was no memory to pack it")
    except CannotPack as error:
        _lose_result(attempt, "UNSERIALIZABLE", str(error))
    except BaseException as error:  # A result may run code of its own when it is packed.
        if attempt.stopped is not None:
            raise
        _lose_result(attempt, "UNSERIALIZABLE", f"packing it raised {name_of(error)}")
    else:
        if len(packed) > RESULT_BYTES_MAX:
            _lose_result(attempt, "TOO_LARGE", f"it has {len(packed)} bytes; at most {RESULT_BYTES_MAX} are kept")
        else:
            attempt.result = packed


def _lose_result(attempt: Attempt, why: str, words: str) -> None:
    attempt.result_error = why
    attempt.error = clipped(f"the result was not kept: {words}")
    say_left_out()
    if _repeats.may_say(f"results of {attempt.dispatch.module} that were not kept", Clock.monotonic()):
        quietly(job_log.warning, "%s", attempt.error, extra=about(attempt.dispatch))


def say_left_out(*, is_last: bool = False) -> None:
    """Say how many results were lost without a line, if that is due; at once if the process ends."""
    for left_out in _repeats.rest() if is_last else _repeats.left_out(Clock.monotonic()):
        quietly(job_log.warning, "%s", left_out)


def _shown(raised: BaseException) -> str:
    """Return what an exception says of itself, with its traceback unless it is `Fail` or `Retry`; that runs its own code."""
    try:
        if is_a(raised, Fail) or is_a(raised, Retry):
            words = str(raised).strip() or name_of(raised)
            own = headline(words) if words.startswith(_HEAD) else words  # The text of a traceback, which says what was raised.
            return _with_headline(words, own) + _cause(raised.__cause__)
        told = _told(raised)
        return _with_headline("".join(told.format()).strip(), next(told.format_exception_only()))
    except Exception:
        return ""


def _told(raised: BaseException) -> TracebackException:
    return TracebackException(type(raised), raised, raised.__traceback__, compact=True)


def _cause(cause: BaseException | None) -> str:
    """Return what stands below the words of `raise Fail(words) from cause`; nothing if that cannot be shown."""
    if cause is None:
        return ""
    try:
        # Words are no traceback, whatever they are caused by: each may be another, and they are counted by their module.
        shown = "".join(_told(cause).format()).strip().replace(_HEAD, "calls (most recent last):")
    except Exception:
        return ""
    return "\n".join(["", "    caused by", *("    " + line for line in shown.splitlines())])


def _with_headline(shown: str, own: str) -> str:
    """Return an error that can be read to begin with its own line, whatever other tracebacks its message has."""
    own = own_line(own.splitlines() or [""])
    # The own line of a SyntaxError stands behind lines of code.
    if own[:1].isspace() or headline(shown) == headline(own):
        return shown
    return "\n".join([own, *("    " + line for line in shown.splitlines())])


def _words(attempt: Attempt, raised: BaseException) -> str:
    words = attempt.words or f"{name_of(raised)} (what it says of itself cannot be shown)"
    if attempt.stopped is not None:
        words = f"{attempt.stopped}\n{words}"
    elif is_a(raised, MemoryError):
        words = f"oom: there was no memory for what it did\n{words}"
    return clipped(words)


def after_run(attempt: Attempt) -> None:
    """Tell the plugins how it ended."""
    if attempt.hooks is not None and attempt.hooks.listens("after_run"):
        attempt.hooks.call("after_run", job=attempt.job, module=attempt.found or WorkModule, outcome=attempt.outcome)


def report(attempt: Attempt) -> None:
    """Tell the server how it ended."""
    attempt.send(report_of(attempt))


def report_left(attempt: Attempt) -> None:
    """Report an attempt whose code does not end."""
    assert attempt.stopped is not None
    attempt.raised = attempt.stopped
    classify(attempt)
    attempt.error = clipped(
        f"{attempt.stopped}; {NOT_ENDED}, so it was reported without waiting for its code\n{attempt.words}".strip()
    )
    send, attempt.send = attempt.send, _say_nothing
    after_run(attempt)
    send(report_of(attempt))


def _say_nothing(_: Any) -> None:
    """Drop progress that comes too late."""


def report_of(attempt: Attempt) -> Succeed | Failed:
    """What the server is told; an attempt whose lease was lost has failed, whatever its code made of that."""
    dispatch, raised = attempt.dispatch, attempt.raised
    if attempt.stopped is not None and attempt.stopped.why == "lease":
        return Failed(dispatch.id, dispatch.fence, str(OutcomeKind.DIED), str(attempt.stopped))
    if raised is None:
        return Succeed(dispatch.id, dispatch.fence, attempt.result_error, attempt.result)
    is_permanent, after_us = attempt.asked
    return Failed(dispatch.id, dispatch.fence, str(attempt.kind), attempt.error or "", after_us, is_permanent)


def _asked_for(raised: BaseException) -> tuple[bool, int | None]:
    """Return whether there is to be no other attempt, and what is to pass before one.

    Of a group one `Fail` decides; if all of it is `Retry`, the longest wait does.
    """
    parts = leaves(raised)
    if any(is_a(part, Fail) for part in parts):
        return True, None
    if not all(is_a(part, Retry) for part in parts):
        return False, None
    waits = [after_us for part in parts if (after_us := _after_us(part)) is not None]
    return False, max(waits, default=None)


def _after_us(retry: Any) -> int | None:
    """Return how long a `Retry` asks to wait. A class of job code's own may not have been made as ours is, or say anything."""
    try:
        after_us = retry.after_us
    except BaseException:
        return None
    return after_us if type(after_us) is int and 0 <= after_us <= TEN_YEARS_US else None


STEPS: Final = (load, before_run, process, classify, after_run, report)
STEPS_IN_CHILD: Final = (load, process, classify)
