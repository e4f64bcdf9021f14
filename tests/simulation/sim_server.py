"""The server as shipped, in a machine that can stop at any moment: engine, turn, near window and timer clock are the real ones.

Only their surroundings are simulated: sockets are the simulated network, and the store is the reference store behind a wrapper
that can stop the machine before a commit (nothing is stored) or after it (all is stored, no answer was sent).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sim_history import Said, Written
from sim_world import MS_US, Connection, World, answer_over_the_wire

from givalia_core.clock import SECOND_US, STEP_US, Mark, Now, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.records import Close, Effect, Gone, Input, Reply, Tell
from givalia_core.engine.turn import Engine
from givalia_core.errors import StoreFull
from givalia_core.policy import Policy
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import answer_item
from givalia_core.protocol.messages import CLIENT_KINDS, Kind
from givalia_core.specifiers import satisfies
from givalia_core.store.base import Change, Commit, Retention, Route
from givalia_core.store.memory import Memory
from givalia_core.takers import WorkerSession

SPINS_MAX = 300  # Turns in a row with nothing to take in: more is an engine that goes round in circles.


class PowerCut(Exception):
    """The machine stopped; `effects` are what a wrong order would have let out already."""

    effects: Sequence[Effect] = ()


class Stuck(Exception):
    """The run cannot come to an end."""


class SimStore:
    """The reference store, with power cuts round its commits, a disk that can be full, and a record of all it was given."""

    durability = Memory.durability

    def __init__(self, world: World) -> None:
        self.memory = Memory()
        self.next_cut: str | None = None
        self.cut_chance = 0.0
        self.is_full = False
        self.steps_marked = 0
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        """Commit, unless the power goes first; remember what was written."""
        if self.is_full and any(change.was is None for change in changes):
            raise StoreFull("the simulated disk is full")
        cut = self._take_cut() if changes else None
        if cut == "before":
            raise PowerCut
        commit = self.memory.commit(changes, mark, retention)
        self._record(changes, mark, commit)
        if cut == "after":
            raise PowerCut
        return commit

    def _take_cut(self) -> str | None:
        cut, self.next_cut = self.next_cut, None
        if cut is None and self._world.chance(self.cut_chance):
            cut = self._world.rng.choice(("before", "after"))
        return cut

    def _record(self, changes: Sequence[Change], mark: Mark, commit: Commit) -> None:
        history, mono_us = self._world.history, self._world.now_us
        now = Now(mark.timer_us, mark.wall_us, mono_us)
        self.steps_marked = history.wall_steps
        for place, (was, job) in enumerate(changes):
            if place not in commit.refused:
                history.written.append(Written(history.turns, mono_us, now, was, job))
                history.note("store", "ok", str(job.state), job.id, None, job.fence, job.attempt, job.version)

    def has_room(self) -> bool:
        """Return whether the disk has room for new jobs again."""
        return not self.is_full


class SimServer:
    """One server process after another on one store."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.store = SimStore(world)
        self.is_up = False
        self.engine: Engine | None = None
        self._world = world
        self._policy = policy
        self._timer: TimerClock | None = None
        self._conns: dict[int, Connection] = {}
        self._inbox: list[Input] = []
        self._asked: dict[tuple[int, int], Asked] = {}
        self._life = 0
        self._turn_at_us: int | None = None
        self._paused_until_us = 0
        self._boots = 0
        self._spins = 0
        self.cut_midway = False
        self.can_reboot = False

    # Its life.

    def start(self) -> None:
        """Open the store and go on from it."""
        world = self._world
        for wrong in self.store.memory.check():
            world.history.blame("I16", f"after a restart the store says: {wrong}")
        self._maybe_reboot()
        opened = self.store.open()
        self._timer = TimerClock.start(world.clock, opened.mark)
        rng = random.Random(world.rng.getrandbits(32))
        self.engine = turn.start(self.store, opened, self._timer, world.clock, self._policy, rng)
        self.is_up = True
        self._life += 1
        world.history.lives.append(world.history.turns + 1)
        self._turn_at_us, self._paused_until_us = None, 0
        world.history.note("server", "fault", "start", value=opened.epoch)
        self._plan_turn(0)

    def crash(self, down_us: int) -> None:
        """The process (now and then the machine) dies and is started again later."""
        if not self.is_up:
            return
        world = self._world
        self.is_up, self.engine = False, None
        self._life += 1
        for conn in self._conns.values():
            conn.server_died()
        self._conns.clear()
        self._inbox.clear()
        self._asked.clear()
        world.history.note("server", "fault", "crash", value=down_us)
        world.after(down_us, self.start)

    def _maybe_reboot(self) -> None:
        # A step of the wall clock that no commit has marked is lost in a reboot: known (K6 of docs/delivery.md), no bug.
        if self.can_reboot and self.store.steps_marked == self._world.history.wall_steps and self._world.chance(0.3):
            self._boots += 1
            self._world.clock.boot_id = f"boot-{self._boots}"

    def pause(self, length_us: int) -> None:
        """The process stands still (SIGSTOP, a snapshot of its machine); what arrives waits."""
        self._paused_until_us = self._world.now_us + length_us
        self._world.history.note("server", "fault", "pause", value=length_us)

    # Its connections.

    def accept(self, conn: Connection) -> None:
        """A connection was made."""
        self._conns[conn.number] = conn

    def submit(self, conn: Connection, kind: Kind, request: int, messages: list[Any], until_us: int | None = None) -> None:
        """A frame has arrived."""
        if conn.number in self._conns:
            asked = Asked(conn.number, request, kind, messages, until_us)
            self._asked[conn.number, request] = asked
            self._take_in(asked)

    def gone(self, conn: Connection) -> None:
        """A connection has ended."""
        if self._conns.pop(conn.number, None) is not None:
            self._take_in(Gone(conn.number))

    def _take_in(self, given: Input) -> None:
        self._inbox.append(given)
        self._plan_turn(self._world.rng.randint(0, 2 * MS_US))

    # Its turns.

    def _plan_turn(self, delay_us: int) -> None:
        at_us = self._world.now_us + delay_us
        if self._turn_at_us is None or at_us < self._turn_at_us:
            self._turn_at_us = at_us
            self._world.after(delay_us, self._turn, self._life)

    def _turn(self, life: int) -> None:
        now_us = self._world.now_us
        if life != self._life or self._turn_at_us is None or now_us < self._turn_at_us:
            return
        self._turn_at_us = None
        if now_us < self._paused_until_us:
            self._plan_turn(self._paused_until_us - now_us)
            return
        inputs, self._inbox = self._inbox, []
        try:
            self._turn_once(inputs)
        except PowerCut as cut:
            self._deliver(cut.effects)
            self.crash(self._down_us())

    def _down_us(self) -> int:
        lease_s = self._policy.lease_us / SECOND_US
        return self._world.between_us(*((0.8 * lease_s, 1.3 * lease_s) if self._world.chance(0.15) else (0.001, 2.0)))

    def _turn_once(self, inputs: list[Input]) -> None:
        world, engine, timer = self._world, self.engine, self._timer
        assert engine is not None
        assert timer is not None
        world.history.turns += 1
        now = timer.now(world.clock.read())
        self._deliver(turn.turn(engine, self.store, timer, inputs, world.clock))
        if not self.is_up:
            return
        self._count_credits(engine)
        wake_us = engine.wake_in_us(now)
        self._spins = 0 if inputs or wake_us else self._spins + 1
        if self._spins > SPINS_MAX:
            raise Stuck("the engine asks for turn after turn and nothing comes of it")
        if wake_us:
            self._look_for_sleep(engine, now, wake_us)
        self._plan_turn(max(wake_us, 100))

    def _count_credits(self, engine: Engine) -> None:
        """A credit that is lost is a worker that stands idle until it connects anew (I14); one too many overloads it."""
        held = Counter(id(lease.session) for lease in engine.desk.leases.values())
        for session in engine.desk.routing.sessions.values():
            thought = sum(room.held for room in session.rooms.values())
            if thought != held[id(session)]:
                self._world.history.blame(
                    "I14", f"{session.join.name} is thought to hold {thought} jobs and holds {held[id(session)]}"
                )

    def _look_for_sleep(self, engine: Engine, now: Now, wake_us: int) -> None:
        """The engine wants to sleep: nothing may be due before it wakes that a free worker could take (I14)."""
        for session in engine.desk.routing.sessions.values():
            if session.rooms["greenlet"].free <= 0:
                continue
            for route in self._routes_of(session):
                due_us = self._first_due_us(route, now)
                if due_us is not None and due_us < now.timer_us + wake_us:
                    late = "is ready" if due_us <= now.timer_us else "falls due meanwhile"
                    self._world.history.blame(
                        "I14", f"the engine sleeps {wake_us} us while a job of {route} {late} and {session.join.name} is free"
                    )

    def _routes_of(self, session: WorkerSession) -> Iterator[Route]:
        """Return the routes that it serves, and the variants of them that it satisfies."""
        served = set(session.routes())
        for route in dict.fromkeys(route for route, _ in self.store.memory._due):
            version = session.announced[route.module].version if route.module in session.announced else ""
            if route.plain in served and (route.specifier is None or satisfies(version, route.specifier)):
                yield route

    def _first_due_us(self, route: Any, now: Now) -> int | None:
        dues: list[int] = []
        # What the wall clock drifts by, until it is noticed as a step, a job with an absolute time may be late.
        for on_wall, shift_us in ((False, 0), (True, now.timer_ahead_us + STEP_US)):
            ranks = self.store.memory._due.get((route, on_wall))
            if ranks:
                dues.extend(rank[0][0] + shift_us for rank in ranks.values())
        return min(dues, default=None)

    def _deliver(self, effects: Sequence[Effect]) -> None:
        if self.cut_midway and effects:
            self.cut_midway = False
            effects = effects[: self._world.rng.randint(0, len(effects))]
            self._say(effects)
            self.crash(self._down_us())
        else:
            self._say(effects)

    def _say(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Reply):
                self._reply(effect)
            elif isinstance(effect, Tell) and effect.conn in self._conns:
                self._conns[effect.conn].tell(effect.kind, 0, effect.items)
        for effect in effects:
            if isinstance(effect, Close) and effect.conn in self._conns:
                self._conns[effect.conn].server_closed()

    def _reply(self, reply: Reply) -> None:
        asked = self._asked.pop((reply.conn, reply.request), None)
        if asked is None:
            self._world.history.blame("protocol", f"request {reply.request} of {reply.conn} was answered twice or never made")
            return
        items = [answer_item(answer) for answer in reply.answers]
        if asked.kind in CLIENT_KINDS:
            history = self._world.history
            for message, answer in zip(asked.messages, items, strict=True):
                history.said.append(Said(history.turns, self._world.now_us, asked.kind, message, answer))
        conn = self._conns.get(reply.conn)
        if conn is not None:
            conn.tell(Kind.ANSWER, reply.request, answer_over_the_wire(items) if self._world.rng.random() < 0.1 else items)
