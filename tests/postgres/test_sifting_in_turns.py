"""Sifting has a time limit per commit: later turns store the changes that it does not reach, and each turn stores something."""

from __future__ import annotations

import givalia_postgres
import psycopg
import pytest
from engine_rig import uid
from givalia_postgres import sifting
from shared_rig import Make, said, url_of

from givalia_core.clock import SECOND_US
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind

HELD = (0, 7, 19)


def test_commands_that_a_commit_has_no_time_to_try_apart_are_decided_in_later_turns(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that cannot tell which keys are held, and no time to find out more than one thing in a turn
    here = make()
    monkeypatch.setattr(sifting, "SIFT_S", 0.0)
    monkeypatch.setattr(sifting, "SHORT_MS", 60_000)
    with psycopg.connect(url_of(here)) as connection:
        connection.execute("DROP EXTENSION plpgsql")
    with psycopg.connect(url_of(here)) as connection:
        for number in HELD:
            givalia_postgres.enq(connection, "Mail", time=60, key=f"k{number}")

        # when
        frames = [here.frame(Kind.ENQ, m.Enq(uid(n), "Mail", 3_600 * SECOND_US, f"k{n}"), conn=n + 1) for n in range(20)]
        here._turn_once(*frames)
        decided = [sum(said(here, frame) is not None for frame in frames)]
        while decided[-1] < len(frames) - len(HELD) and len(decided) < len(frames):
            here.clock.advance(us=here.engine.wake_in_us(here.now))
            here._turn_once()
            decided.append(sum(said(here, frame) is not None for frame in frames))

        # then
        assert [n for n, frame in enumerate(frames) if said(here, frame) is None] == list(HELD), decided
        assert decided[0] < len(frames) - len(HELD), "all of it was tried in one turn"
