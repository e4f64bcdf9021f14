"""The server's own troubles: each keeps the server from working well, and is logged once when it begins and once when it ends.

The server checks for signs of trouble once a second. A trouble that comes and goes lasts until it shows no sign for ten
seconds, so that it does not fill the log. Any thread can read the troubles.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from givalia_core.clock import SECOND_US, Reading

QUIET_US: Final = 10 * SECOND_US
NEARLY_FULL: Final = 0.9  # Of the live jobs that the server takes.
FREE_PART: Final = 0.05  # A smaller free part of the disk is little,
FREE_BYTES_ENOUGH: Final = 10 << 30  # unless it has at least this size;
FREE_BYTES_LEAST: Final = 64 << 20  # a smaller size than this is always little.

ENDS: Final = {
    "store_full": "the store has room again",
    "store_nearly_full": "the store is no longer nearly full",
    "store_away": "the store answers again",
    "slow_syncs": "the store syncs in time again",
    "busy": "new jobs are taken again",
    "shedding": "no connection is refused or closed for lack of room any more",
    "hooks_dropped": "no call of a hook is dropped any more",
    "log_lines_lost": "the log can be written again",
}
"""Every trouble, and the log line at its end."""
SAID_ELSEWHERE: Final = frozenset({"store_away"})  # `Outage` logs it at once, with the reason.

log = logging.getLogger("givalia.server")


class Signs(NamedTuple):
    """The signs of trouble that a server shows; counts are since its start."""

    is_full: bool = False
    is_stuck: bool = False  # The reserve of a full disk is used up, too.
    is_away: bool = False
    busy: str = ""  # Why new jobs are refused for now; empty: they are not.
    live: int = 0
    live_max: int = 0
    free_bytes: int | None = None  # On the disk of the store; None: unknown.
    disk_bytes: int | None = None
    slow_turns: int = 0
    shed: int = 0  # Connections refused or closed for lack of room.
    hooks_dropped: int = 0
    lines_lost: int = 0


class Trouble(NamedTuple):
    """A trouble that lasts."""

    words: str
    since: Reading
    seen_us: int  # When its last sign was seen, on the monotonic clock.


class Troubles:
    """The troubles that last."""

    def __init__(self) -> None:
        self.present: dict[str, Trouble] = {}
        self.before = Signs()

    def look(self, signs: Signs, now: Reading) -> None:
        """Take the newest signs; log each trouble that begins or ends."""
        found = _found(signs, self.before)
        self.before = signs
        for name in ENDS:
            before = self.present.get(name)
            if name in found:
                since = now if before is None else before.since
                self.present = {**self.present, name: Trouble(found[name], since, now.mono_us)}
                if before is None and name not in SAID_ELSEWHERE:
                    log.warning("%s: %s", name, found[name])
            elif before is not None and now.mono_us - before.seen_us >= QUIET_US:
                self.present = {other: trouble for other, trouble in self.present.items() if other != name}
                seconds = (now.mono_us - before.since.mono_us) // SECOND_US
                if name not in SAID_ELSEWHERE:
                    log.warning("%s is over after %d s: %s", name, seconds, ENDS[name])

    def describe(self) -> dict[str, dict[str, Any] | None]:
        """Return a map of all troubles: the start of each and the words for it, or None."""
        present = self.present
        return {name: _shown(present.get(name)) for name in ENDS}


def _shown(trouble: Trouble | None) -> dict[str, Any] | None:
    return None if trouble is None else {"since_us": trouble.since.wall_us, "words": trouble.words}


def _found(signs: Signs, before: Signs) -> Mapping[str, str]:
    """Return the troubles that show signs, each with its words."""
    found: dict[str, str] = {}
    if signs.is_full:
        stuck = "; the reserve is used up, too, and nothing can be changed" if signs.is_stuck else ""
        found["store_full"] = f"the disk of the store is full: no new jobs are taken until there is room{stuck}"
    if words := _nearly_full(signs):
        found["store_nearly_full"] = words
    if signs.is_away:
        found["store_away"] = "the store does not answer; clients are told to come again"
    if signs.slow_turns > before.slow_turns:
        found["slow_syncs"] = "the store takes over a second to sync; producers are told to hold back"
    if signs.busy:
        found["busy"] = f"new jobs are refused: {signs.busy}"
    if (shed := signs.shed - before.shed) > 0:
        found["shedding"] = f"there is no room for all connections: {shed} were refused or closed within a second"
    if (dropped := signs.hooks_dropped - before.hooks_dropped) > 0:
        found["hooks_dropped"] = f"plugins are too slow: {dropped} calls of hooks were dropped within a second"
    if (lost := signs.lines_lost - before.lines_lost) > 0:
        found["log_lines_lost"] = f"{lost} lines of the log could not be written"
    return found


def _nearly_full(signs: Signs) -> str:
    """Return words for how little room is left; empty if there is enough."""
    free, disk = signs.free_bytes, signs.disk_bytes
    if free is not None and disk is not None:
        little = max(min(round(disk * FREE_PART), FREE_BYTES_ENOUGH), FREE_BYTES_LEAST)
        if free < little:
            return f"the disk of the store has {free >> 20} MiB left of {disk >> 20} MiB"
    if signs.live_max and signs.live >= NEARLY_FULL * signs.live_max:
        return f"{signs.live} jobs are live, and the server takes no more than {signs.live_max}"
    return ""
