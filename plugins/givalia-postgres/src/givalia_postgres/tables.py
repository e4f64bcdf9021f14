"""The store as a whole: whether the database can keep the promise, its tables, its servers."""

from __future__ import annotations

import json
import time
from typing import Any, Final

import gevent
from givalia_core.clock import SECOND_US, Mark
from givalia_core.errors import StoreAway, StoreTooNew, StoreUnfit
from givalia_core.store.base import ALIVE_US, Opened

from givalia_postgres import schema
from givalia_postgres.clock import DatabaseClock
from givalia_postgres.connection import Connection
from givalia_postgres.statements import BEGIN, COMMIT, IS_ALIVE, NOW_US, PATIENT, TICK_BITS

OLDEST: Final = 140_000
BURIED_US: Final = 3_600 * SECOND_US
LOCK_S: Final = 30.0
LOCK_LOOK_S: Final = 0.02


def durability(connection: Connection, *, unsafe: bool) -> str:
    """What an answer means: `fsync`; or, if `unsafe` allows that, what the database's settings leave of it.

    Raises:
        StoreUnfit: The database is set to lose what it acknowledged, or is too old.
    """
    names = ("server_version_num", "server_encoding", "fsync", "full_page_writes", "synchronous_commit")
    asked = ", ".join(f"current_setting('{name}')" for name in names)
    ((version, encoding, fsync, full_page_writes, synchronous_commit),) = connection.ask((f"SELECT {asked}", ()))[0]
    if int(version) < OLDEST:
        raise StoreUnfit(f"PostgreSQL {int(version) // 10_000} is too old; 14 is the oldest that Givalia works with")
    if encoding != "UTF8":
        raise StoreUnfit(f"the database has the encoding {encoding}; keys can be any text, so it must be UTF8")
    weak = {"fsync": fsync, "full_page_writes": full_page_writes, "synchronous_commit": synchronous_commit}
    off = [name for name, value in weak.items() if value == "off"]
    if off and not unsafe:
        raise StoreUnfit(
            f"PostgreSQL has {' and '.join(off)} off, so it would lose jobs that it has acknowledged;"
            " switch it on, or say store_unsafe, and each answer will name the weaker class"
        )
    return "fsync" if not off else "flush" if off == ["synchronous_commit"] else "memory"


def create(connection: Connection) -> None:
    """Make the tables if there are none.

    Raises:
        StoreTooNew, StoreUnfit: They are of another format, or may not be made.
    """
    if (found := _format(connection)) is None:
        upgrade(connection)
    elif found < schema.FORMAT:
        raise StoreUnfit(f"the tables have format {found}, this Givalia needs {schema.FORMAT}: run givalia store upgrade")


def upgrade(connection: Connection) -> tuple[int, int]:
    """Bring the tables to this format, each step in a transaction; from which to which. Two servers may do it at once.

    Raises:
        StoreTooNew: They are of a later one. Nothing was changed.
        StoreUnfit: The user may not.
    """
    _lock(connection)
    try:
        before = found = _format(connection) or 0
        for step in schema.STEPS[found:]:
            found += 1
            words = [each for each in step.split(";") if each.strip()]
            begin = [(BEGIN, ()), (PATIENT, ())]  # An index over many jobs takes its time.
            connection.ask(*begin, *((each, ()) for each in words), (_KEEP, ["format", str(found)]), (COMMIT, ()))
    finally:
        connection.ask(("SELECT pg_advisory_unlock($1)", [schema.LOCK]))
    return before, found


def _lock(connection: Connection) -> None:
    """Wait for whoever makes the tables; not in the database, where nobody here waits for a lock for long."""
    for _ in range(round(LOCK_S / LOCK_LOOK_S)):
        ((is_ours,),) = connection.ask(("SELECT pg_try_advisory_lock($1)", [schema.LOCK]))[0]
        if is_ours:
            return
        gevent.sleep(LOCK_LOOK_S)
    raise StoreAway(f"somebody else has been making the tables for {LOCK_S:g} s")


def _format(connection: Connection) -> int | None:
    ((exists,),) = connection.ask(("SELECT to_regclass('givalia.facts') IS NOT NULL", ()))[0]
    if not exists:
        return None
    ((found,),) = connection.ask(("SELECT value FROM givalia.facts WHERE name = 'format'", ()))[0]
    if int(found) > schema.FORMAT:
        raise StoreTooNew(f"the tables have format {found}; this Givalia knows {schema.FORMAT} at most")
    return int(found)


_KEEP: Final = "INSERT INTO givalia.facts VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_SERVER: Final = f"""
INSERT INTO givalia.servers SELECT nextval('givalia.tick'), {NOW_US} + {ALIVE_US}, 0, '', '' RETURNING epoch, {NOW_US}"""
_BURY: Final = f"DELETE FROM givalia.servers WHERE alive_until_us + 2 * lease_us + {BURIED_US} < {NOW_US}"
_UNHEARD: Final = "DELETE FROM givalia.events WHERE at < now() - interval '1 day'"  # For hooks that no server has.
_FACTS: Final = "SELECT name, value FROM givalia.facts"
_LAST: Final = "SELECT max(seq) FROM givalia.jobs"


def enter(connection: Connection, clock: DatabaseClock) -> Opened:
    """Add this server to those that share the queue."""
    sent_us = time.monotonic_ns() // 1000
    answers = connection.ask((_SERVER, ()), (_FACTS, ()), (_LAST, ()), (_BURY, ()), (_UNHEARD, ()))
    ((epoch, now_us),), facts, ((last_seq,),) = answers[:3]
    clock.sample(now_us, sent_us, time.monotonic_ns() // 1000)
    known: dict[str, str] = dict(facts)
    mark = Mark(*json.loads(known["mark"])) if "mark" in known else None
    return Opened(epoch, mark, max(last_seq or 0, int(known.get("last_seq", 0))))


def leave(connection: Connection, epoch: int, mark: Mark | None, last_seq: int) -> None:
    """This server is no more; its jobs are anybody's. Its row stays for a while: it says for how long it granted leases."""
    facts = {"last_seq": str(last_seq)}
    if mark is not None:
        facts["mark"] = json.dumps(mark)
    kept = [(_KEEP, [name, value]) for name, value in facts.items()]
    connection.ask((f"UPDATE givalia.servers SET alive_until_us = {NOW_US} WHERE epoch = $1", [epoch]), *kept)


def raise_numbers(connection: Connection, seq: int, fence: int) -> None:
    """Let every number from here on be above these, and every epoch above the one in the fence."""
    least = (max(seq, fence) >> TICK_BITS) + 1
    words = "SELECT setval('givalia.tick', $1::bigint) FROM givalia.tick WHERE last_value < $1::bigint"
    kept = f"{_KEEP} WHERE facts.value::bigint < excluded.value::bigint"
    connection.ask((BEGIN, ()), (words, [least]), (kept, ["last_seq", str(seq)]), (COMMIT, ()))


def describe(connection: Connection) -> dict[str, Any]:
    """The database's version, the size of the tables, how many servers share them."""
    size = (
        "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c"
        " WHERE c.relnamespace = 'givalia'::regnamespace AND c.relkind = 'r'"
    )
    servers = f"SELECT count(*) FROM givalia.servers WHERE {IS_ALIVE}"
    ((version,),), ((size_bytes,),), ((alive,),) = connection.ask(("SELECT version()", ()), (size, ()), (servers, ()))
    return {"format": schema.FORMAT, "postgresql": version.split(" on ")[0], "bytes": size_bytes, "servers": alive}
