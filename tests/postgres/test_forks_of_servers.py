"""A fork of a process with a store on PostgreSQL leaves the sessions to its parent: it sends nothing, not even a farewell."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import psycopg
import pytest
from givalia_postgres import Postgres
from waits import yield_until

from givalia_core.errors import StoreFailed
from givalia_core.store.suite import MARK, inserts, waiting


def _use(store: Postgres) -> None:
    try:
        store.commit(inserts([waiting(2)]), MARK)
    except StoreFailed:
        return
    raise AssertionError("a fork has committed")


def _finish(store: Postgres) -> None:
    """Do what psycopg does when a greenlet is killed while it waits for an answer."""
    assert store._connection._made is not None
    assert store._listener is not None
    for connection in (store._connection, store._listener._connection):
        assert connection._made is not None
        connection._made.pgconn.finish()


def _drop(store: Postgres) -> None:
    store.__dict__.clear()
    gc.collect()


@pytest.mark.parametrize("leave", [_use, Postgres.close, _finish, _drop], ids=["uses", "closes", "finishes", "drops"])
def test_a_fork_leaves_the_sessions_to_its_parent(database_url: str, leave: Callable[[Postgres], None]) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    store.commit(inserts([waiting(1)]), MARK)
    yield_until(lambda: not store.news().is_deaf, "it listens", 20)
    before = _sessions(database_url)

    # when
    child = os.fork()
    if not child:
        code = 1
        try:
            leave(store)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    # then
    assert status == 0
    assert _sessions(database_url) == before
    store.commit(inserts([waiting(2)]), MARK)
    store.close()


def _sessions(url: str) -> set[int]:
    words = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'givalia%' AND datname = current_database()"
    with psycopg.connect(url) as connection:
        return {pid for (pid,) in connection.execute(words).fetchall()}
