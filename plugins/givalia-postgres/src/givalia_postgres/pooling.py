"""Detection of a pooler in transaction mode between a server and its database.

Such a pooler gives each transaction any free session, and nothing in its protocol says so. So the server opens a second
connection: if its transaction gets the session of the first, or moves the first to another session, they share sessions. A
busy pooler may hide that; then a later batch shows it, since each batch names its session.
"""

from __future__ import annotations

from typing import Final

from givalia_core.errors import StoreAway, StoreUnfit

from givalia_postgres.connection import POOLED, SESSION, Again, Connection

LOOKS: Final = 5  # A pooler that gives sessions in turn may return to the same one by chance.


def refuse_pooler(url: str, connection: Connection) -> None:
    """Check that the session of this connection is its own; call this while nothing else runs on the connection.

    Raises:
        StoreUnfit: A pooler in transaction mode is in front of the database.
        StoreAway: The connection was lost.
    """
    other = Connection(url, "givalia probe")
    try:
        if _begin(other) == connection.make().session[0]:
            other.close()  # The pooler may have no other session for the next statement.
        for _ in range(LOOKS):
            (row,) = connection.ask_unprepared(f"SELECT {SESSION}")
            if not connection.is_session(*row):
                raise StoreUnfit(POOLED)
    finally:
        other.close()


def _begin(other: Connection) -> int | None:
    """Begin a transaction; return the process that serves it, or None if no connection is available."""
    try:
        other.ask_unprepared("BEGIN")
        ((pid,),) = other.ask_unprepared("SELECT pg_backend_pid()")
    except (StoreAway, Again):
        return None
    return int(pid)
