"""Calls of the blocking client that are cut short, or come in the middle of another: exceptions, signal handlers, forks.

An exception may be thrown into a call at any step. A connection that carries a part of a frame is then of no use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Any, Protocol

from givalia_core.client.blocking_socket import BlockingSocket
from givalia_core.client.delivery import RequestDelivery
from givalia_core.client.pending import OnProgress, Pending


class Interruptible(Protocol):
    """The parts of the blocking transport that a call may leave half done when it is cut short."""

    servers: Any
    delivery: RequestDelivery
    socket: BlockingSocket | None
    lock: Any
    changed: threading.Condition
    sending: Any
    reader: int | None
    is_receiving: bool
    sender: int | None

    def carry(self, requests: Iterable[Pending[Any]], on_progress: OnProgress | None = None) -> list[list[Any]]:
        """As `BlockingTransport.carry`."""

    def drop(self, sock: BlockingSocket, why: str) -> None:
        """As `BlockingTransport.drop`."""

    def close(self) -> None:
        """As `BlockingTransport.close`."""


def clean_up(transport: Interruptible, requests: Iterable[Pending[Any]]) -> None:
    """Release the locks and the reading that this thread holds, and forget its requests: its call was cut short."""
    me = threading.get_ident()
    with transport.lock:
        if transport.sender == me:
            drop_half_sent(transport)
        for request in requests:
            transport.delivery.forget(request)
        if transport.reader == me:
            transport.reader = None
            drop_half_received(transport)
        transport.changed.notify_all()
    for lock in (transport.sending, transport.lock):
        while lock._is_owned():  # noqa: SLF001 - Python says it in no other way.
            lock.release()


def drop_half_received(transport: Interruptible) -> None:
    """Drop the connection if its reader was cut short with answers in its hands: their requests are sent again on the next."""
    if transport.is_receiving:
        transport.is_receiving = False
        if transport.socket is not None:
            transport.drop(transport.socket, "a call was cut short while it received")


def drop_half_sent(transport: Interruptible) -> None:
    """Drop the connection: its sender was cut short. Call this with the lock held."""
    transport.sender = None
    if transport.socket is not None:
        transport.drop(transport.socket, "a call was cut short while it was sent")


def carry_apart(transport: Interruptible, requests: Iterable[Pending[Any]], on_progress: OnProgress | None) -> list[list[Any]]:
    """Carry requests over a connection of their own: a signal handler or a `__del__` interrupted a call of this thread.

    The interrupted call continues when the handler returns, and holds the connection until then.
    """
    with closing(type(transport)(*transport.servers)) as apart:
        apart.delivery.is_closed = transport.delivery.is_closed
        return apart.carry(requests, on_progress)


def by_fork(transport: Interruptible) -> None:
    """Leave the connection and all calls under way to the parent, in a fork; replace locks that another thread may have held.

    A lock that this thread holds is kept: a signal handler forked in the middle of a call, which continues here.
    """
    changed, delivery = transport.changed, transport.delivery
    if not transport.lock._is_owned():  # noqa: SLF001 - Python says it in no other way.
        transport.lock = threading.RLock()
        transport.changed = threading.Condition(transport.lock)
    if not transport.sending._is_owned():  # noqa: SLF001 - Python says it in no other way.
        transport.sending = threading.RLock()
    transport.reader = transport.sender = None
    transport.is_receiving = False
    transport.delivery, transport.socket = RequestDelivery(*transport.servers), None
    transport.delivery.is_closed = delivery.is_closed
    delivery.abandon()
    if changed.acquire(blocking=False):  # Greenlets that waited exist in the child, too.
        changed.notify_all()
        changed.release()
