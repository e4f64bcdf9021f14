"""Watches the process with the greenlets: its signs of life, and the job to blame if there are none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol

from givalia_core.clock import SECOND_US
from givalia_core.protocol.messages import STACK_BYTES_MAX, Process
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.assignment import Assignment, LogLines, Verdict
from givalia_core.worker.page import ASIDE_SIGNAL, DUMP_SIGNAL, SharedPage
from givalia_core.worker.processes.pool import is_waiting

START_S: Final = 60.0  # A process without its modules by then is stuck in an import.
BLOCKED_S: Final = 1.0  # Silence that counts as blocked.
BLOCKED_NS: Final = round(BLOCKED_S * 1e9)
ASK_AGAIN_S: Final = 10.0


class Hosting(Protocol):
    """A process with greenlets, as a crew knows it: one of its own, or the one that the crew is in."""

    pid: int
    since: float
    started_s: float
    page: SharedPage
    last_current: int
    memory_bytes: int
    is_open: bool

    @property
    def backlog(self) -> int:
        """The number of notes that the process has not taken yet."""

    def tell(self, *said: Any) -> None:
        """Send notes to the process."""

    def signal(self, number: int) -> None:
        """Send a signal to the process."""

    def stack(self) -> str:
        """Return the stack that the process has written since the last call."""


class HostWatch:
    """The watch over the present process with greenlets, and over its successors.

    Args:
        by_fence: Returns the job with a fence.
        log: Takes log lines.
        counts: Counts the blocks.
    """

    def __init__(self, by_fence: Callable[[int], Assignment[Any] | None], log: LogLines, counts: Counter[str]) -> None:
        self._by_fence = by_fence
        self._log = log
        self._counts = counts
        self.member: Hosting | None = None
        self.fields: Any = (0,) * 4
        """The fields of its page."""
        self.state = "starting"
        self.starts = 0
        self.failures = 0  # The number of processes in a row that did not live long.
        self.importing: str | None = None
        self.verdict: Verdict | None = None
        self.plugins: list[str] = []
        self.in_hooks: list[Assignment[Any]] = []  # Jobs that a plugin has been busy with for a while.
        self._asked_at = 0.0  # The time of the last request for its stack, while it is blocked.
        self._judged: int | None = None  # The fence that was judged for the present block.
        self.stack = ""

    def begin(self, member: Hosting) -> None:
        """Watch another process, in place of the previous one."""
        self.member, self.fields = member, member.page.fields
        self.state, self.importing, self.verdict, self._asked_at, self.stack = "starting", None, None, 0.0, ""
        self._judged = None
        self.starts += 1

    @property
    def blocked_s(self) -> float:
        """The seconds without a sign of life, if there are enough to call the process blocked; else 0."""
        if self.member is None or self.state == "starting":
            return 0.0
        silence_s = self.member.page.silence_s()
        return silence_s if silence_s > BLOCKED_S else 0.0

    def is_blocked_by(self, job: Assignment[Any]) -> bool:
        """Return whether this job blocks the process."""
        return self.member is not None and bool(self.blocked_s) and self.member.page.current == job.dispatch.fence

    def look(self, settings: WorkerSettings) -> Verdict | None:
        """Check the process; return a verdict if it must be replaced."""
        member = self.member
        if member is None:
            return None
        if self.state == "starting":
            if self.verdict is not None or time.monotonic() - member.started_s <= START_S:
                return None
            words = f"it did not get ready in {START_S:g} s"
            self._log.error("the process %d with the greenlets is replaced: %s", member.pid, words)
            return Verdict(0, "died", words, is_ours=True)
        blocked_s = self.blocked_s
        if blocked_s:
            return self._look_at_blocked(member, blocked_s, settings.block_limit)
        if self.state == "blocked":
            self._log.warning("the process %d with the greenlets shows signs of life again", member.pid)
            self._asked_at, self._judged, self.stack, self.state = 0.0, None, "", "ready"
        return None

    def _look_at_blocked(self, member: Hosting, blocked_s: float, limit_s: float) -> Verdict | None:
        if self.state != "blocked":
            self.state = "blocked"
            self._counts["blocked"] += 1
        if stack := member.stack():
            is_news, self.stack = not self.stack, stack[-STACK_BYTES_MAX:]
            if is_news:
                words = "%s (process %d); it is here:"
                self._log.warning(words, self._blocker_words(), member.pid, extra={"block": stack})
        if blocked_s > limit_s:
            if self._judged == member.page.current:
                return None
            self._judged = member.page.current
            words = f"timeout: blocked, it has not yielded for {blocked_s:.1f} s\n{self.stack}".strip()
            self._log.error("%s; its process is replaced", self._blocker_words())
            return Verdict(member.page.current, "timeout", words)
        if time.monotonic() - self._asked_at > ASK_AGAIN_S:
            self._asked_at = time.monotonic()
            member.signal(ASIDE_SIGNAL if is_waiting(member.pid) else DUMP_SIGNAL)
        return None

    def plugin(self, current: int) -> str:
        """Return the name of the plugin that has this number on the page; empty if no plugin has it."""
        return self.plugins[-1 - current] if -len(self.plugins) <= current < 0 else ""

    def _blocker(self) -> Assignment[Any] | None:
        """Return the job that blocks the process, if it is a known one."""
        return None if self.member is None else self._by_fence(self.member.page.current)

    def _blocker_words(self) -> str:
        """Return in words which code blocks the process, and for how long."""
        job = self._blocker()
        plugin = "" if self.member is None else self.plugin(self.member.page.current)
        who = f"plugin {plugin}" if plugin else "something that is no job"
        if job is not None:
            who = f"job {text_id(job.dispatch.id)} of {job.dispatch.module}"
        return f"{who} has blocked the greenlets of its worker for {self.blocked_s:.1f} s"

    def process(self, member: Hosting, jobs: int, *, is_draining: bool) -> Process:
        """Return the record of the process while it is blocked, or a plugin has been busy for a while."""
        blocked_s = self.blocked_s
        job = self._blocker() if blocked_s else None
        state, stack = "draining" if is_draining and not blocked_s else self.state, self.stack
        if not blocked_s and self.in_hooks:
            job = self.in_hooks[0]
            state, stack, blocked_s = "hook", job.hook, time.monotonic() - job.hook_since_s
        return Process(
            member.pid, "greenlets", state, jobs, round(member.since * SECOND_US), member.memory_bytes, self.starts - 1,
            job.dispatch.module if job else None, job.dispatch.id if job else None, round(blocked_s * SECOND_US),
            stack,
        )  # fmt: skip
