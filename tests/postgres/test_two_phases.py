"""A transaction of two phases cannot have a job: it would hold the job while it is prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import givalia_postgres
import psycopg
import pytest
import sqlalchemy
from givalia_postgres import Postgres
from postgres_rig import Postgres as Rig
from sqlalchemy.orm import Session

from givalia_core.clock import Mark
from givalia_core.errors import BadRequest
from givalia_core.model import RUNNING, Job
from givalia_core.store.base import Change

RUNS = Job(2**40, b"r" * 16, "runs", RUNNING, "Note", "any", 0, False, 0, fence=7, keeper=0, attempt=1)
ACTS: dict[str, Callable[[Any], object]] = {
    "enq": lambda connection: givalia_postgres.enq(connection, "Note", time=60),
    "cancel": lambda connection: givalia_postgres.cancel(connection, "there"),
    "ext": lambda connection: givalia_postgres.ext(connection, "there", 5),
    "stop": lambda connection: givalia_postgres.cancel(connection, "runs", running=True),
    "complete": lambda connection: Postgres.complete_in(connection, RUNS.id, RUNS.fence),
}


@pytest.fixture(scope="module")
def own() -> Iterator[Rig]:
    """A database server that takes transactions of two phases."""
    with Rig.start({"max_prepared_transactions": "5"}) as rig:
        yield rig


@pytest.fixture
def url(own: Rig) -> str:
    """A database with a job that waits and one that runs."""
    url = own.create_database()
    store = Postgres(url)
    with closing(store):
        store.open()
        store.commit([Change(None, RUNS)], Mark("", 0, 0, 0))
    with psycopg.connect(url) as connection:
        givalia_postgres.enq(connection, "Note", time=60, key="there")
    return url


def rows(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT seq, state, version FROM givalia.jobs ORDER BY seq").fetchall()


@pytest.mark.parametrize("act", ACTS)
def test_each_verb_refuses_a_transaction_of_two_phases_of_psycopg(url: str, act: str) -> None:
    # given
    before = rows(url)
    with psycopg.connect(url) as connection:
        connection.tpc_begin(connection.xid(1, "g", "b"))
        connection.execute("CREATE TABLE public.mine ()")

        # when, then
        with pytest.raises(BadRequest, match="two phases"):
            ACTS[act](connection)

        # then the transaction can go on without it
        connection.tpc_prepare()
        connection.tpc_commit()
    assert rows(url) == before


@pytest.mark.parametrize("act", ACTS)
def test_each_verb_refuses_a_transaction_of_two_phases_of_sqlalchemy(url: str, act: str) -> None:
    # given
    before = rows(url)
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        # when, then
        with engine.connect() as connection, connection.begin_twophase(), pytest.raises(BadRequest, match="two phases"):
            ACTS[act](connection)
        with Session(engine, twophase=True) as session, session.begin(), pytest.raises(BadRequest, match="two phases"):
            ACTS[act](session)
    finally:
        engine.dispose()
    assert rows(url) == before


@pytest.mark.parametrize("act", ACTS)
def test_transaction_that_has_changed_a_job_cannot_be_prepared(url: str, act: str) -> None:
    # given
    before = rows(url)

    # when
    with psycopg.connect(url) as connection:
        ACTS[act](connection)

        # then
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            connection.execute("PREPARE TRANSACTION 'p'")
        connection.rollback()
        assert connection.execute("SELECT FROM pg_prepared_xacts").fetchall() == []
    assert rows(url) == before
