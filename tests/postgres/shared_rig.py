"""Engines that share a database, on a clock that is set by hand and besides moves by what each wait really costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import pytest
from engine_rig import EngineRig
from givalia_postgres import Postgres, sifting

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
    """Let time pass here and for everybody else."""
    gevent.sleep(seconds)
    rig.clock.advance(seconds)


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
