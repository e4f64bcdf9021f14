"""Leases: the lending of ready jobs to workers, the most urgent first over all routes, and the reports that end leases.

A report names its lease by job and fence. A fence that is not the job's present one changes nothing and is answered STALE
("Fences and leases" in docs/delivery.md); one that already settled the job is answered OK again. Ends without success are in
`failures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from givalia_core.clock import Now
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import LENT_TOGETHER_BYTES, Desk, Names
from givalia_core.engine.records import Refusal
from givalia_core.errors import GivaliaError, Stale
from givalia_core.model import DONE, RUNNING, Job, evolve
from givalia_core.protocol.answers import TAKEN, Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import ANY, CAPACITY_MAX, Dispatch, FailReport, Progress, Release, Succeed
from givalia_core.store.base import Claim, Route
from givalia_core.takers import LENT_BYTES_MAX, MOVES_KEPT, Room
from givalia_core.timers import Window

OWN_CODE: Final = 0  # Stands for a connection (their numbers begin at 1): a job's own code decides in a transaction.
ROOM_LEAST: Final = 8

Place = tuple[int, int, int]  # In the order of dispatch: rank, due on the timer clock, seq.
Head = tuple[Place, Route, Job, Iterator[tuple[Place, Job]]]  # The first job of a route's line, and the rest of the line.


class Lender:
    """A lender, which asks the store for as many jobs as may be lent, and lends them in their order."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.hurry = False  # Whether another batch could lend more at once.
        self._room = CAPACITY_MAX  # How many jobs of a route are read at once.
        self._claims: dict[Route, int] = {}  # How many jobs the store was asked for.

    def claims(self, reporting: Mapping[int, int]) -> tuple[Claim, ...]:
        """Return the claims for the store; `reporting` says how many more jobs each worker can take after its reports."""
        desk, routing, claims = self._desk, self._desk.routing, self._claims
        claims.clear()
        if desk.is_draining or desk.is_holding:
            return ()
        if routing.changed:
            routing.sort()
        freed: dict[Route, int] = {}
        for conn, reports in reporting.items():
            if (session := routing.sessions.get(conn)) is not None:
                for route in routing.unpark_for(session):
                    freed[route] = freed.get(route, 0) + reports
        for route, window in routing.stirring.items():
            if window.has_ready and (room := min(routing.takers[route].credits() + freed.get(route, 0), self._room)):
                claims[route] = room
        return tuple(Claim(route, room) for route, room in claims.items()) if claims else ()

    def _hold(self) -> None:
        """Lend nothing in this batch; the next one asks for the jobs that became ready in it."""
        routing = self._desk.routing
        stirring = routing.stirring.items()
        self.hurry = self._desk.lends and any(window.fresh and routing.taker(route) for route, window in stirring)

    def lend(self, batch: Batch, *, has_numbers: bool) -> None:
        """Lend ready jobs in order of (priority, due, enq) over all routes that have a free worker.

        Args:
            batch: The batch that is being decided.
            has_numbers: Whether fences can be given in it. A server that shares its store gives only numbers of the present
                batch, since those of an earlier one may be below another server's.
        """
        desk, routing = self._desk, self._desk.routing
        if routing.changed:
            routing.sort()
        # A worker that has just announced may have more urgent jobs on variants without a window.
        if desk.is_draining or desk.is_holding or desk.is_stuck or routing.unlearned or not has_numbers:
            self._hold()
            return
        if routing.parked or len(routing.moves.rooms) > MOVES_KEPT:
            routing.unpark_moved()
        heads: list[Head] = []
        unread: list[Route] = []  # Routes whose known jobs are lent while the store may have more.
        for route, window in list(routing.stirring.items()) if routing.stirring else ():
            if not (window.has_ready or window.fresh):
                del routing.stirring[route]
            elif routing.takers[route].best() is not None:
                line = iter(self._line(batch, window))
                if (head := next(line, None)) is not None:
                    heads.append((head[0], route, head[1], line))
                elif window.has_ready:
                    unread.append(route)
            elif not window.fresh:
                routing.park(route)
        self.hurry = False
        if heads:
            self._lend(batch, heads, unread)
        if routing.stirring and not self.hurry:
            self.hurry = any(window.has_ready and routing.taker(route) for route, window in routing.stirring.items())

    def _lend(self, batch: Batch, heads: list[Head], unread: list[Route]) -> None:
        """Lend the jobs at the heads while a worker is free."""
        routing = self._desk.routing
        heapify(heads)
        lent_bytes = 0
        # Unread jobs must not be overtaken, so the next batch reads on first.
        while heads and lent_bytes < LENT_TOGETHER_BYTES and not (unread and any(map(routing.taker, unread))):
            _, route, job, line = heappop(heads)
            room = routing.takers[route].best()
            if room is None:
                routing.windows[route].has_ready = True
                continue
            if job.expires_at_us is not None and job.is_expired(batch.now):
                batch.expire(job)
            else:
                claim(batch, job, room)
                lent_bytes += len(job.params) + 1
            if (head := next(line, None)) is not None:
                heappush(heads, (head[0], route, head[1], line))
            elif routing.windows[route].has_ready:
                unread.append(route)
        for _, route, _, _ in heads:
            routing.windows[route].has_ready = True
        if lent_bytes >= LENT_BYTES_MAX or self._room < CAPACITY_MAX:
            self._pace(lent_bytes)

    def _pace(self, lent_bytes: int) -> None:
        """Let the next batch read few jobs after one with large params, since few will be lent; else twice as many."""
        if lent_bytes >= LENT_BYTES_MAX and (lent_bytes >= LENT_TOGETHER_BYTES or self._desk.routing.has_lent_much):
            self._room, self.hurry = ROOM_LEAST, True
        else:
            self._room = min(self._room * 2, CAPACITY_MAX)

    def _line(self, batch: Batch, window: Window) -> list[tuple[Place, Job]]:
        """Return the jobs of one route that may be lent now, in order: those of the store, and those fresh in this batch.

        If the store may have more jobs than it returned, no job that sorts behind the returned ones may overtake the rest.
        """
        jobs, found = batch.jobs, batch.found
        ahead_us = batch.now.timer_us - batch.now.wall_us
        line = stored = found.ready.get(window.route, [])
        is_cut = window.route in found.cut
        window.has_ready = window.has_ready and (is_cut or len(stored) >= self._claims.get(window.route, 0))
        if jobs:
            line = [job for job in stored if job.seq not in jobs] + [jobs[seq] for seq in window.fresh]
        places = [((-job.priority, job.due_at_us + ahead_us if job.on_wall else job.due_at_us, job.seq), job) for job in line]
        if window.fresh and window.has_ready:
            places = _in_order(stored, window, places, ahead_us)
        return sorted(places)


