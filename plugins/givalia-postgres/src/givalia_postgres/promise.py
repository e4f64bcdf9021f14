"""The promise of the database: it keeps what it acknowledges, it holds the same store as before, and the session is ours alone.

Each of these can change while a server runs: by ALTER SYSTEM and a reload, by a restart, by a restore behind the same URL. A
server checks them when it opens the store, at each new connection, and every few seconds. It stops instead of naming a class
of durability that no longer holds. `synchronous_commit` cannot change: each session sets it to its value at the start.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final, NamedTuple

from givalia_core.errors import StoreAway, StoreTooNew, StoreUnfit

from givalia_postgres import schema, shape
from givalia_postgres.connection import POOLED, Again, Connection
from givalia_postgres.statements import LOOK, TICK_BITS, UNLOGGED

OLDEST: Final = 140_000
CLASSES: Final = ("memory", "flush", "fsync")  # From the weakest.
TICKS_AT_ONCE: Final = 1_000_000
TICK_MAX: Final = 2 ** (63 - TICK_BITS) - 1

_SETTINGS: Final = f"""
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_commit'), {UNLOGGED}"""
_RAISE: Final = "SELECT max(nextval('givalia.tick')) FROM generate_series(1, $1::bigint)"

log = logging.getLogger("givalia.server")


class Seen(NamedTuple):
    """The settings that one query shows. The fields up to `token` come with each batch."""

    fsync: str
    full_page_writes: str
    pid: int
    token: str | None
    synchronous_commit: str
    unlogged: str | None  # Tables that are empty after a crash of the database.
    default_commit: str  # `synchronous_commit` in a session that does not set it.
    standby_names: str
    format: str | None
    identity: str | None
    tick: int


def weaknesses(fsync: str, full_page_writes: str, synchronous_commit: str, unlogged: str | None) -> tuple[str, str]:
    """Return the durability of an answer with these settings; and the reason, if it is less than `fsync`."""
    settings = {"fsync": fsync, "full_page_writes": full_page_writes, "synchronous_commit": synchronous_commit}
    off = [name for name, value in settings.items() if value == "off"]
    words = [f"has {' and '.join(off)} off"] if off else []
    if unlogged:
        words.append(f"has unlogged tables ({unlogged})")
    durability = "fsync" if not words else "flush" if off == ["synchronous_commit"] and not unlogged else "memory"
    return durability, " and ".join(words)


