"""Questions whose answers take a walk: `list`, `info`, `modules`, `workers`, acts by filter, parts of a backup.

A walk is cut into small steps. A turn takes as many steps as it has time for, of one walk after the other, so that no question
delays beats, settles and claims, and no connection's questions delay another's. Walks read committed state, between commits.
`info`, `modules` and `workers` are the same for all: one walk answers all connections that had asked when the walk began.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from givalia_core.clock import Now
from givalia_core.engine import acts, remembered, words
from givalia_core.engine.acts import Awaiting, Walk
from givalia_core.engine.answers import LATE
from givalia_core.engine.backlog import Backlog
from givalia_core.engine.desk import Desk
from givalia_core.engine.records import Refusal, Reply
from givalia_core.errors import BadRequest, Busy, GivaliaError, NotFound, StoreCorrupt, TooLarge
from givalia_core.model import Job, JobState
from givalia_core.protocol.answers import Answer, BackupPart, Described, Listed
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.frames import ANSWER_BYTES_MAX
from givalia_core.protocol.messages import CHANGING, Act, Backup, Kind, List
from givalia_core.store.backups import as_copyable
from givalia_core.store.base import SCAN_MAX, Cursor, Filter, Store, Wanted
from givalia_core.store.shared import Kept

ROWS_LEAST: Final = 16  # Rows of a step; their number adapts to the time that steps take.
ROWS_MOST: Final = 512
PARTS_BYTES_MAX: Final = ANSWER_BYTES_MAX - 1024
PAGE_BYTES: Final = 1 << 20  # A page of a listing ends with the job that reaches this size.
BRIEF_CHARS: Final = 200  # Of the reason why a module is broken, in a long answer.
READY_ROWS: Final = 8  # Counting the ready jobs of a route costs as much as so many rows.
STEP_US: Final = 1_000  # After a shorter step the next one reads more rows; after one twice as long, fewer.
TOLD_BYTES: Final = 8 << 20  # Callers for whom this leaves no room get the answer of a later walk.

Line: TypeAlias = tuple[Kind, int]  # A kind in `OWN` has a line for each connection; any other kind has one line.
ALL_INFO: Line = Kind.INFO, 0
OWN: Final = frozenset({Kind.LIST, Kind.ACT, Kind.BACKUP})  # Of these, each connection asks something else.


class Questions:
    """The unanswered questions, in lines that take turns."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.lines: dict[Line, deque[Asked]] = {}  # In the order of their next steps.
        self._walks: dict[Line, Walk] = {}
        self._audience: dict[Line, set[tuple[int, int]]] = {}  # Callers (conn, request) that had asked when a walk began.
        self._resting: set[Line] = set()  # Walks that go on after the next commit.
        self._awaiting: dict[Line, int] = {}  # Walks that go on when the commands of a ticket are answered.
        self._clogged: set[Line] = set()  # Lines whose callers must all read before they can be answered.
        self._rows = ROWS_LEAST

    def __bool__(self) -> bool:
        """Return whether any question has no answer yet."""
        return bool(self.lines)

    def add(self, asked: Asked) -> None:
        """Let a question wait for its answer."""
        self.lines.setdefault(_line(asked), deque()).append(asked)

    def leave(self, conn: int) -> None:
        """Forget the questions of a connection that is gone."""
        for line in [line for line in self.lines if line[0] not in OWN or line[1] == conn]:
            kept = deque(asked for asked in self.lines[line] if asked.conn != conn)
            if kept:
                self.lines[line] = kept
            else:
                self._forget(line)

    def take_all(self) -> list[Asked]:
        """Take out and return every question; end the walks without an answer."""
        asked = [each for line in self.lines.values() for each in line]
        for ticket in self._awaiting.values():
            self._desk.acts.drop(ticket)
        self._awaiting.clear()
        self.lines.clear()
        self._walks.clear()
        self._audience.clear()
        return asked

    def begin_turn(self) -> None:
        """Let walks go on that waited for the commit, which is made, or for peers to read."""
        self._resting.clear()
        self._clogged.clear()

    @property
    def has_work(self) -> bool:
        """Return whether a step can be taken, in this turn or after the next commit."""
        awaiting = sum(not self._desk.acts.is_answered(ticket) for ticket in self._awaiting.values())
        return len(self.lines) > len(self._clogged) + awaiting

    def step(self, store: Store, now: Now) -> list[Reply] | None:
        """Take a step of the walk whose turn it is and return the answers that are ready; None if no walk can go on.

        Raises:
            StoreAway: The walk is over without an answer; see `take_all`.
        """
        line = next((line for line in self.lines if self._can_go_on(line)), None)
        if line is None:
            return None
        self.lines[line] = self.lines.pop(line)  # Behind the others.
        walk = self._walks.get(line) or self._begin(line, store, now)
        try:
            rest = walk.send((now, self._rows))
            if isinstance(rest, Awaiting):
                self._awaiting[line] = rest.ticket
            elif rest:
                self._resting.add(line)
        except StopIteration as end:
            return self._tell(line, end.value)
        except Refusal as refused:
            return self._tell(line, refused.error)
        except Busy as busy:
            return self._tell(line, busy)  # A shared store takes too long to answer.
        return []

    def note_pace(self, took_us: int) -> None:
        """Adapt the rows of the next step to the time that this one took."""
        if took_us >= 2 * STEP_US:
            self._rows = max(self._rows // 2, ROWS_LEAST)
        elif took_us < STEP_US:
            self._rows = min(self._rows * 2, ROWS_MOST)

    def _can_go_on(self, line: Line) -> bool:
        if line in self._resting or (line in self._awaiting and not self._desk.acts.is_answered(self._awaiting[line])):
            return False
        return self._can_be_told(line)

    def _can_be_told(self, line: Line) -> bool:
        if line in self._clogged:
            return False
        if all(asked.conn in self._desk.clogged for asked in self.lines[line]):
            self._clogged.add(line)
            return False
        return True

    def _begin(self, line: Line, store: Store, now: Now) -> Walk:
        asked = self.lines[line]
        is_late = asked[0].until_us is not None and now.mono_us > asked[0].until_us and line[0] in CHANGING
        make = _late if is_late else _WALKS[line[0]]
        walk = self._walks[line] = make(self._desk, store, asked[0].messages[0])
        heard = [asked[0]] if line[0] in OWN else asked
        self._audience[line] = {(each.conn, each.request) for each in heard}
        next(walk)
        return walk

    def _tell(self, line: Line, answer: Answer) -> list[Reply]:
        """Return the answers of a walk that is over, to all callers that had asked when it began and have room for them."""
        del self._walks[line]
        self._awaiting.pop(line, None)
        audience = self._audience.pop(line)
        waiting, self.lines[line] = self.lines[line], deque()
        told: list[Reply] = []
        room = TOLD_BYTES
        for asked in waiting:
            if room <= 0 or (asked.conn, asked.request) not in audience or asked.conn in self._desk.clogged:
                self.lines[line].append(asked)
            else:
                told.append(Reply(asked.conn, asked.request, [answer]))
                room -= len(getattr(answer, "payload", b""))
        if not self.lines[line]:
            self._forget(line)
        return told

    def _forget(self, line: Line) -> None:
        del self.lines[line]
        self._walks.pop(line, None)
        self._audience.pop(line, None)
        self._clogged.discard(line)
        if line in self._awaiting:
            self._desk.acts.drop(self._awaiting.pop(line))


def _line(asked: Asked) -> Line:
    return asked.kind, asked.conn if asked.kind in OWN else 0


# The walks.


def _list(desk: Desk, store: Store, message: List) -> Walk:
    """Answer with a page of jobs, which may be short or empty although more follow."""
    now, rows = yield False
    wanted = filter_of(message)
    after = None if message.after_a is None or message.after_b is None else (message.after_a, message.after_b)
    jobs: list[Job] = []
    cursors: list[Cursor] = []
    left, room = SCAN_MAX, PAGE_BYTES
    while True:
        looked_at = min(rows, left)
        page = store.page(wanted, after, message.limit - len(jobs), now, looked_at)
        jobs += [words.brief(job, params=message.params) for job in page.jobs]
        cursors += page.cursors
        after, left = page.after, left - looked_at
        room -= sum(len(job.params) + len(job.error or "") for job in jobs[len(jobs) - len(page.jobs) :])
        if after is None or len(jobs) == message.limit or not left or room <= 0:
            break
        now, rows = yield False
    if lapsed := {job.id for job in jobs if job.is_expired(now)}:
        # Their end must be on disk before a client is told of it (T14).
        desk.lapsed |= lapsed
        now, rows = yield True
        found = store.find(Wanted(ids=frozenset(lapsed)), now).ids
        jobs = [words.brief(found[job.id], params=message.params) if job.id in found else job for job in jobs]
    shown = _Parts()
    end: Cursor | None = None  # The cursor behind the last job that is shown.
    for job, cursor in zip(jobs, cursors, strict=True):
        if not shown.has_room:
            after = end
            break
        end = cursor
        if wanted.admits(job, now):
            status = words.status(desk, job, now)
            shown.add(words.pack({**status, "params": job.params} if message.params else status))
        if len(shown) % rows == 0:
            now, rows = yield False
    after_a, after_b = after or (None, None)
    return Listed(after_a, after_b, shown.array())


def filter_of(message: Any) -> Filter:
    """Return the filter that the fields of a message describe."""
    return Filter(
        JobState(message.state) if message.state else None, message.module, message.target_worker, message.key_prefix,
        message.due_before_us, message.due_after_us, message.ended_after_us,
        None if message.error is None else message.error.casefold(),
    )  # fmt: skip


def _late(_: Desk, __: Store, ___: Any) -> Walk:
    """Change nothing for a client that no longer waits."""
    yield False
    return LATE


def _act(desk: Desk, store: Store, message: Act) -> Walk:
    """Act on a page of jobs."""
    known = desk.remembered.get(Kind.ACT, message.request)
    if known is not None:
        yield False
        return known
    answer = yield from acts.page(desk.acts, store, message, filter_of(message), desk.last_seq)
    now, _ = yield False
    if not message.dry_run and desk.remembered.has_room(1):
        # For a client that did not get the answer. The jobs themselves know their changes.
        desk.remembered.add([Kept(message.request, remembered.pack(answer), is_enq=False)], now.mono_us)
    return answer


def _info(desk: Desk, store: Store, _: Any) -> Walk:
    """Describe the server: what it is, holds and allows."""
    now, rows = yield False
    counts = store.counts()
    now, rows = yield False
    backlog = Backlog(desk.routing)
    for place, found in enumerate(store.ready(now), 1):
        backlog.add(found)
        if place % max(rows // READY_ROWS, 1) == 0:
            now, rows = yield False
    jobs: dict[str, dict[str, int]] = {}
    for place, ((module, state), count) in enumerate(counts.items(), 1):
        jobs.setdefault(module, {})[str(state)] = count
        if place % rows == 0:
            now, rows = yield False
    for module, count in backlog.ready.items():
        jobs.setdefault(module, {})["ready"] = count
    shown = _Parts()
    for module in sorted(jobs):
        shown.add(words.pack(module), words.pack(jobs[module]))
        if len(shown) % rows == 0:
            now, rows = yield False
    modules = _Parts()
    for module, told in backlog.modules(now):
        modules.add(words.pack(module), words.pack(told))
    about = words.info(desk, sum(backlog.ready.values()), store.describe(), now)
    fields = _Parts()
    fields.add(words.pack("jobs"), shown.map())
    fields.add(words.pack("modules"), modules.map())
    for name, value in about.items():
        fields.add(words.pack(name), words.pack(value))
    return Described(fields.map())


def _modules(desk: Desk, _: Store, __: Any) -> Walk:
    """Describe every module that a connected worker announced, worker by worker, over all servers of the store."""
    _now, rows = yield False
    shown = _Parts()
    for module in words.each_module(desk):
        is_long = shown.is_half_full and module["broken"]
        shown.add(words.pack({**module, "broken": module["broken"][-BRIEF_CHARS:]} if is_long else module))
        if len(shown) % rows == 0:
            _now, rows = yield False
    return Described(shown.array())


def _workers(desk: Desk, _: Store, __: Any) -> Walk:
    """Describe every connected worker, over all servers of the store."""
    _now, rows = yield False
    shown = _Parts()
    looked_at = 0
    for worker in words.each_worker(desk):
        shown.add(words.pack({**worker, "processes": []} if shown.is_half_full else worker))
        looked_at += 1 + len(worker["modules"])
        if looked_at >= rows:
            looked_at = 0
            _now, rows = yield False
    return Described(shown.array())


def _backup(_: Desk, store: Store, message: Backup) -> Walk:
    """Answer with a part of a copy of the store."""
    yield False
    copyable = as_copyable(store)
    if copyable is None:
        raise Refusal(BadRequest(getattr(store, "way_to_back_up", "this store has its own way to be backed up")))
    try:
        part = copyable.copy_part(message.backup, message.part)
    except (BadRequest, NotFound, StoreCorrupt) as error:
        # Damage that a copy finds is no reason to stop: the next reader that needs the page finds it.
        raise Refusal(error) from error
    return BackupPart(*part[1:], payload=part.payload)


_WALKS: Final[dict[Kind, Callable[[Desk, Store, Any], Walk]]] = {
    Kind.LIST: _list,
    Kind.ACT: _act,
    Kind.INFO: _info,
    Kind.MODULES: _modules,
    Kind.WORKERS: _workers,
    Kind.BACKUP: _backup,
}
KINDS: Final = frozenset(_WALKS)


def refused(asked: Asked) -> Reply | None:
    """Return the answer to a question that cannot be read; None if it can be."""
    (message,) = asked.messages
    return Reply(asked.conn, asked.request, [message]) if isinstance(message, GivaliaError) else None


class _Parts:
    """The parts of one answer, which together fit into a frame."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def is_half_full(self) -> bool:
        """Return whether the parts that follow must be brief."""
        return self._bytes > PARTS_BYTES_MAX // 2

    @property
    def has_room(self) -> bool:
        """Return whether a page of a listing takes another job, however large."""
        return self._bytes < PAGE_BYTES

    def add(self, *packed: bytes) -> None:
        """Add a part."""
        part = b"".join(packed)
        self._bytes += len(part)
        if self._bytes > PARTS_BYTES_MAX:
            raise Refusal(TooLarge(f"the answer is larger than a frame of {ANSWER_BYTES_MAX >> 20} MiB"))
        self._parts.append(part)

    def array(self) -> bytes:
        """Return the packed array of these parts."""
        return b"".join((words.array_head(len(self._parts)), *self._parts))

    def map(self) -> bytes:
        """Return the packed map of these pairs."""
        return b"".join((words.map_head(len(self._parts)), *self._parts))
