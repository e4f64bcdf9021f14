"""The engine: every decision, and nothing but decisions.

It touches no socket, file, clock or greenlet. Commands, workers' reports and the time go in; changes for the store and
effects (answers, dispatches, hook calls) come out. It cannot be interrupted half-way, so what holds before a batch holds
after it; `turn` drives it, the same way under the real server and under the simulation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from givalia_core.clock import SECOND_US, STEP_US, Now
from givalia_core.engine import acts, answers, leases, questions, sharing, words
from givalia_core.engine.again import Again
from givalia_core.engine.desk import NOBODY, Batch, Desk, Facts, Lease
from givalia_core.engine.lending import Lender
from givalia_core.engine.names import Names
from givalia_core.engine.questions import Questions
from givalia_core.engine.records import Close, Effect, Gone, Input, Reply, Tell
from givalia_core.errors import StoreFull
from givalia_core.model import ENDED, REMEMBERED_AT_LEAST_US, RUNNING, WAITING, Job
from givalia_core.policy import Policy
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Dispatch, Heard, Kind, Progressed, item
from givalia_core.store.base import Change, Commit, Hold, Keeping, Near, News, Retention, Route, Span, Wanted, Watched
from givalia_core.takers import Session

SWEEP_US: Final = SECOND_US  # How often leases, expiries and retention are looked after,
SWEEP_SHARED_US: Final = 10 * SECOND_US  # and retention where several servers do it.
WATCH_US: Final = 2_500_000  # How often it is looked what other servers did: the bound when their news is lost,
WATCH_DEAF_US: Final = 500_000  # and while no news arrives at all.
GAP_US: Final = 2 * SECOND_US  # A silence of the loop for longer was a pause of the process: nobody could beat (K5).
EXPIRED_AT_ONCE: Final = 1_000
FORGOTTEN_AT_ONCE: Final = 200  # The record of each is read first.
NOTHING_UNKEPT: Final = Keeping()
COMMANDS: Final = frozenset({Kind.ENQ, Kind.CANCEL, Kind.EXT, Kind.REQUEUE})
CHANGES_NOTHING: Final = frozenset(
    {Kind.STAT, Kind.WAIT, Kind.JOIN, Kind.ANNOUNCE, Kind.CREDIT, Kind.BEAT, Kind.PROGRESS, Kind.PROCESSES}
    | {Kind.RESUME_LENDING}
)


class Reads(NamedTuple):
    """What one batch must know before it can be decided."""

    wanted: Wanted
    requeued: frozenset[bytes]  # Ids whose keys must be looked up as well.
    expired: int
    retention: Retention | None


class Plan(NamedTuple):
    """What was decided: nothing of it is true before the commit."""

    batch: Batch
    changes: list[Change]
    retention: Retention | None
    must_commit: bool


class Engine:
    """Decides batch by batch: `begin`, `reads`, `decide`, then (after the commit) `conclude`."""

    def __init__(
        self,
        policy: Policy,
        *,
        epoch: int,
        last_seq: int,
        live: int,
        running: Iterable[Job],
        durability: str,
        regrant_us: int,
        now: Now,
        rng: random.Random,
        is_shared: bool = False,
    ) -> None:
        """Start from a store that was just opened: jobs that were running get a whole lease (`regrant_us`, no shorter than
        the one their worker was told) to be heard of again.
        """
        self.desk = Desk(policy, epoch, last_seq, rng, is_shared=is_shared)
        self.desk.durability = durability
        self.desk.live = live
        for job in running:
            self.desk.leases[job.id] = Lease(job, None, now.mono_us + regrant_us)
        self.again = Again(self.desk)
        self.questions = Questions(self.desk)
        self._lender = Lender(self.desk)
        self._inputs: Sequence[Input] = ()
        self._now = now
        self._held_up_until_us = 0
        self._ahead_us = now.timer_ahead_us  # What the near windows were last filled by: a slow drift adds up.
        self._also_keys: frozenset[str] = frozenset()  # Of refused changes: who holds these keys must be read.
        self._pace = sharing.Pace()
        self._suspects: frozenset[bytes] = frozenset()  # Those that this batch reads again.
        self._learning: frozenset[Route] = frozenset()  # Routes whose variants this batch reads.
        self._owed: list[Effect] = []  # What is to be said with the next answers, whatever becomes of the batch.
        self._watched: Watched | None = None
        self._watched_us: int | None = None  # When; None if it must be done next.
        self._is_deaf = False
        self._all_own = False  # Whether it must be found out anew what this server looks after.
        self._swept_us = self._swept_rows_us = now.mono_us
        self._sweeping = self._sweeping_rows = self._has_expired = False
        self._forget_more = False
        self._must_mark = True

    # The first half of a batch: what happened, and what must be read.

    def hear(self, news: News) -> None:
        """Take in what the other servers of a shared store say; call it before `begin`."""
        sharing.hear(self.desk, news)
        if news.must_watch or (self._is_deaf and not news.is_deaf):
            self._watched_us = None
        if news.must_watch or news.changed or news.ready or news.nearing:
            self.desk.aside.hear(self._now)  # What somebody changed may be what was held.
        self._is_deaf = news.is_deaf

    @property
    def must_watch(self) -> bool:
        """Whether the store must be watched in this batch, after `begin`."""
        if not self.desk.is_shared:
            return False
        each_us = WATCH_DEAF_US if self._is_deaf else WATCH_US
        return self._watched_us is None or self._now.mono_us - self._watched_us >= each_us

    @property
    def all_own(self) -> bool:
        """Whether `watch` must name everything that this server looks after."""
        return self._all_own

    def watch(self, watched: Watched | None) -> None:
        """Give what the store answered to `watch`."""
        self._watched, self._watched_us = watched, self._now.mono_us
        if watched is None:
            return
        sharing.note_others(self.desk, watched)
        self._has_expired = watched.has_expired
        self._owed += sharing.hooks(self.desk, watched.events)
        if self._all_own:
            sharing.forget_unknown(self.desk, watched.own)
        self.desk.suspects.update(job.id for job in watched.own if job.stop_asked)
        if not self._all_own and watched.looked_after not in (None, len(self.desk.leases)):
            self._all_own, self._watched_us = True, None  # Somebody's word was lost, or a commit came late: look closer.
        else:
            self._all_own = False

    def begin(self, inputs: Sequence[Input], now: Now) -> list[Span]:
        """Take in what arrived and the time; return what the near windows must read."""
        gap_us = now.mono_us - self._now.mono_us
        if gap_us > GAP_US:
            self._extend_leases(gap_us)
            self._remember_longer(gap_us, now)
        elif now.mono_us > self._held_up_until_us:
            self.desk.held_up_us = 0
        if self.desk.remembered.bytes:
            self.desk.remembered.forget(now.mono_us, self.desk.held_up_us)
        if abs(now.timer_ahead_us - self._ahead_us) > STEP_US:
            # The wall clock was set: which absolute jobs are due has changed, and the new distance must be kept.
            self.desk.routing.forget_windows()
            self._must_mark = True
            self._ahead_us = now.timer_ahead_us
        self._inputs, self._now = [*self.desk.acts.take(), *self._without_questions(inputs)], now
        self.desk.aside.leave(inputs)
        self.desk.routing.begin(self.desk.clogged)
        self._sweeping = now.mono_us - self._swept_us >= SWEEP_US
        self._sweeping_rows = self._sweeping
        if self._sweeping:
            self._swept_us = now.mono_us
            self.desk.routing.learn_more()
        self._has_expired = self._sweeping
        if self.desk.is_shared:
            self._has_expired = False
            self._sweeping_rows = now.mono_us - self._swept_rows_us >= SWEEP_SHARED_US
            if self.must_watch:
                self.desk.routing.forget_windows()  # What the others did to them is not known for sure.
        if self._sweeping_rows:
            self._swept_rows_us = now.mono_us
        return self.desk.routing.tick(now)

    def _without_questions(self, inputs: Sequence[Input]) -> list[Input]:
        """Hand questions to those who walk; the rest is decided in this batch."""
        decided: list[Input] = []
        for given in inputs:
            if isinstance(given, Gone):
                self.questions.leave(given.conn)
                decided.append(given)
            elif given.kind not in questions.KINDS:
                decided.append(given)
            elif (refused := questions.refused(given)) is not None:
                self._owed.append(refused)
            else:
                self.questions.add(given)
        return decided

    def _extend_leases(self, gap_us: int) -> None:
        for lease in self.desk.leases.values():
            lease.expires_mono_us += gap_us
        for session in self.desk.routing.sessions.values():
            session.beat_mono_us += gap_us
        self.desk.losses.extend(gap_us)

    def _remember_longer(self, gap_us: int, now: Now) -> None:
        """Commands may have waited in our sockets for as long as we stood still, so their answers are kept for longer."""
        self.desk.held_up_us += gap_us
        self._held_up_until_us = now.mono_us + REMEMBERED_AT_LEAST_US

    def look_again(self, now: Now) -> Now:
        """Take the time once more before anything is decided."""
        self._now = now
        return now

    def fill(self, spans: Sequence[Span], answers: Sequence[Near]) -> None:
        """Give the near windows what the store answered to `begin`."""
        for span, near in zip(spans, answers, strict=True):
            self.desk.routing.windows[span.route].fill(near)

    @property
    def must_look(self) -> bool:
        """Whether the store must be asked which of `held` may be free, after `begin`."""
        return self.desk.aside.must_look(self._now)

    @property
    def held(self) -> frozenset[str]:
        """The names of the holds that commands wait for."""
        return self.desk.aside.names

    def take_up(self, freed: frozenset[str]) -> None:
        """Decide again, in this batch, the commands that wait for these names."""
        self._inputs = [*self.again.take_up(freed, self._now), *self._inputs]

    def reads(self) -> Reads:
        """What the commands name, and the jobs that may be lent."""
        wanted = Names()
        wanted.keys.update(self._also_keys)
        for given in self._inputs:
            if isinstance(given, Asked):
                wanted.add(self.again.unanswered(given), self.desk)
        self._suspects = frozenset(self._pace.some(self.desk) | wanted.resumed)
        wanted.ids.update(self._suspects)
        wanted.ids.update(self.desk.lapsed)
        wanted.variants.update(self.desk.routing.unlearned)
        self._learning = frozenset(wanted.variants)
        claims = self._lender.claims(wanted.reporting)
        return Reads(
            wanted.wanted(claims, may_lend=self._may_lend()),
            frozenset(wanted.requeued),
            EXPIRED_AT_ONCE if self._has_expired else 0,
            self._retention() if self._sweeping_rows or self._forget_more else None,
        )

    def _may_lend(self) -> bool:
        """Whether a job may become ready in this batch besides those of new commands and of claims."""
        care = self._watched is not None and bool(self._watched.own or self._watched.strayed)
        return self.desk.is_shared and bool(self._inputs or care or (self._sweeping and self.desk.leases))

    # The second half: decide, and after the commit let it be true.

    def hold_changes(self) -> list[Input]:
        """Keep in this batch what changes nothing; return what a later one decides, when the store has room again.

        Clients are told that the disk is full, unless part of their frame took effect before.
        """
        self.desk.drop_hints()
        held: list[Input] = []
        kept: list[Input] = []
        for given in self._inputs:
            if isinstance(given, Asked) and given.kind in CHANGES_NOTHING:
                kept.append(given)
            elif isinstance(given, Asked) and given.kind in COMMANDS and not self.again.known(given):
                words = "the disk of the store is full, and the reserve is used up: nothing can be changed until there is room"
                self._owed.append(Reply(given.conn, given.request, [StoreFull(words)] * len(given.messages)))
            else:
                held.append(given)
        self._inputs, self.desk.is_stuck = kept, True
        return held

    def conclude_without_commit(self, plan: Plan, held: Sequence[Input]) -> list[Effect]:
        """Return what may be said of a batch that changed nothing, and decide what was held in the next one."""
        must_mark = self._must_mark
        effects = self.conclude(plan, Commit())
        self._must_mark, self.desk.is_stuck = must_mark, False
        self.again.keep(held, is_unsure=False)
        self.again.is_stuck = True
        return effects

    def decide(self, facts: Facts) -> Plan:
        """Decide everything that arrived, then lend what is ready to whoever is free."""
        now = self._now
        self.desk.use_numbers(facts.found.floor)
        self.desk.routing.learn(self._learning, facts.found.variants)
        batch = Batch(self.desk, facts, now)
        self.desk.suspects -= self._suspects
        if self._suspects:
            self._pace.note(self._suspects, facts.found.ids)
        self._owed += sharing.review(self.desk, self._suspects, facts.found.ids)
        for place, given in enumerate(self._inputs):
            if isinstance(given, Gone):
                leases.lose(batch, given.conn, "its connection has ended")
            else:
                answers.answer(batch, given, place, self.again.known(given))
        batch.author = NOBODY
        if self._watched is not None:
            sharing.care(batch, self._watched)
        if self._sweeping and not self.desk.is_stuck:
            self._sweep(batch)
        lapsed = [job for job_id in self.desk.lapsed if (job := facts.found.ids.get(job_id)) is not None]
        self.desk.lapsed.clear()
        for job in (*facts.expired, *lapsed) if not self.desk.is_stuck else ():
            current = batch.jobs.get(job.seq, job)
            if current.is_expired(batch.now):
                batch.expire(current)
        # Whoever shares a store lends with numbers of this batch only: those of an earlier one may be below another's. And a
        # worker that has just announced may have more urgent jobs on variants that nobody had a window for.
        has_numbers = facts.found.floor or not self.desk.is_shared
        may_lend = self.desk.lends and not self.desk.is_stuck
        if has_numbers and may_lend and not self.desk.routing.unlearned:
            self._lender.lend(batch)
        else:
            self._lender.hold()
        changes = batch.changes()
        retention = self._retention() if facts.forgettable else None
        must_commit = bool(changes) or self._must_mark or retention is not None
        return Plan(batch, changes, retention, must_commit)

    def _sweep(self, batch: Batch) -> None:
        leases.expire_leases(batch)
        silent_us = batch.now.mono_us - self.desk.policy.lease_us * 2 // 3 - SECOND_US
        for session in list(self.desk.routing.sessions.values()):
            if session.beat_mono_us < silent_us:
                batch.close(session.conn, "it missed two beats")
                leases.lose(batch, session.conn, "it missed two beats")
        self.desk.losses.sweep(batch.now.mono_us - self.desk.policy.lease_us, self.desk.routing.elsewhere.instances)

    def _retention(self) -> Retention:
        policy, now_us = self.desk.policy, self._now.timer_us
        return Retention(now_us, now_us - REMEMBERED_AT_LEAST_US, policy.retain_max, policy.retain_dead_max, FORGOTTEN_AT_ONCE)

    def conclude(self, plan: Plan, commit: Commit, keeping: Keeping = NOTHING_UNKEPT) -> list[Effect]:
        """The commit is durable: renew what memory believes, and return what may now be said.

        Args:
            plan: What was decided.
            commit: What became of its changes.
            keeping: What a shared store did not keep of the answers that changed nothing.
        """
        batch = plan.batch
        self._must_mark = False
        self._watched = None
        held: dict[int, Hold] = {}
        refused: set[int] = set()
        if commit.refused:
            held, refused = self._note_refused(plan, commit)
        else:
            self._also_keys = frozenset()
        self._forget_more = commit.forgotten >= FORGOTTEN_AT_ONCE
        if keeping.decided:
            refused |= {batch.unchanged[request].number for request in keeping.decided}
        unanswerable = self.again.take_back(self._inputs, batch, refused, held)
        if batch.unchanged:
            self._remember_answers(batch, refused, keeping.busy)
        for resumed in batch.resumed:
            resumed.has_resumed = True
        if batch.ends_hold:
            self.desk.is_holding = False
            self.desk.routing.forget_windows()  # They are read again at once, with all that has become ready meanwhile.
        # Progress goes first: who waits hears it before the end.
        effects, self._owed = [*_progress(batch), *self._owed, *self.desk.aside.overdue(self._now)], []
        dispatches: dict[int, list[Item]] = {}
        for was, job in plan.changes:
            if job.seq not in refused:
                self._remember(batch, was, job, dispatches, effects)
            else:
                self._take_back_credits(batch, job.seq)
        for seq, effect in batch.effects:
            if seq not in refused and not (isinstance(effect, Reply) and (effect.conn, effect.request) in unanswerable):
                effects.append(effect)
        for conn, items in dispatches.items():
            session = self.desk.routing.sessions.get(conn)
            if session is not None:
                heard = item(Heard(session.heard, self.desk.policy.lease_us))
                effects.append(Tell(conn, Kind.DISPATCH, [heard, *items]))
        return self._without_own_answers(effects) if self.desk.acts else effects

    def _without_own_answers(self, effects: list[Effect]) -> list[Effect]:
        """Hand the answers to commands of our own to the walks that wait for them, and return the rest."""
        others: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Reply) and effect.conn == acts.CONN:
                self.desk.acts.hear(effect)
            else:
                others.append(effect)
        return others

    def _note_refused(self, plan: Plan, commit: Commit) -> tuple[dict[int, Hold], set[int]]:
        """Drop what was believed of refused changes; return the holds of those that are held, and the seqs of all."""
        lost = [plan.changes[place].job for place in commit.refused if place not in commit.held]
        held = {plan.changes[place].job.seq: hold for place, hold in commit.held.items()}
        self._also_keys = self._also_keys | {job.key for job in lost if job.key is not None} if lost else frozenset()
        if lost:
            self.desk.routing.forget_windows()
            self.desk.suspects.update(job.id for job in lost if job.id in self.desk.leases)
        self.desk.aside.meet(held.values(), self._now)
        for place in commit.held:
            self._unoffer(*plan.changes[place])
        return held, {job.seq for job in lost} | held.keys()

    def _unoffer(self, was: Job | None, job: Job) -> None:
        """A change was held: as far as anybody knows, the job waits where it did before, or is not there."""
        self.desk.routing.discard(job)
        if was is not None and was.state is WAITING:
            self.desk.routing.offer(was, self._now)

    def _remember_answers(self, batch: Batch, refused: set[int], busy: frozenset[bytes]) -> None:
        """Remember the answers that changed nothing and stand; those that cannot be kept for now are told to nobody."""
        if busy:
            numbers = {batch.unchanged[request].number for request in busy}
            answers.forget(batch, self._inputs, numbers)
            refused = refused | numbers
        self.desk.remembered.add(batch.standing(refused), self._now.mono_us)

    def _take_back_credits(self, batch: Batch, seq: int) -> None:
        if seq in batch.claims:
            batch.claims[seq].give_back()
        if seq in batch.freed:
            batch.freed[seq].held += 1

    def _remember(
        self,
        batch: Batch,
        was: Job | None,
        job: Job,
        dispatches: dict[int, list[Item]],
        effects: list[Effect],
    ) -> None:
        desk = self.desk
        lease = desk.leases.get(job.id)
        desk.live += (job.state not in ENDED) - (was is not None and was.state not in ENDED)
        if lease is not None and (job.state is not RUNNING or job.fence != lease.job.fence):
            del desk.leases[job.id]
            lease = None
        if job.state is RUNNING:
            room = batch.claims.get(job.seq)
            if room is not None:
                desk.leases[job.id] = leases.lease_of(batch, job, room)
                dispatches.setdefault(room.session.conn, []).append(_dispatch(job, batch.now))
            elif lease is not None:
                lease.job = job
            elif job.seq in batch.taken:
                self._take_over(batch, job, *batch.taken[job.seq])
        elif job.id in desk.waits.by_job and job.state in ENDED:
            effects += [Reply(conn, request, [words.end(job)], job.id) for conn, request in desk.waits.end(job.id)]

    def _take_over(self, batch: Batch, job: Job, session: Session | None, lent_us: int) -> None:
        if session is not None and session.conn not in self.desk.routing.sessions:
            session = None
        room = None if session is None else session.room(job.module)
        if room is not None:
            room.held += 1
        self.desk.leases[job.id] = Lease(job, room, batch.now.mono_us + lent_us)

    def suspend(self, plan: Plan | None) -> None:
        """The store went away in this batch, or met an answer of another server. Nothing is answered; all is decided again.

        Args:
            plan: What was decided, if it came to that: it may have been stored.
        """
        if plan is not None:
            self._owed += [effect for _, effect in plan.batch.effects if isinstance(effect, Close)]
        is_unsure = plan is not None and bool(plan.changes or plan.batch.unchanged)
        self.again.keep(self._inputs, is_unsure=is_unsure)
        self.again.add(self.questions.take_all())
        self.desk.drop_hints()
        self._watched, self._watched_us, self._all_own = None, None, True

    def wake_in_us(self, now: Now) -> int:
        """How long nothing needs to be decided unless something arrives; never over a second (K4)."""
        if self.again.is_stuck:
            return self.again.pause_us
        if self._lender.hurry or self._forget_more or self.desk.routing.must_read or self.questions.has_work:
            return 0
        if self.desk.acts.submitted:
            return 0
        if self.again.inputs or self.desk.suspects:
            return self.again.pause_us
        most_us = min(self.desk.aside.next_us(now), SWEEP_US) if self.desk.aside else SWEEP_US
        due_us = self.desk.routing.next_due_us()
        return most_us if due_us is None else min(max(due_us - now.timer_us, 0), most_us)


def _progress(batch: Batch) -> list[Effect]:
    """What those who wait are told of the progress of their jobs: one frame for each connection."""
    told: dict[int, list[Item]] = {}
    for (conn, request), progress in batch.progressed.items():
        told.setdefault(conn, []).append(item(Progressed(request, *progress)))
    return [Tell(conn, Kind.PROGRESSED, items) for conn, items in told.items()]


def _dispatch(job: Job, now: Now) -> Item:
    return item(
        Dispatch(
            job.id,
            job.fence,
            job.module,
            job.attempt,
            job.due_on_wall_us(now),
            job.key,
            job.target_worker,
            job.priority,
            job.timeout_us,
            job.specifier,
            job.params,
        )
    )
