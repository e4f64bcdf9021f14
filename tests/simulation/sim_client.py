"""A client as the library promises it: commands in flight together, resent with their ids for at most 60 s.

A frame whose answer was lost with its connection is sent again, unchanged, over the next connection; after 10 s of silence the
client changes to another connection. 60 virtual seconds after the call, its commands are unknown (`info`), as `ConnectionLost`
means. A client of an earlier version does not tell the server how long it waits.
"""

from __future__ import annotations

from typing import Any

from sim_history import Op
from sim_setup import PATIENCE_US, RESENDS_FOR_US
from sim_world import Connection, Network, World

from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import OK, Kind


class SimClient:
    """One client process."""

    def __init__(self, world: World, network: Network, name: str, *, is_old: bool = False) -> None:
        self.name = name
        self.is_old = is_old
        self._world = world
        self._network = network
        self._conn: Connection | None = None
        self._is_connecting = False
        self._open: dict[int, list[Op]] = {}  # By request number, on the present connection.
        self._last_request = 0

    @property
    def is_idle(self) -> bool:
        """Return whether every call has returned."""
        return not self._open

    def call(self, kind: Kind, messages: list[Any]) -> list[Op]:
        """Ask for all of these in one frame."""
        world = self._world
        wall_us = world.clock.read().wall_us
        ops = [Op(self.name, kind, each, world.now_us, wall_us, world.history.wall_steps) for each in messages]
        world.history.ops.extend(ops)
        for op in ops:
            self._note("invoke", op, op.message)
        self._last_request += 1
        self._open[self._last_request] = ops
        world.after(RESENDS_FOR_US, self._give_up, ops)
        if self._conn is not None:
            self._send(self._last_request, ops)
        else:
            self._connect_soon(0)
        return ops

    def _note(self, type: str, op: Op, value: Any) -> None:
        message = op.message
        job_id = message.id
        self._world.history.note(self.name, type, op.kind.name, job_id, op.request, value=value)

    def _send(self, request: int, ops: list[Op]) -> None:
        assert self._conn is not None
        world = self._world
        patience_us = min(PATIENCE_US << ops[0].lates, ops[0].invoked_us + RESENDS_FOR_US - world.now_us)
        self._conn.ask(ops[0].kind, request, [op.message for op in ops], None if self.is_old else world.now_us + patience_us)
        if ops[0].kind is not Kind.WAIT:
            world.after(PATIENCE_US, self._check_heard, self._conn, request)

    def _check_heard(self, conn: Connection, request: int) -> None:
        """A server that does not answer is left: what was sent to it may still arrive."""
        if conn is self._conn and request in self._open:
            conn.peer_closed()
            self._conn = None
            self._connect_soon(0)

    def _connect_soon(self, delay_us: int) -> None:
        if not self._is_connecting:
            self._is_connecting = True
            self._world.after(delay_us, self._connect)

    def _connect(self) -> None:
        self._is_connecting = False
        self._conn = self._network.connect(self)
        if self._conn is None:
            self._connect_soon(self._world.between_us(0.1, 1.0))
            return
        # The numbers of requests belong to a connection; the ids inside the messages are what stays.
        waiting = list(self._open.values())
        self._open = {}
        for ops in waiting:
            self._last_request += 1
            self._open[self._last_request] = ops
            self._send(self._last_request, ops)

    def lost(self, conn: Connection) -> None:
        """The connection is known to be broken."""
        if conn is self._conn:
            self._conn = None
            self._connect_soon(self._world.between_us(0.1, 1.0))

    def receive(self, conn: Connection, kind: Kind, request: int, items: list[Item]) -> None:
        """An answer has arrived."""
        if conn is not self._conn:
            return
        ops = self._open.pop(request, [])
        if any(_is_late(fields) for fields, _ in items if ops):
            self._last_request += 1
            self._open[self._last_request] = ops
            ops[0].lates += 1
            self._send(self._last_request, ops)
            return
        for op, (fields, payload) in zip(ops, items, strict=bool(ops)):
            self._answered(op, fields, payload)

    def _answered(self, op: Op, fields: Any, payload: bytes) -> None:
        op.status = "ok" if fields[0] == OK else "fail"
        op.answered_us = self._world.now_us
        op.answered_wall_us = self._world.clock.read().wall_us
        op.steps_after = self._world.history.wall_steps
        op.fields, op.payload = tuple(fields), payload
        self._note(op.status, op, op.fields)

    def _give_up(self, ops: list[Op]) -> None:
        for request, open_ops in list(self._open.items()):
            if open_ops is ops:
                del self._open[request]
                for op in ops:
                    op.status = "info"
                    self._note("info", op, None)


def _is_late(fields: Any) -> bool:
    return fields[0] == "BUSY" and len(fields) > 2 and bool(fields[2].get("late"))
