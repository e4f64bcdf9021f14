"""The foreman: knows each job that this worker holds, what runs it, and when it must end.

It lives beside the link, on a hub that no job code shares. What the link brings it gives to a crew; what the crew reports it
gives to the link. A job that must end is told so in steps: a cancelled one first sees `self.cancelled`; then `Stopped` is
raised inside its code (in a process of its own by SIGTERM); then its process is killed. A greenlet that takes its process
with it costs its neighbours nothing but time: they are released, their attempt given back.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.event import Event

from givalia_core.clock import SECOND_US
from givalia_core.model import OutcomeKind
from givalia_core.printable import split
from givalia_core.protocol.messages import PROCESSES_MAX, Credit, Dispatch, Fail, Process, Progress, Release, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.steady import AGAIN_S, survives
from givalia_core.views import text_id
from givalia_core.worker.failures import Failures
from givalia_core.worker.held import Held, Lines, Suspects, Verdict
from givalia_core.worker.link import Answered, Connected, Disconnected, Dispatched, Link, LinkEvent, Lost, StopAsked
from givalia_core.worker.notes import After, Before, Cancelled, Counts, End, Ended, InHook, Logged, Told
from givalia_core.worker.processes.generations import Crew, Generations, Job
from givalia_core.worker.reasons import HOOK_LEFT_S, NOT_ENDED, WORDS, clipped, timed_out

TICK_S: Final = 0.1
END_S: Final = 10.0
PROMISE_S: Final = 2.0  # For a process to report an end that is due, without the time that its plugins may take.
AWAY_S: Final = 2.0  # Not to have ticked for so long is to have been away: a stopped process, a sleeping machine.
SHOW_S: Final = 1.0  # What is said of the processes is said no more often than this,
SHOW_AGAIN_S: Final = 5.0  # and than this if nothing but their jobs and numbers has changed: each time costs the server a turn.

log = logging.getLogger("givalia.worker")
_REPORTS: Final = frozenset((Succeed, Fail, Release))
_KINDS: Final = {"timeout": OutcomeKind.TIMEOUT, "cancelled": OutcomeKind.STOPPED, "shutdown": OutcomeKind.STOPPED,
                 "lease": OutcomeKind.DIED, "oom": OutcomeKind.FAILED}  # fmt: skip


class Foreman:
    """Call everything from the hub it was made on.

    Args:
        settings: Of the worker.
        link: Where reports go.
        make_crew: Makes a new generation of processes.
        lines: Where log lines go; None: to the log of the worker.
    """

    def __init__(
        self, settings: WorkerSettings, link: Link, make_crew: Callable[[Foreman], Crew], lines: Lines | None = None
    ) -> None:
        self.settings = settings
        self.log: Lines = lines or log
        self.counts: Counter[str] = Counter()
        """What has happened: `hosts_replaced`, `children_died`, `blocked`, `crews`."""
        self._link = link
        self._make_crew = make_crew
        self._jobs: dict[int, Job] = {}  # By fence: one job may come again while its attempt before is being stopped.
        self._timed: set[Job] = set()
        self._suspects: Suspects[Job] = Suspects()
        self._failures = Failures(self.log, lambda: self.settings.log_errors == "full")
        self.generations = Generations(self._add_crew, self.log)
        self._credit = Credit(0)
        self._has_connected = False
        self._is_stopping = False
        self._idle = Event()
        self._idle.set()
        self._ticked_s = time.monotonic()
        self._shown: list[Process] = []
        self._shown_s = 0.0
        self._told: dict[str, int] = {}
        self.servers = ""
        """Where clients go that are made in jobs; empty until the link has been up."""
        self.connected = Event()
        """Set while the link is up."""
        self.ready = Event()
        """Set once the first crew has its modules."""
        self._actions: dict[type, Callable[[Any], None]] = {
            Dispatched: self._begin,
            StopAsked: self._cancel,
            Lost: self._lose,
            Connected: self._note_connected,
            Disconnected: self._note_disconnected,
            Answered: lambda event: self._failures.answer(event, time.monotonic()),
        }

    def open(self) -> None:
        """Start the first crew, and begin to look after everything."""
        self.generations.begin()
        self._ticking = gevent.spawn(self._tick_forever)

    def deliver(self, event: LinkEvent) -> None:
        """Take what the link brings."""
        self._actions[type(event)](event)

    def may_say(self, kind: str) -> bool:
        """Count a line that every job may bring; return whether it is said. `kind` is in words what many of them are."""
        return self._failures.may_say(kind, time.monotonic())

    # Crews.

    def _add_crew(self) -> Crew:
        self.counts["crews"] += 1
        return self._make_crew(self)

    def reload(self, why: str) -> Event:
        """Let a new crew take over, which sees the packages that are installed now; what runs goes on where it is.

        Returns:
            Set when it has taken over.
        """
        self.generations.reload(why)
        return self.generations.taken_over

    def crew_is_ready(self, crew: Crew) -> None:
        """It has its modules; it takes jobs once its plugins know that the worker is connected."""
        self.ready.set()
        if crew is self.generations.present or not self._has_connected:
            self._announce(crew)
        if self._has_connected:
            crew.start()

    def crew_has_started(self, crew: Crew) -> None:
        """It takes over, unless another has taken over from it meanwhile."""
        if crew.is_retired:
            return
        if self.generations.take_over(crew):
            self._announce(crew)
        self._told = {}  # Its plugins are to know what was counted before.
        self._give_credit()

    def _announce(self, crew: Crew) -> None:
        self._link.send(list(crew.modules.values()))

    def crew_is_over(self, crew: Crew) -> None:
        """All its processes are gone."""
        self.generations.remove(crew)

    def _give_credit(self) -> None:
        crew, credit = self.generations.present, Credit(0)
        if crew is not None and not self._is_stopping:
            can_host = crew.is_serving and not crew.host.blocked_s
            can_run_apart = any(crew.is_apart(name) and crew.takes(name) for name in crew.modules)
            credit = Credit(self.settings.concurrency * can_host, self.settings.processes * can_run_apart)
        if credit != self._credit:
            self._credit = credit
            self._link.send(credit)

    # What the link brings.

    def _begin(self, event: Dispatched) -> None:
        crew = self.generations.present
        suspects = self._suspects.ids
        hosted: list[Dispatch] = []
        apart: list[Job] = []
        for dispatch in event.jobs:
            if self._is_stopping or crew is None or not crew.takes(dispatch.module):
                self._link.send(Release(dispatch.id, dispatch.fence))  # It was on its way when the credits were taken back.
                continue
            is_suspect = dispatch.id in suspects
            held = Held(dispatch, crew, is_suspect or crew.is_apart(dispatch.module), is_suspect)
            self._jobs[dispatch.fence] = held
            crew.held += 1
            if held.is_process:
                apart.append(held)
                continue
            hosted.append(dispatch)
            if dispatch.timeout_us is not None:  # Its process raises it inside at once; this is for when that is of no use.
                self._plan(held, dispatch.timeout_us / SECOND_US + self.settings.stop_grace, "kill", "timeout")
        if hosted or apart:
            self._idle.clear()
        if crew is not None and hosted:
            crew.tell(*hosted)  # First, before anything yields: an end must not overtake its job.
        for held in apart:
            self._begin_apart(held)

    def _begin_apart(self, held: Job) -> None:
        """Let the plugins know of a job that has a process of its own, if they want to; it starts when they do."""
        if "before_run" in held.crew.hooks:
            held.phase = "before"
            held.crew.tell(Before(tuple(held.dispatch)))
        else:
            self._run(held)

    def _run(self, held: Job) -> None:
        """Start a job that has a process of its own, unless there is nothing left to start."""
        if held.why == "shutdown" and not held.is_cancelled:
            self._settle(held, Release(held.dispatch.id, held.dispatch.fence))  # None of its code has run.
            return
        if held.why or held.is_cancelled:
            report = self._failure(held, held.why or "cancelled")
            self._settle(held, report if held.why != "cancelled" else report._replace(error="cancelled: before it started"))
            return
        if held.is_suspect and not self._suspects.may_run(held, time.monotonic()):
            held.phase = "waiting"
            return
        held.phase = "running"
        if held.dispatch.timeout_us is not None:
            self._plan(held, held.dispatch.timeout_us / SECOND_US, "end", "timeout")
        held.crew.run(held)

    def by_fence(self, fence: int) -> Job | None:
        """The job with this fence, if it is held here."""
        return self._jobs.get(fence)

    def hosted_by(self, crew: Crew) -> list[int]:
        """The fences of the jobs that the process with the greenlets of a crew was given and has not reported."""
        return [fence for fence, held in self._jobs.items() if held.crew is crew and not held.is_process]

    def _cancel(self, event: StopAsked) -> None:
        held = self._jobs.get(event.fence)
        if held is None or held.is_cancelled:
            return
        held.is_cancelled = True
        held.crew.tell(Cancelled(tuple(held.dispatch), is_news=not event.again))
        if (member := held.crew.pool.member_of(held)) is not None:
            member.page.cancelled = held.dispatch.fence
        if not held.why:
            self._plan(held, self.settings.stop_grace, "end", "cancelled")

    def _lose(self, event: Lost) -> None:
        held = self._jobs.get(event.fence)
        if held is not None:
            if self.may_say(f"jobs of {held.dispatch.module} that are stopped: {event.why}"):
                self.log.warning("job %s of %s is stopped: %s", text_id(event.id), held.dispatch.module, event.why)
            self._end(held, "lease", event.why)

    def _note_connected(self, event: Connected) -> None:
        is_first, self._has_connected = not self._has_connected, True
        self.connected.set()
        self.log.info("connected to %s as %s", event.address, self.settings.name)
        self._tell_servers(",".join(map(str, event.clients)))
        first = next(iter(self.generations.crews), None)  # None: it was told to stop meanwhile.
        if is_first and first is not None and first.host.state in ("ready", "blocked"):
            first.start()

    def _tell_servers(self, servers: str) -> None:
        if servers != self.servers:
            self.servers = servers
            for crew in self.generations.crews:
                crew.tell_servers()

    def _note_disconnected(self, event: Disconnected) -> None:
        self.connected.clear()
        when = f"in {event.retry_s:.1f} s" if event.retry_s else "now"
        self.log.warning("not connected to %s (%s); trying %s %s", event.address, event.why, event.next, when)

    # Ending what must end.

    def _plan(self, held: Job, seconds: float, step: str, cause: str) -> None:
        """Let a step follow in so many seconds, unless another comes before it."""
        at_s = time.monotonic() + seconds
        if held.at_s is None or at_s < held.at_s:
            held.at_s, held.step, held.cause = at_s, step, cause
            self._timed.add(held)

    def _end(self, held: Job, why: str, words: str) -> None:
        """Make the job's code end, by raising `Stopped` in it."""
        if held.why or held.phase == "after":
            return
        held.why = why
        held.at_s = None
        if held.phase == "waiting":
            self._run(held)  # That is, do not start it.
        if held.phase in ("before", "waiting"):
            return  # It does not start when the plugins have been told.
        if not held.is_process:
            held.crew.tell(End(held.dispatch.id, held.dispatch.fence, why, words))
        elif (member := held.crew.pool.member_of(held)) is not None:
            member.page.why = why
            member.signal(signal.SIGTERM)
        self._plan(held, self.settings.stop_grace, "kill", why)

    def _kill(self, held: Job, cause: str) -> None:
        """It has not ended, so its process must."""
        held.at_s = None
        if held.phase != "running":
            return
        if held.is_process or held.crew.host.is_blocked_by(held):
            held.why = held.why or cause
        if held.is_process:
            if (member := held.crew.pool.member_of(held)) is not None:
                member.signal(signal.SIGKILL)
            return
        if held.crew.host.is_blocked_by(held):
            self._replace_host(held)
        elif held.crew.host.blocked_s:
            self._plan(held, TICK_S, "kill", cause)  # Another job holds it up: that one is looked after elsewhere.
        else:
            # The process reports the end by itself, with that or without; plugins that it may be with have their own limit.
            self._plan(held, self._promise_s(held), "promise", cause)

    def _promise_s(self, held: Job) -> float:
        """Return the seconds in which the process must report an end; each plugin may use up its limit in each hook."""
        calls = len(held.crew.hooks & {"before_run", "after_run"}) * len(held.crew.host.plugins)
        return PROMISE_S + calls * (self.settings.hook_limit + HOOK_LEFT_S)

    def _break_promise(self, held: Job, cause: str) -> None:
        """The process was to report the end of this job long ago, and shows signs of life: it is not to be believed."""
        if held.crew.host.blocked_s:
            self._plan(held, self._promise_s(held), "promise", cause)  # It was held up meanwhile.
        elif not held.is_process:
            held.why = held.why or cause
            self._replace_host(held)

    def _replace_host(self, held: Job) -> None:
        """A greenlet does not end: its process has to."""
        host = held.crew.host
        words = f"{self._words(held, held.why)}; {NOT_ENDED}, so its process was replaced\n{host.stack}".strip()
        first, more = split(words)
        self.log.error("job %s of %s: %s", text_id(held.dispatch.id), held.dispatch.module, first, extra=more)
        held.crew.replace_host(Verdict(held.dispatch.fence, str(_KINDS[held.why]), words, is_ours=True))

    def _words(self, held: Job, why: str) -> str:
        return timed_out(held.dispatch) if why == "timeout" else WORDS[why]

    def _failure(self, held: Job, why: str, more: str = "") -> Fail:
        held.why = why
        words = clipped(f"{self._words(held, held.why)}\n{more}".strip())
        return Fail(held.dispatch.id, held.dispatch.fence, str(_KINDS[why]), words)

    # What crews report.

    def reported(self, note: Any) -> None:
        """A process says how far a job is, how it ended, that its plugins were told, or what it has logged."""
        kind = type(note)
        if kind is Logged:
            self._log(note)
            return
        held = self._jobs.get(note.fence)
        if held is None:
            return
        if kind in _REPORTS:
            self._report(held, note)
        elif kind is Progress:
            self._link.send(note)
        elif kind is InHook:
            held.hook, held.hooked_s = note.words, time.monotonic()
            held.crew.note_hook(held)
        elif held.phase == "before":
            self._run(held)
        elif held.phase == "after":
            self._report(held, held.report)

    def _log(self, note: Logged) -> None:
        crew = self.generations.present
        if crew is not None and crew.is_serving and not crew.is_behind:
            crew.tell(note)
        else:
            logging.getLogger(note.fields["name"]).handle(logging.makeLogRecord(note.fields))

    def job_ended(self, held: Job, note: Ended) -> None:
        """A job that had a process of its own has ended."""
        self._suspects.clear(held.dispatch.id)
        held.seconds = note.seconds
        report = Succeed(*note.report) if note.is_success else Fail(*note.report)
        if held.why == "lease":
            report = self._failure(held, "lease")
        self._settle(held, report)

    def job_outdated(self, held: Job) -> None:
        """Packages have changed, and nobody has said so: the job goes back, and a new crew announces what there is."""
        self._forget(held)
        held.crew.withdraw(held.dispatch.module, "its package has changed, and the worker does not run the new one yet")
        if held.crew is self.generations.present:
            self._announce(held.crew)
            self.generations.reload(f"the package of {held.dispatch.module} has changed")
        self._link.send(Release(held.dispatch.id, held.dispatch.fence))

    def job_not_started(self, held: Job, words: str) -> None:
        """There is no process of its own for a job, so this attempt has failed."""
        if self.may_say(f"jobs of {held.dispatch.module} that could not be started"):
            self.log.error("job %s of %s: %s", text_id(held.dispatch.id), held.dispatch.module, words)
        self._settle(held, Fail(held.dispatch.id, held.dispatch.fence, str(OutcomeKind.FAILED), clipped(words)))

    def child_died(self, held: Job, words: str) -> None:
        """A job's own process is gone."""
        if held.why:
            ended = "" if held.why == "oom" else f"{NOT_ENDED}, so its process was killed"
            report = self._failure(held, held.why, ended)
        else:
            self.counts["children_died"] += 1
            first, more = split(words)
            if self.may_say(f"jobs of {held.dispatch.module} that took their process with them"):
                line = "job %s of %s took its process with it: %s"
                self.log.warning(line, text_id(held.dispatch.id), held.dispatch.module, first, extra=more)
            report = Fail(held.dispatch.id, held.dispatch.fence, str(OutcomeKind.DIED), clipped(words), child_died=True)
        self._settle(held, report)

    def host_died(self, crew: Crew, verdict: Verdict) -> None:
        """The process with the greenlets is gone: one of its jobs is to blame, at most, and the others go back."""
        self._give_credit()
        if not crew.is_retired or crew.held:
            self.counts["hosts_replaced"] += 1
        is_known = verdict.is_ours or verdict.culprit in self._jobs
        for held in [held for held in self._jobs.values() if held.crew is crew]:
            if held.is_process:
                if held.phase in ("before", "after"):
                    self.reported(Told(held.dispatch.id, held.dispatch.fence))  # Once at most; it may have been.
                continue
            report = self._what_became(held, verdict)
            self._report(held, report)
            if isinstance(report, Release) and not is_known and verdict.may_be(held.dispatch.fence):
                self._suspects.add(held.dispatch.id)  # Whose fault it was is not known: each is to show it alone.
            if "after_run" in crew.hooks:
                kind = report.kind if isinstance(report, Fail) else str(OutcomeKind.RELEASED)
                crew.owe(After(tuple(held.dispatch), kind, b"", report.error if isinstance(report, Fail) else None, 0.0))

    def _what_became(self, held: Job, verdict: Verdict) -> Fail | Release:
        if held.dispatch.fence == verdict.culprit:
            is_own_death = not held.why and verdict.kind == "died"
            return Fail(held.dispatch.id, held.dispatch.fence, verdict.kind, clipped(verdict.words), child_died=is_own_death)
        if held.why:
            return self._failure(held, held.why)
        return Release(held.dispatch.id, held.dispatch.fence, replaced=True)

    def host_is_stuck(self, crew: Crew, verdict: Verdict) -> None:
        """The process with the greenlets cannot be replaced: the job to blame has failed, whatever its code still does."""
        held = self.by_fence(verdict.culprit)
        if held is not None and held.crew is crew:
            self._report(held, self._what_became(held, verdict))

    def host_has_stuck(self, crew: Crew, job_id: bytes) -> None:
        """Code of this job, which was reported, does not end: its neighbours finish, and another process takes what comes."""
        words = "the code of job %s does not end; its process takes no more jobs, and ends with its last one"
        self.log.error(words, text_id(job_id))
        if crew is self.generations.present:
            self.generations.reload("the code of a job does not end")

    def host_is_full(self, crew: Crew) -> None:
        """The process with the greenlets has more memory than it may, so another takes over."""
        if crew is self.generations.present and crew is self.generations.crews[-1]:
            self.generations.reload(f"the one with the greenlets has more than {self.settings.memory_per_process} MiB")

    def host_is_spoiled(self, crew: Crew, words: str) -> None:
        """The process with the greenlets is not any more what jobs may expect, so another takes over."""
        if crew is self.generations.present:
            self.generations.reload(f"a job has changed the {words} of the one with the greenlets")

    def _settle(self, held: Job, report: Succeed | Fail | Release) -> None:
        """Tell the plugins, and then the server, how a job ended that had a process of its own."""
        held.at_s = None
        self._timed.discard(held)
        if "after_run" not in held.crew.hooks or held.crew.host.member is None:
            self._report(held, report)
            return
        held.phase, held.report = "after", report
        if isinstance(report, Succeed):
            told = After(tuple(held.dispatch), str(OutcomeKind.SUCCEEDED), report.payload, None, held.seconds)
        elif isinstance(report, Release):
            told = After(tuple(held.dispatch), str(OutcomeKind.RELEASED), b"", None, held.seconds)
        else:
            told = After(tuple(held.dispatch), report.kind, b"", report.error, held.seconds)
        held.crew.tell(told)

    def _report(self, held: Job, report: Succeed | Fail | Release) -> None:
        """Send the report of a job, which is held no more."""
        self._forget(held)
        if type(report) is Fail:
            self._failures.report(held.dispatch, report, time.monotonic())
        self._link.send(report)

    def _forget(self, held: Job) -> None:
        del self._jobs[held.dispatch.fence]
        if held.hook:
            held.hook = ""
            held.crew.note_hook(held)
        if held.is_suspect:
            self._suspects.leave(held)
            self._run_suspects(time.monotonic())
        self._timed.discard(held)
        held.crew.held -= 1
        held.crew.look_whether_done()
        if not self._jobs:
            self._idle.set()

    def _run_suspects(self, now_s: float) -> None:
        while (held := self._suspects.following(now_s)) is not None:
            self._run(held)

    # Looking after everything.

    def _tick_forever(self) -> None:
        while True:
            gevent.sleep(TICK_S)
            with survives("looking after the processes", self.log) as failed:
                self._tick(time.monotonic())
            if failed:
                gevent.sleep(AGAIN_S)

    def _tick(self, now_s: float) -> None:
        was_away = now_s - self._ticked_s > AWAY_S
        self._ticked_s = now_s
        for held in [held for held in self._timed if held.at_s is not None and held.at_s <= now_s]:
            step, cause = held.step, held.cause
            held.at_s = None
            if step == "end":
                self._end(held, cause, self._words(held, cause))
            elif step == "kill":
                self._kill(held, cause)
            else:
                self._break_promise(held, cause)
        self._run_suspects(now_s)
        for crew in list(self.generations.crews):
            crew.look(is_fair=not was_away)
        self._give_credit()
        self._show(now_s)
        self._failures.look(now_s)

    def _show(self, now_s: float) -> None:
        """Let the server, and the plugins, know how the processes are."""
        if now_s - self._shown_s < SHOW_S:
            return
        shown = [process for crew in self.generations.crews for process in crew.processes()][:PROCESSES_MAX]
        if shown and (list(map(_identity, shown)) != list(map(_identity, self._shown)) or now_s - self._shown_s > SHOW_AGAIN_S):
            self._shown, self._shown_s = shown, now_s
            self._link.send(shown)
        counts = dict(self.counts)
        if counts != self._told and self.generations.present is not None:
            self._told = counts
            self.generations.present.tell(Counts(counts))

    # The end.

    def stop(self) -> None:
        """Take no more, let running jobs end for the time of grace, stop the rest, and end all processes."""
        self._is_stopping = True
        self._give_credit()
        self.generations.drain()
        self._shown_s = 0.0  # Let people know at once, who may ask why their jobs wait.
        if not self._idle.wait(self.settings.grace):
            running = list(self._jobs.values())
            self.log.warning("%d jobs have not ended in %g s and are stopped", len(running), self.settings.grace)
            for held in running:
                self._end(held, "shutdown", WORDS["shutdown"])
            self._idle.wait(self.settings.stop_grace + AWAY_S)
        self.generations.end()
        self.generations.over.wait(END_S)
        self._ticking.kill()

    def say_rest(self) -> None:
        """Say what the log has not said yet of failed attempts; call it when the link has ended."""
        self._failures.close(time.monotonic())


def _identity(process: Process) -> tuple[Any, ...]:
    """What is news if it changes."""
    is_blocked = bool(process.blocked_us)
    return process.pid, process.role == "job" or process.state, process.restarts, is_blocked, process.stack