def _in_order(
    stored: list[Job], window: Window, places: list[tuple[Place, Job]], ahead_us: int
) -> list[tuple[Place, Job]]:  # fmt: skip
    """Leave out the fresh jobs that sort behind the store's last job: the store may have others that sort before them."""
    if not stored:
        return [each for each in places if each[1].seq not in window.fresh]
    job = stored[-1]
    end = -job.priority, job.due_at_us + ahead_us if job.on_wall else job.due_at_us, job.seq
    return [each for each in places if each[1].seq not in window.fresh or each[0] < end]


def claim(batch: Batch, job: Job, room: Room) -> None:
    """Lend a due job to a worker (T3): the attempt and its fence are durable before the worker hears of it."""
    join, announced, policy = room.session.join, room.session.announced[job.module], batch.desk.policy
    claimed = evolve(job, "claim")
    claimed.attempt = attempt = job.attempt + 1
    batch.desk.last_fence = claimed.fence = batch.desk.last_fence + 1
    claimed.worker, claimed.holder, claimed.keeper = join.name, join.instance, batch.desk.me
    claimed.expires_at_us, claimed.started_at_us = None, batch.told_us
    claimed.max_attempts = max(job.max_attempts or announced.max_attempts or policy.max_attempts, attempt)
    claimed.timeout_us = job.timeout_us or announced.timeout_us
    if job.backoff_us is None:
        backoff_us = announced.backoff_us if announced.backoff_us is not None else policy.backoff_us
        backoff_max_us = announced.backoff_max_us if announced.backoff_max_us is not None else policy.backoff_max_us
        claimed.backoff_us = backoff_us, max(backoff_max_us, backoff_us)
    batch.claims[job.seq] = room
    room.lend(len(job.params))
    batch.put(job, claimed)


def needs_held(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the jobs that a worker says it holds and whose leases memory does not know."""
    leases = desk.leases
    for message in asked.messages:
        if not isinstance(message, GivaliaError) and message.id not in leases:
            names.ids.add(message.id)


def needs_reported(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the reported jobs whose leases memory does not know, and how many more jobs the worker can take then."""
    leases = desk.leases
    for message in asked.messages:
        if not isinstance(message, GivaliaError) and message.id not in leases:
            names.ids.add(message.id)
    names.reporting[asked.conn] = names.reporting.get(asked.conn, 0) + len(asked.messages)


def dispatch_of(job: Job, now: Now) -> Item:
    """Return the item that tells a worker of a job that was lent to it."""
    ahead_us = now.timer_us - now.wall_us if now.steady_ahead_us is None else now.steady_ahead_us
    due_us = job.due_at_us if job.on_wall else job.due_at_us - ahead_us
    is_plain = job.timeout_us is None and job.specifier is None and not job.priority and job.target_worker == ANY
    if is_plain and job.key is not None:  # The same as from `item`, in a third of the time.
        return (job.id, job.fence, job.module, job.attempt, due_us, job.key), job.params
    return item(
        Dispatch(
            job.id, job.fence, job.module, job.attempt, due_us, job.key, job.target_worker, job.priority, job.timeout_us,
            job.specifier, job.params,
        )
    )  # fmt: skip


def find_held(batch: Batch, asked: Asked, message: Succeed | FailReport | Release | Progress) -> Job | None:
    """Return the running job whose lease the message is about, if the job was lent to the worker process that sends it.

    The job may have been lent on another connection. A decision of the job's own code, in a transaction of the database to
    which the code has access, comes over no connection.
    """
    desk, job_id = batch.desk, message.id
    lease = desk.leases.get(job_id)
    job = batch.by_id(job_id) if lease is None else batch.jobs.get(lease.job.seq, lease.job)
    if job is not None and job.state is RUNNING and job.fence == message.fence:
        session = desk.routing.sessions.get(asked.conn)
        if (session is not None and job.holder == session.join.instance) or asked.conn == OWN_CODE:
            return job
    return None


def stale(batch: Batch) -> Refusal:
    batch.desk.stale += 1
    return Refusal(Stale("the lease is no longer this worker's"))


def succeed(batch: Batch, asked: Asked, message: Succeed) -> Answer:
    """End a job as done (T4), even if it was asked to stop: its effect happened."""
    job = find_held(batch, asked, message)
    if job is None:
        done = batch.by_id(message.id)
        if done is not None and done.state is DONE and done.fence == message.fence:
            return TAKEN  # The worker repeats its report.
        raise stale(batch)
    done = evolve(job, "succeed")
    done.result = None if message.result_error else message.payload
    done.result_error, done.error = message.result_error, None
    batch.end(job, done)
    return TAKEN
