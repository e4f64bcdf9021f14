"""The only module that reads time.

Three clocks, each for one use, all in integer microseconds. The *timer clock* carries relative delays: it equals the
wall clock when a store is made and from then on advances with the machine's uptime (suspend included), so a step of the
wall clock moves no delay. The *wall clock* carries absolute times. The *monotonic clock* carries leases and timeouts.
Nothing here sleeps. Other modules only measure lengths of time, on the monotonic clock, at the edges where bytes move.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple, Protocol

SECOND_US = 1_000_000
STEP_US = 100_000  # A change of (timer - wall) by more than this between two readings is a step, less is drift.
TOLD_US = 10_000  # The clock may drift so far before users see other wall times for the same timer times.


class Reading(NamedTuple):
    """One reading of the machine's clocks."""

    wall_us: int
    uptime_us: int
    mono_us: int


class Now(NamedTuple):
    """One moment on the three clocks that decisions use."""

    timer_us: int
    wall_us: int
    mono_us: int
    steady_ahead_us: int | None = (
        None  # As `timer_ahead_us`, but the same until the clock has moved by `TOLD_US`; None: not kept.
    )

    @property
    def told_ahead_us(self) -> int:
        """The distance from timer times to the wall times that users see; unlike readings, the distance does not jitter."""
        return self.timer_ahead_us if self.steady_ahead_us is None else self.steady_ahead_us

    @property
    def told_us(self) -> int:
        """The moment on the wall clock as users see it; its distance to each due that they see is exact to the microsecond."""
        return self.timer_us - self.told_ahead_us

    @property
    def timer_ahead_us(self) -> int:
        """The distance of the timer clock from the wall clock: a wall time plus this distance is a timer time."""
        return self.timer_us - self.wall_us


class Mark(NamedTuple):
    """The record of the clocks in a store: every commit writes it, and a restart goes on from it."""

    boot_id: str
    timer_ahead_of_uptime_us: int
    timer_us: int
    wall_us: int
    lease_us: int = 0  # The length of the granted leases: after a restart the server waits as long for them.


class Clock(Protocol):
    """A source of readings; the real one is `SystemClock`, tests and the simulation use `ManualClock`."""

    @property
    def boot_id(self) -> str:
        """The id of this boot of the machine, within which uptime only grows."""

    def read(self) -> Reading:
        """Return the present reading."""


# Uptime counts suspended time where the system can say so (Linux); elsewhere the monotonic clock stands in.
_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def read_system() -> Reading:
    """Return the present reading of this machine's clocks."""
    return Reading(time.time_ns() // 1000, time.clock_gettime_ns(_UPTIME) // 1000, time.monotonic_ns() // 1000)


class SystemClock:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self.boot_id = boot_id()

    read = staticmethod(read_system)


# Randomness for future ids: a system call for each id would cost more than the rest of making it. A fork draws its own.
_drawn: list[bytes] = []
os.register_at_fork(after_in_child=_drawn.clear)


def new_id() -> bytes:
    """Return a version 7 UUID: it begins with the time, so ids made one after the other lie beside each other on disk."""
    try:
        rest = _drawn.pop()
    except IndexError:
        random = os.urandom(10 * 256)
        _drawn.extend([random[start : start + 10] for start in range(0, len(random), 10)])
        return new_id()
    millis = time.time_ns() // 1_000_000
    value = (millis & (1 << 48) - 1) << 80 | 0x7 << 76 | int.from_bytes(rest) & ~(0xF << 76) & ~(0x3 << 62)
    return (value | 0x2 << 62).to_bytes(16)


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Unknown boots count as new ones: the timer clock then continues from the wall clock and the stored distance.
        return str(uuid.uuid4())


class Timekeeper(Protocol):
    """The source of one store's moments, made from the machine's readings: `TimerClock`, or a shared store's own clock."""

    def now(self, reading: Reading) -> Now:
        """Return the moment of this reading."""

    def mark(self, now: Now, lease_us: int = 0) -> Mark:
        """Return the mark of this moment for the store."""


class ManualClock:
    """Clocks that stand still until told otherwise; `advance` lets time pass, `step_wall` sets the wall clock only."""

    def __init__(self, wall_us: int = 1_750_000_000 * SECOND_US, uptime_us: int = 1_000 * SECOND_US) -> None:
        self.boot_id = "manual"
        self._wall_us, self._uptime_us = wall_us, uptime_us

    def read(self) -> Reading:
        return Reading(self._wall_us, self._uptime_us, self._uptime_us)

    def advance(self, seconds: float = 0.0, *, us: int = 0) -> None:
        """Let `seconds` (and `us` microseconds) pass on every clock."""
        passed_us = round(seconds * SECOND_US) + us
        self._wall_us += passed_us
        self._uptime_us += passed_us

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward (or back, when negative), as an operator or NTP would."""
        self._wall_us += round(seconds * SECOND_US)


class TimerClock:
    """The timer clock of one store during one run of a server (K1 of docs/delivery.md)."""

    def __init__(self, boot_id: str, ahead_of_uptime_us: int, floor_us: int = 0, steady_ahead_us: int | None = None) -> None:
        self._boot_id = boot_id
        self._ahead_of_uptime_us = ahead_of_uptime_us
        self._floor_us = floor_us
        self._steady_ahead_us = steady_ahead_us

    @classmethod
    def start(cls, clock: Clock, mark: Mark | None) -> TimerClock:
        """Go on from the store's mark: by uptime within one boot, by wall clock and stored distance after a reboot.

        The clock is never behind the last stored instant, whatever the wall clock says now.
        """
        reading = clock.read()
        if mark is None:
            return cls(clock.boot_id, reading.wall_us - reading.uptime_us)
        if mark.boot_id == clock.boot_id:
            return cls(clock.boot_id, mark.timer_ahead_of_uptime_us, mark.timer_us, mark.timer_us - mark.wall_us)
        timer_us = max(reading.wall_us + mark.timer_us - mark.wall_us, mark.timer_us)
        return cls(clock.boot_id, timer_us - reading.uptime_us, mark.timer_us, mark.timer_us - mark.wall_us)

    def now(self, reading: Reading) -> Now:
        """Return the moment of this reading on the three clocks."""
        timer_us = max(reading.uptime_us + self._ahead_of_uptime_us, self._floor_us)
        ahead_us = timer_us - reading.wall_us
        if self._steady_ahead_us is None or abs(ahead_us - self._steady_ahead_us) > TOLD_US:
            self._steady_ahead_us = ahead_us
        return Now(timer_us, reading.wall_us, reading.mono_us, self._steady_ahead_us)

    def mark(self, now: Now, lease_us: int = 0) -> Mark:
        """Return the mark for the store, from which a later `start` goes on."""
        # The wall clock as users see it, so that they see the same dues after a restart.
        told_us = now.wall_us if now.steady_ahead_us is None else now.timer_us - now.steady_ahead_us
        return Mark(self._boot_id, self._ahead_of_uptime_us, now.timer_us, told_us, lease_us)
