"""A job as the blocking client that enqueued it holds it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from givalia_core.client import talk, verbs
from givalia_core.client.carrier import Carrier, OnProgress
from givalia_core.client.ticket import Handle, Ticket
from givalia_core.times import Instant, Length
from givalia_core.views import Status


class JobHandle(Handle):
    """A job that this client enqueued or named: `id`, `key`, `due` as last heard, and the verbs for it."""

    def __init__(self, exchange: Carrier, ticket: Ticket) -> None:
        super().__init__(ticket)
        self._exchange = exchange

    def stat(self) -> Status:
        """Ask about it."""
        return self._exchange.ask(verbs.stat(id=self.id))

    def ext(self, time: Length | None = None, *, at: Instant | None = None) -> datetime:
        """Move its due; see `Client.ext`."""
        self.due = self._exchange.ask(verbs.ext(id=self.id, time=time, at=at))
        return self.due

    def cancel(self, *, running: bool = False) -> str:
        """Call it off; see `Client.cancel`."""
        return self._exchange.ask(verbs.cancel(id=self.id, running=running))

    def wait(self, timeout: Length | None = None, progress: OnProgress | None = None) -> Any:
        """The job's result, as soon as there is one: the server pushes it, over reconnects too.

        A server that is too busy for one more who waits is asked again when it wants to be.

        Args:
            timeout: Seconds or a `timedelta` to wait; None is for ever. With 0 or less the server is asked, for five seconds at
                most if it does not answer, and a job that has not ended is not waited for.
            progress: Called in this thread as `progress(fraction, text)` when the running attempt says how far it is, and
                with what it said last when the waiting begins. A hint: of reports in quick succession some are left out,
                after a reconnect one may come twice. It may use the client; meanwhile only the newest report is kept.
                What it raises ends the waiting.

        Raises:
            WaitTimeout: `timeout` seconds have passed; the job goes on.
            JobFailed, JobCancelled, ResultLost, NotFound: There will be no result.
            ConnectionLost: No server has been in reach for a minute.
        """
        return waited_for(self._exchange, self.id, timeout, progress)


def waited_for(exchange: Carrier, job_id: str | None, timeout: Length | None, progress: OnProgress | None) -> Any:
    """The result of the job of this id; see `JobHandle.wait`."""
    if talk.is_poll(timeout):
        talk.check_ended(exchange.ask(talk.stat(None, job_id), talk.POLL_S))
        timeout = talk.POLL_S
    return exchange.ask(talk.wait(job_id, progress=progress is not None), timeout, progress)
