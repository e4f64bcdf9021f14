"""The shape that the tables must have: columns of the right types, and the unique indexes that statements here rely on.

Somebody may have changed a table, or restored it without its indexes. PostgreSQL then stores what it should refuse, or sends
values of unexpected types.
"""

from __future__ import annotations

from typing import Final

from givalia_core.errors import StoreUnfit

from givalia_postgres.connection import Rows, Statement
from givalia_postgres.rows import texts

_JOBS: Final = {
    "seq": "bigint",
    "id": "uuid",
    "key": "text",
    "state": "smallint",
    "module": "text",
    "target_worker": "text",
    "rank": "smallint",
    "on_wall": "boolean",
    "due_at_us": "bigint",
    "expires_at_us": "bigint",
    "ended_at_us": "bigint",
    "forget_at_us": "bigint",
    "version": "bigint",
    "record": "bytea",
    "params": "bytea",
    "result": "bytea",
    "keeper": "bigint",
    "stop_asked": "boolean",
}
COLUMNS: Final = {
    "facts": {"name": "text", "value": "text"},
    "jobs": _JOBS,
    "quarantine": {**_JOBS, "why": "text", "at": "timestamp with time zone"},
    "requests": {"request": "uuid", "seq": "bigint", "answer": "bytea", "until_us": "bigint"},
    "counts": {"module": "text", "state": "smallint", "jobs": "bigint"},
    "servers": {"epoch": "bigint", "alive_until_us": "bigint", "lease_us": "bigint", "about": "bytea", "terms": "bytea"},
    "events": {
        "number": "bigint",
        "hook": "text",
        "running": "boolean",
        "seq": "bigint",
        "at": "timestamp with time zone",
    },
}
UNIQUE: Final = {
    ("facts", "name", False),
    ("jobs", "seq", False),
    ("jobs", "id", False),
    ("jobs", "key", True),  # Live jobs only.
    ("requests", "request", False),
    ("servers", "epoch", False),
}

_COLUMNS: Final = """
SELECT t.name, a.attname::text, format_type(a.atttypid, a.atttypmod) FROM unnest($1::text[]) AS t(name)
JOIN pg_attribute a ON a.attrelid = to_regclass('givalia.' || t.name) AND a.attnum > 0 AND NOT a.attisdropped"""
_UNIQUE: Final = """
SELECT t.name, a.attname::text, i.indpred IS NOT NULL FROM unnest($1::text[]) AS t(name)
JOIN pg_index i ON i.indrelid = to_regclass('givalia.' || t.name) AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"""
LOOK: Final[tuple[Statement, Statement]] = ((_COLUMNS, [texts(list(COLUMNS))]), (_UNIQUE, [texts(list(COLUMNS))]))


def refuse_other(columns: Rows, unique: Rows) -> None:
    """Check that the tables which `LOOK` shows have this shape.

    Raises:
        StoreUnfit: A column is missing or of another type, or a unique index is missing.
    """
    found = {(table, column): kind for table, column, kind in columns}
    for table, wanted in COLUMNS.items():
        for column, kind in wanted.items():
            if (is_kind := found.get((table, column), "missing")) != kind:
                raise _unfit(f"column {column} of givalia.{table} is {is_kind}, not {kind}")
    for table, column, _ in sorted(UNIQUE - set(unique)):
        raise _unfit(f"givalia.{table} has no unique index on {column}")


def _unfit(words: str) -> StoreUnfit:
    return StoreUnfit(f"the tables are not as Givalia makes them: {words}")
