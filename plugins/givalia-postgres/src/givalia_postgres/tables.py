"""The store as a whole: its tables, its facts, its servers."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Final

from givalia_core.clock import SECOND_US, Mark
from givalia_core.errors import StoreUnfit
from givalia_core.store.base import Opened
from givalia_core.store.shared import ALIVE_US

from givalia_postgres import schema
from givalia_postgres.clock import DatabaseClock
from givalia_postgres.connection import Connection, Statement
from givalia_postgres.promise import read_format
from givalia_postgres.statements import IS_ALIVE, NOW_US, TICK_BITS

BURIED_US: Final = 3_600 * SECOND_US
_BIGINT: Final = 2**63 - 1


def find_format(connection: Connection) -> int | None:
    """Return the format of the tables; None if there are none.

    Raises:
        StoreTooNew, StoreUnfit: The format is later than this version knows, or no fact names it.
    """
    ((exists,),) = connection.ask(("SELECT to_regclass('givalia.facts') IS NOT NULL", ()))[0]
    if not exists:
        return None
    rows = connection.ask(("SELECT value::text FROM givalia.facts WHERE name = 'format'", ()))[0]
    return read_format(rows[0][0] if rows else None)


KEEP: Final = "INSERT INTO givalia.facts VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_SERVER: Final = f"""
INSERT INTO givalia.servers SELECT nextval('givalia.tick'), {NOW_US} + {ALIVE_US}, 0, '', '' RETURNING epoch, {NOW_US}"""
_BURY: Final = f"DELETE FROM givalia.servers WHERE alive_until_us + 2 * lease_us + {BURIED_US} < {NOW_US}"
_UNHEARD: Final = "DELETE FROM givalia.events WHERE at < now() - interval '1 day'"  # For hooks that no server has.
_BORN: Final = "INSERT INTO givalia.facts VALUES ('store', gen_random_uuid()::text) ON CONFLICT (name) DO NOTHING"
_MAY_SET_ASIDE: Final = """
SELECT has_table_privilege('givalia.quarantine', 'SELECT') AND has_table_privilege('givalia.quarantine', 'INSERT')"""
_FACTS: Final = "SELECT name, value FROM givalia.facts"
_LAST: Final = "SELECT max(seq) FROM givalia.jobs"


def enter(connection: Connection, clock: DatabaseClock) -> tuple[Opened, str]:
    """Add this server to those that share the queue; return what it must know, and the identity of the store.

    Raises:
        StoreUnfit: A fact is missing, or is not as Givalia wrote it.
    """
    sent_us = time.monotonic_ns() // 1000
    look: list[Statement] = [(_FACTS, ()), (_LAST, ()), (_MAY_SET_ASIDE, ())]
    answers = connection.ask((_SERVER, ()), (_BORN, ()), *look, (_BURY, ()), (_UNHEARD, ()))
    ((epoch, now_us),), _, facts, ((last_seq,),), ((may_set_aside,),) = answers[:5]
    clock.sample(now_us, sent_us, time.monotonic_ns() // 1000)
    known: dict[str, str] = dict(facts)
    if not may_set_aside:
        raise StoreUnfit(
            "this user may not set damaged rows aside: as the owner, GRANT SELECT, INSERT ON givalia.quarantine TO that user"
        )
    return Opened(epoch, _mark(known), max(last_seq or 0, _last_seq(known))), known["store"]


def _mark(facts: dict[str, str]) -> Mark | None:
    if "mark" not in facts:
        return None
    try:
        mark = Mark(*json.loads(facts["mark"]))
    except (ValueError, TypeError, RecursionError):
        raise _rubbish(facts, "mark") from None
    boot_id, *numbers = mark
    if not isinstance(boot_id, str) or not all(type(number) is int and abs(number) <= _BIGINT for number in numbers):
        raise _rubbish(facts, "mark")
    return mark


def _last_seq(facts: dict[str, str]) -> int:
    value = facts.get("last_seq", "0")
    if re.fullmatch("[0-9]{1,19}", value) is None or int(value) > _BIGINT:
        raise _rubbish(facts, "last_seq")
    return int(value)


def _rubbish(facts: dict[str, str], name: str) -> StoreUnfit:
    return StoreUnfit(f"the fact {name!r} of the store is {facts[name][:80]!r}: givalia.facts is not as Givalia wrote it")


def leave(connection: Connection, epoch: int, mark: Mark | None, last_seq: int) -> None:
    """Mark this server as gone: any other may take its jobs. Its row stays for a while, since it names the length of leases."""
    facts = {"last_seq": str(last_seq)}
    if mark is not None:
        facts["mark"] = json.dumps(mark)
    kept = [(KEEP, [name, value]) for name, value in facts.items()]
    connection.ask((f"UPDATE givalia.servers SET alive_until_us = {NOW_US} WHERE epoch = $1", [epoch]), *kept)


def raise_numbers(connection: Connection, seq: int, fence: int) -> None:
    """Raise the numbers: every later one is above these, and every later epoch above the one in the fence."""
    least = (max(seq, fence) >> TICK_BITS) + 1
    words = "SELECT setval('givalia.tick', $1::bigint) FROM givalia.tick WHERE last_value < $1::bigint"
    kept = f"{KEEP} WHERE facts.value::bigint < excluded.value::bigint"
    connection.ask(("BEGIN", ()), (words, [least]), (kept, ["last_seq", str(seq)]), ("COMMIT", ()))


def describe(connection: Connection) -> dict[str, Any]:
    """Return the database's version, the size of the tables, and the numbers of servers and of rows set aside."""
    size = (
        "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c"
        " WHERE c.relnamespace = 'givalia'::regnamespace AND c.relkind = 'r'"
    )
    servers = f"SELECT count(*) FROM givalia.servers WHERE {IS_ALIVE}"
    aside = "SELECT count(*) FROM givalia.quarantine"
    answers = connection.ask(("SELECT version()", ()), (size, ()), (servers, ()), (aside, ()))
    ((version,),), ((size_bytes,),), ((alive,),), ((quarantined,),) = answers
    return {
        "format": schema.FORMAT,
        "postgresql": version.split(" on ")[0],
        "bytes": size_bytes,
        "servers": alive,
        "quarantined": quarantined,
    }