class Promise:
    """The durability that the database promised when the server opened the store, and the checks that it still holds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.durability = "fsync"
        self.tick = 0  # The highest known tick.
        self.identity: str | None = None
        self._expected: list[str] = []  # The settings that each batch brings along, as of the last check.
        self._warned: dict[str, str] = {}

    def begin(self, *, unsafe: bool) -> str:
        """Check the database before the store is opened; return the durability of its answers.

        With `unsafe`, the durability may be less than `fsync`.

        Raises:
            StoreUnfit: The database is set to lose what it acknowledged, or is too old.
        """
        self._connection.unpin()
        self.tick = 0
        version, encoding, *settings = self._connection.ask((_SETTINGS, ()))[0][0]
        if version < OLDEST:
            raise StoreUnfit(f"PostgreSQL {version // 10_000} is too old; 14 is the oldest that Givalia works with")
        if encoding != "UTF8":
            raise StoreUnfit(f"the database has the encoding {encoding}; keys can be any text, so it must be UTF8")
        self.durability, words = weaknesses(*settings)
        if words and not unsafe:
            raise StoreUnfit(
                f"PostgreSQL {words}, so it would lose jobs that it has acknowledged;"
                " change that, or say store_unsafe, and each answer will name the weaker class"
            )
        self._connection.pin(settings[2])
        return self.durability

    def hold(self, identity: str, tick: int) -> None:
        """Note the opened store: from now on the database must hold this one, and give out numbers above this tick."""
        self.identity, self.tick = identity, tick
        self.look()

    def note(self, floor: int, seen: tuple[Any, ...]) -> None:
        """Take in the settings that a batch brought along with its numbers; check everything if one has changed.

        Raises:
            StoreUnfit: As in `look`.
            StoreAway: The numbers went back, and are raised again.
        """
        *settings, pid, token = seen
        if not self._connection.is_session(pid, token):
            raise StoreUnfit(POOLED)
        tick = floor >> TICK_BITS
        if settings != self._expected or tick <= self.tick:
            self.look()
        if tick <= self.tick:
            self._connection.close()  # Releases its locks, too.
            raise StoreAway(f"the database gave out number {tick} after {self.tick}: it was set back")
        self.tick = tick

    def look(self) -> None:
        """Check that the database keeps the promise; call this only after `hold`.

        Raises:
            StoreUnfit, StoreTooNew: The database breaks the promise; the server may give no more answers.
            StoreAway: The database does not answer.
        """
        try:
            (row,), *found = self._connection.ask((f"SELECT {LOOK}", ()), *shape.LOOK)
        except Again as error:
            raise StoreAway(str(error)) from error
        shape.refuse_other(*found)
        self.judge(Seen(*row))

    def judge(self, seen: Seen) -> None:
        """Check that these settings keep the promise; raises as `look`."""
        if not self._connection.is_session(seen.pid, seen.token):
            raise StoreUnfit(POOLED)
        if seen.tick > TICK_MAX:
            raise StoreUnfit(f"the sequence givalia.tick is at {seen.tick}: Givalia cannot have used so many numbers")
        durability, words = weaknesses(seen.fsync, seen.full_page_writes, seen.synchronous_commit, seen.unlogged)
        if CLASSES.index(durability) < CLASSES.index(self.durability):
            raise StoreUnfit(f"PostgreSQL {words} since this server began to answer {self.durability}; it answers no more")
        self._refuse_other_store(seen)
        self._warn(seen)
        self._expected = [seen.fsync, seen.full_page_writes]
        if seen.tick < self.tick:
            self._go_forward(seen.tick)

    def _refuse_other_store(self, seen: Seen) -> None:
        found = read_format(seen.format)
        if found != schema.FORMAT:
            raise StoreUnfit(f"the tables have format {found} now, and this server has opened format {schema.FORMAT}")
        if seen.identity != self.identity:
            raise StoreUnfit(
                f"the database holds another store ({seen.identity}) than the one that this server has opened"
                f" ({self.identity}): its tables were made anew, or restored from elsewhere. Start the server again to use it"
            )

    def _warn(self, seen: Seen) -> None:
        """Log once each change that does not break the promise of this server."""
        off = seen.default_commit == "off" and seen.synchronous_commit != "off"
        self._say_once(
            "synchronous_commit",
            seen.default_commit if off else "",
            "the database has synchronous_commit off: this server keeps it on in its own sessions, and would not start again",
        )
        before = self._warned.setdefault("standbys", seen.standby_names)
        if before and not seen.standby_names:
            log.warning("the database waits for no standby any more (synchronous_standby_names was %s)", before)
        self._warned["standbys"] = seen.standby_names

    def _say_once(self, name: str, value: str, words: str) -> None:
        if value and self._warned.get(name) != value:
            log.warning("%s", words)
        self._warned[name] = value

    def _go_forward(self, tick: int) -> None:
        """Raise the numbers of a database that was set back, by a failover or a restore: none may be given out twice."""
        log.warning("the database was set back: it would give out number %d after %d; going on above that", tick, self.tick)
        (((reached,),),) = self._connection.ask((_RAISE, [min(self.tick - tick, TICKS_AT_ONCE)]))
        if reached < self.tick:
            raise StoreAway(f"the numbers of the database are at {reached}, and go on from {self.tick}")


def read_format(value: str | None) -> int:
    """Return the format that a fact names.

    Raises:
        StoreUnfit: The fact names no format.
        StoreTooNew: The format is later than this version knows.
    """
    if value is None or re.fullmatch("[1-9][0-9]{0,5}", value) is None:
        said = "is missing" if value is None else f"is {value[:40]!r}"
        raise StoreUnfit(f"the fact 'format' of the store {said}: givalia.facts is not as Givalia wrote it")
    if int(value) > schema.FORMAT:
        raise StoreTooNew(f"the tables have format {value}; this Givalia knows {schema.FORMAT} at most")
    return int(value)
