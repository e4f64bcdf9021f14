"""An engine, a store and clocks together, for tests of decisions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from givalia_core.clock import SECOND_US, ManualClock, Now, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.records import Close, Effect, Gone, Hook, Input, Reply, Tell
from givalia_core.engine.turn import Engine
from givalia_core.model import Job
from givalia_core.policy import Policy
from givalia_core.protocol import codec
from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import answer_item
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Store, Wanted
from givalia_core.store.memory import Memory

new_store: Callable[[], Store] = Memory
"""What a rig gets that brings no store; the same tests run on the other stores with another one here."""

CLIENT = 1  # The connection that asks, where no other is named.


def uid(number: int) -> bytes:
    """The id of this number."""
    return number.to_bytes(16, "big")


def items_of(reply: Reply) -> list[Item]:
    """The answers of a reply as they travel."""
    return [answer_item(answer) for answer in reply.answers]


class Dispatched(NamedTuple):
    """A lease as the worker got it."""

    heard: int
    lease_us: int
    job: m.Dispatch


class EngineRig:
    """Drives `turn` as the server does, one batch after the other, and keeps all that it says."""

    def __init__(self, store: Store | None = None, clock: ManualClock | None = None, **policy: Any) -> None:
        self.store = store or new_store()
        self.clock = clock or ManualClock()
        self.policy = Policy(**policy)
        self.replies: dict[tuple[int, int], list[Item]] = {}
        self.dispatched: dict[int, list[Dispatched]] = {}
        self.stops: list[tuple[int, m.Stop]] = []
        self.progressed: list[tuple[int, m.Progressed]] = []
        self.hooks: list[Hook] = []
        self.closed: list[Close] = []
        self._request = 0
        self._id = 1_000
        self.restart()

    def restart(self) -> None:
        """A new engine on what the store has; whoever was connected is not any more."""
        self.store.close()
        opened = self.store.open()
        self.timer = TimerClock.start(self.clock, opened.mark)
        self.engine: Engine = turn.start(self.store, opened, self.timer, self.clock, self.policy, random.Random(1))
        self.dispatched.clear()

    @property
    def now(self) -> Now:
        return self.timer.now(self.clock.read())

    # Driving.

    def turn(self, *inputs: Input) -> list[Effect]:
        """One batch, and those that the engine itself asks for after it."""
        effects = self._turn_once(*inputs)
        for _ in range(50):
            if self.engine.wake_in_us(self.now):
                return effects
            effects += self._turn_once()
        raise AssertionError("the engine never comes to rest")

    def _turn_once(self, *inputs: Input) -> list[Effect]:
        effects = turn.turn(self.engine, self.store, self.timer, inputs, self.clock)
        effects += turn.walk(self.engine, self.store, self.timer, self.clock)
        for effect in effects:
            if isinstance(effect, Reply):
                assert (effect.conn, effect.request) not in self.replies, "answered twice"
                self.replies[effect.conn, effect.request] = items_of(effect)
            elif isinstance(effect, Tell):
                self._hear(effect)
            elif isinstance(effect, Hook):
                self.hooks.append(effect)
            else:
                self.closed.append(effect)
        return effects

    def _hear(self, tell: Tell) -> None:
        if tell.kind is Kind.STOP:
            self.stops += [(tell.conn, m.Stop(*fields)) for fields, _ in tell.items]
            return
        if tell.kind is Kind.PROGRESSED:
            self.progressed += [(tell.conn, m.Progressed(*fields)) for fields, _ in tell.items]
            return
        (heard, _), *jobs = tell.items
        given = [Dispatched(*heard, m.Dispatch(*fields, payload=payload)) for fields, payload in jobs]
        self.dispatched.setdefault(tell.conn, []).extend(given)

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass as a server lives it: never more than a second without a turn."""
        left_us = round(seconds * 1_000_000)
        while left_us > 0:
            step_us = min(left_us, 1_000_000)
            self.clock.advance(us=step_us)
            left_us -= step_us
            self.turn()
        self.turn()

    # Asking.

    def frame(self, kind: Kind, *messages: Any, conn: int = CLIENT) -> Asked:
        """A frame of these messages under a request number of its own."""
        self._request += 1
        return Asked(conn, self._request, kind, list(messages))

    def batch(self, *frames: Asked) -> list[list[Any]]:
        """Ask all of this in one batch; for each frame its answers."""
        self.turn(*frames)
        return [self.answers(frame) for frame in frames]

    def ask(self, kind: Kind, *messages: Any, conn: int = CLIENT) -> list[Any]:
        """The answers to one frame: for each message the fields behind OK, or the error."""
        return self.batch(self.frame(kind, *messages, conn=conn))[0]

    def answers(self, frame: Asked) -> list[Any]:
        items = self.replies[frame.conn, frame.request]
        return [codec.answer_error(fields) or tuple(fields[1:]) for fields, _ in items]

    def fresh_id(self) -> bytes:
        self._id += 1
        return uid(self._id)

    def enq(self, module: str = "Mail", *, id: bytes | None = None, params: bytes = b"", **fields: Any) -> Any:
        """What `enq` answers: (id, due, durability), or the error."""
        message = m.Enq(id=id or self.fresh_id(), module=module, payload=params, **fields)
        return self.ask(Kind.ENQ, message)[0]

    def cancel(self, key: str | None = None, **fields: Any) -> Any:
        return self.ask(Kind.CANCEL, m.Cancel(fields.pop("request", None) or self.fresh_id(), key, **fields))[0]

    def ext(self, key: str | None = None, **fields: Any) -> Any:
        return self.ask(Kind.EXT, m.Ext(fields.pop("request", None) or self.fresh_id(), key, **fields))[0]

    def requeue(self, key: str | None = None, **fields: Any) -> Any:
        return self.ask(Kind.REQUEUE, m.Requeue(fields.pop("request", None) or self.fresh_id(), key, **fields))[0]

    def stat(self, key: str | None = None, id: bytes | None = None) -> Any:
        """The map that `stat` answers, or the error."""
        (answer,) = self.ask(Kind.STAT, m.Stat(key, id))
        return answer[0] if isinstance(answer, tuple) else answer

    def state(self, key: str | None = None, id: bytes | None = None) -> str:
        return str(self.stat(key, id)["state"])

    def listed(self, **filters: Any) -> list[Any]:
        frame = self.frame(Kind.LIST, m.List(**filters))
        self.turn(frame)
        return list(msgpack.unpackb(self.replies[frame.conn, frame.request][0][1]))

    def info(self, kind: Kind = Kind.INFO) -> Any:
        frame = self.frame(kind, {Kind.INFO: m.Info(), Kind.MODULES: m.Modules(), Kind.WORKERS: m.Workers()}[kind])
        self.turn(frame)
        return msgpack.unpackb(self.replies[frame.conn, frame.request][0][1])

    def stored(self, id: bytes) -> Job:
        """The row of this job."""
        return self.store.find(Wanted(ids=frozenset({id})), self.now).ids[id]

    def worker(self, conn: int = 10, name: str = "any", *modules: Any, capacity: int = 1, **join: Any) -> WorkerRig:
        """A worker that has joined, announced and given credit."""
        return WorkerRig(self, conn, name, modules or ("Mail",), capacity, join)


