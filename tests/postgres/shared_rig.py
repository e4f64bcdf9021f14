"""Engines that share a database, on a clock that tests set and that also advances by the real time of each wait."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import psycopg
import pytest
from engine_rig import EngineRig
from givalia_postgres import Postgres, sifting
from givalia_postgres.hints import CHANNEL
from waits import yield_until

from givalia_core.clock import SECOND_US, ManualClock
from givalia_core.protocol.asked import Asked
from givalia_core.store.base import Store

Make = Callable[..., EngineRig]
ASKED: Final = (
    "find",
    "upcoming",
    "expired",
    "forgettable",
    "page",
    "counts",
    "ready",
    "commit",
    "keep",
    "watch",
    "freed",
    "tidy",
)
"""What an engine asks of a store while it runs."""


def let_waits_count(store: Store, clock: ManualClock) -> None:
    """Let the clock move by what each question to the store takes."""
    for name in ASKED:
        setattr(store, name, _counted(getattr(store, name), clock))


def _counted(ask: Callable[..., Any], clock: ManualClock) -> Callable[..., Any]:
    def asked(*values: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            return ask(*values, **named)
        finally:
            clock.advance(time.monotonic() - began)

    return asked


def sift_without_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one turn try apart whatever a commit could not store.

    How much of it fits into a turn depends on how busy the machine is, so a test that counts turns must not depend on it.
    """
    monkeypatch.setattr(sifting, "SIFT_S", 60.0)
    monkeypatch.setattr(sifting, "SHORT_MS", 60_000)


def rest(rig: EngineRig, seconds: float) -> None:
    """Let time pass here and for all others."""
    gevent.sleep(seconds)  # The database has a real clock.
    rig.clock.advance(seconds)


def await_news(*rigs: EngineRig) -> None:
    """Wait until these rigs have heard all that was notified so far: a database delivers notifications in their order."""
    listeners = [rig.store._listener for rig in rigs if isinstance(rig.store, Postgres) and rig.store._listener is not None]
    yield_until(lambda: not any(listener.is_deaf for listener in listeners), "they listen")
    marker = os.urandom(16)
    payload = json.dumps({"f": [base64.b64encode(marker).decode()]})  # "Follow this job", which nobody has.
    with psycopg.connect(url_of(rigs[0]), autocommit=True) as connection:
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
    yield_until(lambda: all(marker in listener.followed for listener in listeners), "the notification")


def url_of(rig: EngineRig) -> str:
    assert isinstance(rig.store, Postgres)
    return rig.store._url


def drive(rig: EngineRig, seconds: float) -> int:
    """Let a server's loop run for so long by its own clock; how many turns it took."""
    end_us = rig.now.mono_us + round(seconds * SECOND_US)
    turns = 0
    while rig.now.mono_us < end_us:
        rig._turn_once()
        rig.store.tidy()
        turns += 1
        rig.clock.advance(us=max(rig.engine.wake_in_us(rig.now), 100))
    return turns


def said(rig: EngineRig, frame: Asked) -> Any:
    """The answer to a frame, or None while there is none."""
    return rig.answers(frame)[0] if (frame.conn, frame.request) in rig.replies else None
