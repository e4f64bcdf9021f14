"""Hints that servers of one queue send each other with NOTIFY, so that no server has to wait for its next poll.

A hint says which jobs changed, which routes have jobs that are due or soon will be, and which jobs clients wait for. Any hint
may be lost: each server polls every few seconds. A hint is sent after its commit, and only if there are other servers.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import gevent
from givalia_core import forks
from givalia_core.clock import SECOND_US
from givalia_core.errors import StoreAway
from givalia_core.model import WAITING, Job
from givalia_core.store.base import Change, Route
from givalia_core.store.shared import News

from givalia_postgres.connection import Connection, Statement

CHANNEL: Final = "givalia"
# NOTIFY is a transaction, but it need not be on disk.
NOTIFY: Final = f"SELECT set_config('synchronous_commit', 'off', true), pg_notify('{CHANNEL}', $1)"
LISTEN: Final = f"LISTEN {CHANNEL}"
PAYLOAD_MAX: Final = 7_900  # Bytes; PostgreSQL takes 8,000.
IDS_MAX: Final = 250  # Per payload.
ROUTES_MAX: Final = 25
SOON_US: Final = 5 * SECOND_US  # Polling finds later dues in time.
FOLLOWED_MAX: Final = 50_000
RETRY_S: Final = (0.05, 2.0)
PROBE_S: Final = 5.0  # After this much silence the listener checks its connection,
ANSWER_S: Final = 3.0  # and waits this long for the answer. Hints are missed for the sum of both at most.
IS_LISTENING: Final = f"SELECT FROM pg_listening_channels() AS c WHERE c = '{CHANNEL}'"

log = logging.getLogger("givalia.server")


class Hints:
    """The hints to send next."""

    def __init__(self) -> None:
        self.changed: set[bytes] = set()
        self.followed: set[bytes] = set()
        self.ready: dict[Route, int] = {}  # The first due of each route.
        self.nearing: dict[Route, int] = {}
        self.must_watch = False

    def __bool__(self) -> bool:
        return bool(self.changed or self.followed or self.ready or self.nearing or self.must_watch)

    def waits(self, job: Job, now_us: int, soon_us: int = SOON_US) -> None:
        """Add a waiting job that other servers may not know of. The database's clock is both of its clocks."""
        route = Route(job.module, job.target)
        if job.due_at_us <= now_us:
            self.is_ready(route, job.due_at_us)
        elif job.due_at_us <= now_us + soon_us:
            self.nearing[route] = min(job.due_at_us, self.nearing.get(route, job.due_at_us))

    def is_ready(self, route: Route, due_us: int) -> None:
        """Add a route with a job that can be lent since this due."""
        self.ready[route] = min(due_us, self.ready.get(route, due_us))

    def payloads(self) -> list[str]:
        """Return the hints as texts; if there are too many, a text that tells servers to poll."""
        said: dict[str, Any] = {"w": int(self.must_watch)}
        if len(self.ready) + len(self.nearing) > ROUTES_MAX:
            said["w"] = 1
        else:
            said["r"], said["d"] = [*self.ready], [*self.ready.values()]
            said["n"] = [[*route, due_us] for route, due_us in self.nearing.items()]
        parts = [{name: value for name, value in said.items() if value}]
        for name, ids in (("c", [*self.changed]), ("f", [*self.followed])):
            for start in range(0, len(ids), IDS_MAX):
                parts.append({name: [_text(each) for each in ids[start : start + IDS_MAX]]})
        texts = [json.dumps(part, separators=(",", ":"), ensure_ascii=False) for part in parts if part]
        return [text if len(text.encode()) <= PAYLOAD_MAX else '{"w":1}' for text in texts]


def of_changes(hints: Hints, changes: Iterable[Change], me: int, followed: dict[bytes, None], now_us: int) -> None:
    """Add what other servers should know of these stored changes."""
    for was, job in changes:
        if was is not None and was.keeper not in (0, me):
            hints.changed.add(job.id)  # Another server believes that it keeps this job.
        elif job.ended_at_us and job.id in followed:
            hints.changed.add(job.id)
        if job.ended_at_us:
            followed.pop(job.id, None)
        elif job.state is WAITING:
            hints.waits(job, now_us)


def notify(payloads: Iterable[str]) -> list[Statement]:
    """Return the statements that send these payloads."""
    return [(NOTIFY, [payload]) for payload in payloads]