class WorkerRig:
    """One worker connection, as far as the engine can tell."""

    def __init__(
        self, rig: EngineRig, conn: int, name: str, modules: tuple[Any, ...], capacity: int, join: dict[str, Any]
    ) -> None:
        self.rig, self.conn = rig, conn
        instance = join.pop("instance", uid(conn))
        announced = [each if isinstance(each, m.Announce) else m.Announce(each, "dist", "1.0") for each in modules]
        rig.turn(
            rig.frame(Kind.JOIN, m.Join(name, instance, **join), conn=conn),
            rig.frame(Kind.ANNOUNCE, *announced, conn=conn),
            rig.frame(Kind.CREDIT, m.Credit(capacity), conn=conn),
        )

    @property
    def jobs(self) -> list[m.Dispatch]:
        """Every job that was dispatched to it, in order."""
        return [each.job for each in self.rig.dispatched.get(self.conn, [])]

    @property
    def last(self) -> m.Dispatch:
        return self.jobs[-1]

    @property
    def ids(self) -> list[bytes]:
        return [job.id for job in self.jobs]

    def ask(self, kind: Kind, *messages: Any) -> list[Any]:
        return self.rig.ask(kind, *messages, conn=self.conn)

    def credit(self, capacity: int) -> Any:
        return self.ask(Kind.CREDIT, m.Credit(capacity))[0]

    def beat(self, *jobs: m.Dispatch) -> list[Any]:
        return self.ask(Kind.BEAT, *(m.NamedLease(job.id, job.fence) for job in jobs))

    def resume(self, *jobs: m.Dispatch) -> list[Any]:
        return self.ask(Kind.RESUME, *(m.NamedLease(job.id, job.fence) for job in jobs))

    def succeed(self, job: m.Dispatch | None = None, result: bytes = b"", **fields: Any) -> Any:
        job = job or self.last
        return self.ask(Kind.SUCCEED, m.Succeed(job.id, job.fence, payload=result, **fields))[0]

    def fail(self, job: m.Dispatch | None = None, kind: str = "failed", error: str = "no", **fields: Any) -> Any:
        job = job or self.last
        return self.ask(Kind.FAIL, m.FailReport(job.id, job.fence, kind, error, **fields))[0]

    def release(self, job: m.Dispatch | None = None, *, replaced: bool = False) -> Any:
        job = job or self.last
        return self.ask(Kind.RELEASE, m.Release(job.id, job.fence, replaced))[0]

    def progress(self, fraction: float, text: str = "") -> Any:
        return self.ask(Kind.PROGRESS, m.Progress(self.last.id, self.last.fence, fraction, text))[0]

    def leave(self) -> None:
        self.rig.turn(Gone(self.conn))


def beating(rig: EngineRig, worker: WorkerRig, seconds: int) -> None:
    """Let time pass while the worker beats for all it ever got."""
    for _ in range(seconds):
        rig.tick(1)
        worker.beat(*worker.jobs)


def bring(rig: EngineRig, state: str, **fields: Any) -> WorkerRig:
    """Job 1 of key k in this state."""
    worker = rig.worker(capacity=0 if state in ("waiting", "ready", "cancelled") else 1)
    rig.enq(id=uid(1), key="k", delay_us=10 * SECOND_US if state in ("waiting", "cancelled") else 0, **fields)
    if state == "done":
        worker.succeed()
    elif state == "dead":
        worker.fail(permanent=True)
    elif state == "cancelled":
        rig.cancel("k")
    assert rig.state(id=uid(1)) == state
    return worker
