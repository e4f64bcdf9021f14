"""The store in PostgreSQL, which any number of servers may have open.

A batch is two trips: the first reads what it must know and locks the jobs to lend; the second writes its changes and commits.
The version of a job guards each change, as in every store: a change of another server in between is never overwritten.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import gevent
import msgpack
from givalia_core.clock import SECOND_US, Mark, Now
from givalia_core.errors import StoreAway, StoreError, StoreFailed, StoreFull, StoreLocked, StoreUnfit
from givalia_core.model import WAITING
from givalia_core.printable import without_secrets
from givalia_core.store.base import Change, Commit, Hold, Opened, Retention, Route
from givalia_core.store.shared import ALIVE_US, Event, Keeping, Kept, News, Watched
from psycopg.conninfo import conninfo_to_dict

from givalia_postgres import statements as sql
from givalia_postgres import tables, transaction, upgrading, writes
from givalia_postgres.checksums import seal, unsealed
from givalia_postgres.clock import DatabaseClock
from givalia_postgres.connection import Again, Connection, Held, Rows, Statement, TooLong
from givalia_postgres.doubts import TABLES, names_of
from givalia_postgres.hints import Hints, Listener, notify, of_changes
from givalia_postgres.pooling import refuse_pooler
from givalia_postgres.promise import Seen
from givalia_postgres.reads import Reads, surveying
from givalia_postgres.rows import int8s, texts
from givalia_postgres.scrubbing import Round
from givalia_postgres.sifting import FULL, Sifter

TRIES: Final = 3  # Tries of a commit that the database wants repeated, before its changes are tried apart.
ENTER_TRIES: Final = 100  # Tries to enter the store while other servers enter, too,
ENTER_PAUSE_S: Final = 0.02  # and the pause between them.
FOLD_AFTER: Final = 400  # Counts are summed up after this many commits,
FOLD_ROWS: Final = 1_000  # or at this many rows, since users' transactions add rows, too.
SCRUB_EACH_S: Final = 10.0
STRAYED_AT_ONCE: Final = 2_000
SWEEP_S: Final = 2.0
SWEPT_AT_ONCE: Final = 2_000
LEASE_MAX_US: Final = 86_400 * SECOND_US  # No server grants a longer one, whatever its row says.
EVENTS_AT_ONCE: Final = 1_000

log = logging.getLogger("givalia.store")


class Postgres(Reads):
    """Keeps jobs in PostgreSQL; see `givalia_core.store.base.SharedStore` for what each method promises."""

    is_shared = True
    durability = "fsync"
    way_to_back_up = (
        "the store is a PostgreSQL database: back it up with pg_dump, or with base backups and archived logs to return to any"
        " moment"
    )

    takes = staticmethod(transaction.takes)
    complete_in = staticmethod(transaction.complete_in)

    def __init__(self, url: str) -> None:
        """Take any URL of libpq, which may name a socket's folder (`?host=/run/postgresql`); open nothing yet."""
        super().__init__(url, Connection(url, "givalia", self._look))
        self._url = url
        self.may_create = True  # The server's setting `create`,
        self.may_upgrade = False  # and whether its setting `upgrade` is auto.
        self.timer = DatabaseClock()
        self.wake: Callable[[], None] = lambda: None
        self._mark: Mark | None = None
        self._epoch = 0
        self._hints = Hints()
        self._listener: Listener | None = None
        self._about = self._known_terms = b""
        self._hooks: list[str] = []  # The hooks that this server has plugins for.
        self._has_others = True  # Assumed until the first poll.
        self._sifter = Sifter(self._connection, self._doubts)
        self._commits = 0
        self._swept = time.monotonic()
        self._has_more_to_sweep = False
        self._scrub_round = Round()
        self._scrub_at = 0.0

    # Opening and closing.

    def open(self, *, unsafe: bool = False) -> Opened:
        try:
            self.durability = self._promise.begin(unsafe=unsafe)
            self._upgrade_if_needed()
            is_new = upgrading.create(self._connection, may_create=self.may_create)
            opened, identity = self._enter()
            self._promise.hold(identity, opened.epoch)
        except Again as error:
            self._connection.close()
            raise StoreAway(str(error)) from error
        except BaseException:
            self._connection.close()
            raise
        self._epoch = opened.epoch
        self._hints.must_watch = True  # So that the other servers learn of this one.
        return opened._replace(is_new=is_new)

    def _upgrade_if_needed(self) -> None:
        """Bring tables of an earlier format to this one if this server may; otherwise name the command for that.

        Raises:
            StoreUnfit, StoreLocked: An upgrade is not allowed, or other servers are alive. Nothing was changed.
        """
        words = upgrading.need_of(self._connection)
        if words is None:
            return
        command = f"givalia store upgrade --store {shlex.quote(without_secrets(self._url))}"
        if not self.may_upgrade:
            raise StoreUnfit(f"{words}: with every server stopped, run {command} as the owner of the tables")
        try:
            before, after = self.upgrade()
        except (StoreUnfit, StoreLocked) as error:
            way = f"Or, with every server stopped, run {command} as the owner of the tables"
            raise type(error)(f"{words}. {error}. {way}") from error
        log.warning(
            "the tables went from format %d to %d. There is no copy of them here: the way back is a backup of the database",
            before, after,
        )  # fmt: skip

    def _enter(self) -> tuple[Opened, str]:
        """Enter the store, once other servers that enter at the same moment release the rows that all of them write."""
        for _ in range(ENTER_TRIES):
            try:
                return tables.enter(self._connection, self.timer)
            except Held:
                gevent.sleep(ENTER_PAUSE_S)
        return tables.enter(self._connection, self.timer)

    def _look(self) -> None:
        """Check, on each new connection, that its session is ours, and that the database is the one that was opened."""
        refuse_pooler(self._url, self._connection)
        if self._epoch:
            self._promise.look()

    def upgrade(self) -> tuple[int, int]:
        patient = Connection(self._url, "givalia", lambda: refuse_pooler(self._url, patient), answer_s=upgrading.ANSWER_S)
        try:
            return upgrading.upgrade(patient)
        except Again as error:
            raise StoreAway(str(error)) from error
        finally:
            patient.close()

    def close(self) -> None:
        self._quarantine.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._epoch and self._connection.is_made:
            with suppress(StoreError, StoreFull, Again):
                self._promise.look()  # Raises if this is another store by now, which must not be touched.
                tables.leave(self._connection, self._epoch, self._mark, self._last_seq)
                self._hints.must_watch = True  # So that other servers take over this one's jobs.
                self.tidy()
        self._epoch = 0
        self._connection.close()

    # Writing.

    def raise_numbers(self, seq: int, fence: int) -> None:
        tables.raise_numbers(self._connection, seq, fence)
        self._last_seq = max(self._last_seq, seq)

    def commit(
        self,
        changes: Sequence[Change],
        mark: Mark,
        retention: Retention | None = None,
        learned: object = None,  # noqa: ARG002 - As of every store.
    ) -> Commit:
        if not self._epoch:
            raise StoreFailed("the store is not open")
        self._mark = mark
        self._last_seq = max(self._last_seq, max((change.job.seq for change in changes), default=0))
        if not changes and retention is None:
            return Commit()
        try:
            commit = self._try(changes, retention)
        except StoreFull:
            self._full_since = time.monotonic()
            raise
        self._set_aside()
        return commit

    def _try(self, changes: Sequence[Change], retention: Retention | None) -> Commit:
        """Commit the changes that nothing holds, then those that may be free by now; name the holds of the rest."""
        held, doubtful = self._doubted(changes)
        rest = [change for change in changes if change.job.seq not in held and change.job.seq not in doubtful]
        applied, forgotten = self._commit_all(rest, retention, held)
        if doubtful:
            self._sift(list(doubtful.values()), None, applied, held)
        refused = tuple(place for place, change in enumerate(changes) if change.job.seq not in applied)
        if len(refused) > len(held):
            self._find_locks([changes[place] for place in refused if changes[place].job.seq not in held], held)
        self._commits += 1
        self._note(changes, refused)
        holds = {place: held[seq] for place in refused if (seq := changes[place].job.seq) in held} if held else {}
        return Commit(refused, forgotten, holds)

    def _doubted(self, changes: Sequence[Change]) -> tuple[dict[int, Hold], dict[int, Change]]:
        """Return, by seq, the holds of changes that are not worth a try now; and the changes to try apart from the rest."""
        held: dict[int, Hold] = {}
        doubtful: dict[int, Change] = {}
        for change in changes if self._doubts else ():
            names = (TABLES, *names_of(change.job, is_new=change.was is None))
            if (hold := self._doubts.hold_of(names)) is not None:
                held[change.job.seq] = hold
            elif self._doubts.knows(names):
                doubtful[change.job.seq] = change
        return held, doubtful

    def _commit_all(self, changes: list[Change], retention: Retention | None, held: dict[int, Hold]) -> tuple[set[int], int]:
        """Store the changes in one transaction, or sifted; return the stored seqs, and the number of forgotten jobs."""
        if not changes and retention is None and not self._connection.in_transaction:
            return set(), 0
        met: Exception | None = None
        for tried in range(TRIES):
            try:
                return self._commit(changes, retention)
            except (Held, TooLong) as error:
                met = error
                break
            except Again as error:
                met = error
                gevent.sleep(0.002 * tried)
            except StoreFull as error:
                if any(change.was is None for change in changes):
                    raise  # The engine refuses the new jobs, and commits the other changes again.
                met = error
                break
        applied: set[int] = set()
        self._sift(changes, met, applied, held)
        return applied, 0

    def _sift(self, changes: list[Change], met: Exception | None, applied: set[int], held: dict[int, Hold]) -> None:
        assert self._mark is not None
        stored, holds = self._sifter.write(changes, met, self._mark.wall_us, self._new_until_us)
        if any(hold.why == FULL for hold in holds.values()):
            self._full_since = time.monotonic()
        applied |= stored
        held |= holds
        self._sifter.look()

    def _find_locks(self, refused: list[Change], held: dict[int, Hold]) -> None:
        """Tell the refused changes whose rows are locked from those whose guards failed."""
        assert self._mark is not None
        with suppress(Again, StoreFull):  # Then they count as failed guards: the engine decides them again at once.
            if locked := self._sifter.locked(refused, self._mark.wall_us):
                held |= locked
                self._sifter.look()

    def _commit(self, changes: Sequence[Change], retention: Retention | None) -> tuple[set[int], int]:
        written = self._write(list(writes.statements(changes, self._new_until_us)), is_last=retention is None)
        forgotten = 0
        if retention is not None:
            for is_dead, keep in ((False, retention.keep_ended), (True, retention.keep_dead)):
                values = [is_dead, retention.now_us, retention.ended_before_us, keep, retention.limit - forgotten]
                ((count,),) = self._write([(sql.RETIRE, values)], is_last=is_dead)[0]
                forgotten += count
        return {seq for rows in written for (seq,) in rows}, forgotten

    def keep(self, answers: Sequence[Kept]) -> Keeping:
        if not answers:
            return Keeping()
        try:
            kept = self._keep(answers)
        except StoreFull:
            return Keeping(busy=frozenset(answer.request for answer in answers))
        except Held:
            # An open transaction makes a job of one of the ids; whether that job will exist is unknown until it ends.
            new = frozenset(answer.request for answer in answers if answer.is_enq)
            others = [answer for answer in answers if not answer.is_enq]
            return self.keep(others)._replace(busy=new) if new else Keeping(busy=frozenset(a.request for a in answers))
        return Keeping(frozenset(answer.request for answer in answers if answer.request not in kept))

    def _keep(self, answers: Sequence[Kept]) -> set[bytes]:
        for tried in range(TRIES):
            try:
                if self._connection.in_transaction:
                    self._let_go()
                _, kept, *more = self._write(list(writes.keep(answers)), is_last=True)
            except Held:
                raise
            except Again:
                gevent.sleep(0.002 * tried)
            else:
                dropped = more[1] if more else []
                return {request for (request,) in kept} - {request for (request,) in dropped}
        raise StoreAway(f"no answer could be kept in {TRIES} tries")

    def _note(self, changes: Sequence[Change], refused: tuple[int, ...]) -> None:
        """Note the hints for other servers about a commit that is done."""
        assert self._mark is not None
        lost = set(refused)
        stored = [change for place, change in enumerate(changes) if place not in lost] if lost else changes
        followed = self._listener.followed if self._listener is not None else {}
        of_changes(self._hints, stored, self._epoch, followed, self._mark.timer_us)
        tops = self._floors.tops
        for _, job in changes:
            self._held.pop(job.seq, None)
            if job.state is WAITING and job.due_at_us < tops.get((job.module, job.target), 0):
                self._floors.lower(Route(job.module, job.target), job.due_at_us)
        self._let_go()

    def _let_go(self) -> None:
        """Note hints about the jobs that were locked here and not lent: other servers' queries skipped them meanwhile."""
        for route, due_us in (*self._held.values(), *self._unread.items()):
            self._hints.is_ready(route, due_us)
        self._held.clear()
        self._unread.clear()

    def _write(self, some: list[Statement], *, is_last: bool) -> list[Rows]:
        """Send statements in the open transaction, or a new one; the last ones with the commit."""
        connection = self._connection
        before: list[Statement] = [] if connection.in_transaction else [(sql.BEGIN, ())]
        after: list[Statement] = [(sql.COMMIT, ())] if is_last else []
        connection.in_transaction = not is_last
        answers = connection.ask(*before, *some, *after)
        return answers[len(before) : len(before) + len(some)]

    # Housekeeping.

    def rest(self) -> None:
        """Do nothing: the database has its own housekeeping."""

    def tidy(self) -> None:
        """Release the jobs that were locked and not lent, and send the hints; now and then, sum up the counts."""
        statements: list[Statement] = []
        if self._connection.in_transaction:
            self._connection.in_transaction = False
            self._let_go()
            statements.append((sql.COMMIT, ()))
        if self._hints:
            hints, self._hints = self._hints, Hints()
            if self._has_others:
                statements += notify(hints.payloads())
        if self._commits >= FOLD_AFTER:
            self._commits = 0
            statements.append((sql.FOLD, ()))
        sweeps = self._must_sweep()
        if sweeps:
            statements.append((sql.SWEEP_ANSWERS, [SWEPT_AT_ONCE]))
        if statements:
            # No answer depends on this; the next turn shows whether the store is back.
            with suppress(Again, StoreAway, StoreFull):
                answers = self._connection.ask(*statements)
                self._has_more_to_sweep = sweeps and answers[-1] == [(SWEPT_AT_ONCE,)]
        self._set_aside()

    def _must_sweep(self) -> bool:
        """Return whether it is time to remove answers that have been kept long enough."""
        now = time.monotonic()
        must_sweep = self._has_more_to_sweep or now - self._swept >= SWEEP_S
        if must_sweep:
            self._swept, self._has_more_to_sweep = now, False
        return must_sweep

    def has_room(self) -> bool:
        return not self._is_full

    # What other servers do.

    def news(self) -> News:
        if self._listener is None:
            self._listener = Listener(self._url, lambda: self.wake())
        news = self._listener.take()
        if self._must_look:
            self._must_look = False
            news = news._replace(must_watch=True)
        if news.must_watch or news.is_deaf:
            self._floors.forget()
        for route, due_us in self._listener.dues.items():
            self._floors.lower(route, due_us)
        return news

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> Watched | None:  # noqa: ARG002 - As of every store.
        self._sifter.look()  # A name may be free by now that no command asks about; its jobs are not lent before.
        try:
            return self._watch(lease_us, about, all_own=all_own)
        except (Again, StoreFull):
            self._promise.look()  # This check writes nothing, and the promise must hold even now.
            return None

    def _watch(self, lease_us: int, about: bytes, *, all_own: bool) -> Watched:
        me, began = self._epoch, time.monotonic()
        sent_us = time.monotonic_ns() // 1000
        looks = all_own or self._floors.is_time(began)
        said = [seal(about), seal(self._terms(about)), texts(self._hooks), self._promise.identity]
        rows = self._connection.ask((sql.BEAT, [me, ALIVE_US, lease_us, *said, looks]))[0]
        if not rows:
            self._promise.look()  # Raises: this is another store.
            raise StoreAway("the store could not be told that this server is alive")
        (row,) = rows
        lapsed, now_us, mine, counts, live, expired, others, has_events, has_stopping, has_strayed, is_first = row[
            : sql.BEAT_WIDTH
        ]
        self.timer.sample(now_us, sent_us, time.monotonic_ns() // 1000)
        if looks:
            self._floors.counted(time.monotonic() - began, time.monotonic())
        self._promise.judge(Seen(*row[sql.BEAT_WIDTH :]))
        self._floors.forget()
        self._look_below_floors()
        self._commits += FOLD_AFTER * (counts > FOLD_ROWS)
        self._has_others = bool(others)
        if self._listener is not None:
            self._listener.speaker = self._connection.pid
        own = self._jobs(sql.OWN, me, all_own) if has_stopping or all_own else []
        rows = self._connection.ask((sql.STRAYED, [STRAYED_AT_ONCE]))[0] if has_strayed else []
        strayed = [(job, min(granted_us, LEASE_MAX_US)) for granted_us, *row in rows for job in self._quarantine.sound([row])]
        events: list[Event] = []
        if has_events:
            rows = self._connection.ask((sql.EVENTS, [EVENTS_AT_ONCE, texts(self._hooks)]))[0]
            events = [Event(hook, job, running) for hook, running, *row in rows for job in self._quarantine.sound([row])]
        if is_first:
            self._scrub()
        self._set_aside()
        # A damaged description of another server is ignored; that server writes it again soon.
        about_others = [unsealed(sealed) or b"" for sealed in others]
        return Watched(own, strayed, mine, lapsed, live, expired, about_others, events)

    def _scrub(self) -> None:
        """Now and then, read some rows that perhaps no command reads, to find damaged ones."""
        now = time.monotonic()
        if now >= self._scrub_at:
            self._scrub_at = now + SCRUB_EACH_S
            with suppress(Again, StoreFull):  # Unread rows are read next time; the events of this poll are not lost.
                rows = self._connection.ask((sql.CHECK, self._scrub_round.wants))[0]
                self._scrub_round.take(rows, self._quarantine, time.time())

    def _look_below_floors(self) -> None:
        """Find jobs that have come to wait below a floor without a hint."""
        if pieces := self._floors.pieces():
            began = time.monotonic()
            routes, lows, highs = zip(*pieces, strict=True)
            columns = [texts([route.module for route in routes]), texts([route.target for route in routes])]
            for place, due_us in self._read((sql.BELOW, [*columns, int8s(lows), int8s(highs)]))[0]:
                self._floors.lower(pieces[place - 1].route, due_us)
            self._floors.looked_at_pieces(time.monotonic() - began)

    def freed(self, names: frozenset[str]) -> frozenset[str]:
        self._sifter.look()
        return self._doubts.freed(names, time.monotonic())

    def _terms(self, about: bytes) -> bytes:
        if about != self._about:
            known = msgpack.unpackb(about)
            self._hooks = known["hooks"] if known else []
            self._about, self._known_terms = about, msgpack.packb([self._hooks, known["policy"]]) if known else b""
        return self._known_terms

    def follow(self, ids: Iterable[bytes]) -> None:
        self._hints.followed.update(ids)

    def describe(self) -> dict[str, Any]:
        known = conninfo_to_dict(self._url)
        where = {name: str(known[name]) for name in ("host", "port", "dbname", "user") if known.get(name)}
        hears = self._listener is not None and not self._listener.is_deaf
        with surveying():
            described = tables.describe(self._connection)
        return {**where, **described, "hears_others": hears, **self._scrub_round.describe()}