class Listener:
    """A receiver of other servers' hints, on its own connection and in its own greenlet."""

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        self._connection = Connection(url, "givalia listener")
        self._wake = wake
        self._changed: set[bytes] = set()
        self._ready: set[Route] = set()
        self._nearing: dict[Route, int] = {}
        self._dues: dict[Route, int] = {}
        self.dues: dict[Route, int] = {}  # For the news that was taken last: the first due of each route, 0 if unknown.
        self._must_watch = False
        self._is_left = False  # Whether this is a fork, whose parent listens.
        self.is_deaf = True  # Whether hints are missed now.
        self._was_missed = False  # Whether the log says so.
        self.speaker = 0  # The process id of this server's other connection, whose hints are ignored.
        self.followed: dict[bytes, None] = {}  # Jobs that clients of other servers wait for.
        self._greenlet = gevent.spawn(self._listen_forever)
        forks.register(self)

    def take(self) -> News:
        """Return the hints that arrived since they were last taken."""
        news = News(frozenset(self._changed), frozenset(self._ready), dict(self._nearing), self._must_watch, self.is_deaf)
        self._changed, self._ready, self._nearing, self._must_watch = set(), set(), {}, False
        self.dues, self._dues = self._dues, {}
        return news

    def after_fork(self) -> None:
        """Note that this is a fork: the connection fails at its next use, which is not worth a log line."""
        self._is_left = True

    def close(self) -> None:
        """End the listener and its connection."""
        self._greenlet.kill()
        self._connection.close()

    def _listen_forever(self) -> None:
        retry_s = RETRY_S[0]
        while True:
            try:
                self._begin()
                retry_s = RETRY_S[0]
                while True:
                    self._hear(self._connection.notifies())
                    if not self._connection.await_more(PROBE_S):
                        self._probe()
            except Exception as error:
                if self._is_left:
                    return
                self._miss(error)
            self._connection.close()
            gevent.sleep(retry_s)
            retry_s = min(retry_s * 2, RETRY_S[1])

    def _begin(self) -> None:
        self._connection.make()  # Has its own deadline.
        with gevent.Timeout(ANSWER_S, _silent()):
            self._connection.ask((LISTEN, ()))
        if self._was_missed:
            log.info("what other servers say is heard again")
        self._was_missed = False
        # Earlier hints are lost, so poll once.
        self.is_deaf, self._must_watch = False, True
        self._wake()

    def _probe(self) -> None:
        """Check that the peer is there: a connection whose peer has vanished looks like a silent one."""
        with gevent.Timeout(ANSWER_S, _silent()):
            if not self._connection.ask((IS_LISTENING, ())):
                raise StoreAway("the session does not listen any more")

    def _miss(self, error: Exception) -> None:
        if not self._was_missed:
            log.warning("what other servers say is not heard for now (%s); looking twice a second instead", error)
        self._was_missed = True
        if not self.is_deaf:
            self.is_deaf = True
            self._wake()

    def _hear(self, heard: Sequence[tuple[int, bytes]]) -> None:
        for pid, payload in heard:
            if pid != self.speaker:
                self._take_in(payload)
        if heard:
            self._wake()

    def _take_in(self, payload: bytes) -> None:
        try:
            said = json.loads(payload)
            self._changed.update(map(_id, said.get("c", ())))
            # An earlier version sends no dues of ready routes.
            ready = [Route(*route) for route in said.get("r", ())]
            for route, due_us in zip(ready, said.get("d") or [0] * len(ready), strict=True):
                self._ready.add(route)
                self._dues[route] = min(int(due_us), self._dues.get(route, int(due_us)))
            for module, target, due_us in said.get("n", ()):
                route = Route(module, target)
                self._nearing[route] = min(int(due_us), self._nearing.get(route, int(due_us)))
                self._dues[route] = min(int(due_us), self._dues.get(route, int(due_us)))
            for each in said.get("f", ()):
                self.followed[_id(each)] = None
            self._must_watch = self._must_watch or bool(said.get("w"))
        except Exception:
            self._must_watch = True  # A payload of another program, or of a later version.
        while len(self.followed) > FOLLOWED_MAX:
            del self.followed[next(iter(self.followed))]


def _silent() -> StoreAway:
    return StoreAway(f"no answer in {ANSWER_S:g} s")


def _text(job_id: bytes) -> str:
    return base64.b64encode(job_id).decode()


def _id(text: str) -> bytes:
    return base64.b64decode(text)
