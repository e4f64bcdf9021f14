"""What a look found says where the next one begins, and no job that comes to wait below that is missed."""

from __future__ import annotations

import itertools

from givalia_core.clock import SECOND_US, Now
from givalia_core.model import WAITING, Job
from givalia_core.store.base import Route

from givalia_postgres.floors import CHEAP_S, NOTHING_KNOWN, PIECE_S, PLACES, RECENT_US, SHARE, Floors

ROUTE = Route("Mail", "any")
NOW = Now(1_000, 2_000, 0)
ON_TIMER, ON_WALL = range(PLACES // 2), range(PLACES // 2, PLACES)


def job(seq: int, due_at_us: int, *, priority: int = 0, on_wall: bool = False) -> Job:
    return Job(seq, bytes(16), None, WAITING, "Mail", "any", priority, on_wall, due_at_us)


def test_nothing_is_known_of_a_route_before_it_was_looked_at() -> None:
    floors = Floors()
    assert floors.of(ROUTE) == NOTHING_KNOWN
    assert not floors.knows(ROUTE)


def test_look_that_finds_all_says_that_nothing_is_due_before_what_it_found() -> None:
    # given
    floors = Floors()

    # when
    floors.found(ROUTE, [job(1, 700, priority=1), job(2, 500), job(3, 600), job(4, 900, on_wall=True)], 10, NOW)

    # then
    known = floors.of(ROUTE)
    assert (known[8], known[9], known[19 + 9]) == (700, 500, 900)
    assert {known[place] for place in ON_TIMER if place not in (8, 9)} == {1_000}
    assert {known[place] for place in ON_WALL if place != 19 + 9} == {2_000}


def test_look_that_reached_its_limit_says_nothing_of_what_lies_behind() -> None:
    # given
    floors = Floors()

    # when
    floors.found(ROUTE, [job(1, 700, priority=1), job(2, 500)], 2, NOW)

    # then
    known = floors.of(ROUTE)
    assert (known[7], known[8], known[9]) == (1_000, 700, 500)
    assert {known[place] for place in range(10, 19)} == {0}
    assert (known[19 + 8], known[19 + 9]) == (2_000, 0)


def test_job_that_comes_to_wait_below_a_floor_lowers_it_on_every_rank_and_clock() -> None:
    # given
    floors = Floors()
    floors.found(ROUTE, [job(1, 300)], 10, NOW)

    # when
    floors.lower(ROUTE, 400)
    floors.lower(Route("Fax", "any"), 1)

    # then
    assert sorted(set(floors.of(ROUTE))) == [300, 400]
    assert not floors.knows(Route("Fax", "any"))


def test_running_jobs_are_counted_seldom_if_that_takes_long() -> None:
    # given
    floors = Floors()

    # when, then
    floors.counted(CHEAP_S / 2, 10.0)
    assert floors.is_time(10.0)
    floors.counted(0.2, 10.0)
    assert not floors.is_time(10.0 + 0.2 * SHARE - 0.1)
    assert floors.is_time(10.0 + 0.2 * SHARE)


def test_floors_are_forgotten_at_each_poll_while_it_is_cheap_to_look_at_everything() -> None:
    # given
    floors = Floors()
    floors.found(ROUTE, [], 10, NOW)

    # when
    floors.looked(CHEAP_S / 2)
    floors.forget()

    # then
    assert not floors.knows(ROUTE)
    assert floors.pieces() == []


def test_pieces_cover_everything_below_the_floor_in_one_round() -> None:
    # given
    floors = Floors()
    top_us = 100_000 * SECOND_US
    floors.found(ROUTE, [], 10, Now(top_us, top_us, 0))
    floors.looked(2 * CHEAP_S)
    floors.forget()
    assert floors.knows(ROUTE)

    # when
    covered: list[tuple[int, int]] = []
    for _ in range(100):
        recent, piece = floors.pieces()
        assert (recent.low_us, recent.high_us) == (top_us - RECENT_US, top_us)
        covered.append((piece.low_us, piece.high_us))
        floors.looked_at_pieces(PIECE_S[0] / 2)
        if not piece.low_us:
            break

    # then
    assert covered[0][1] == top_us - RECENT_US
    assert all(later[1] == sooner[0] for sooner, later in itertools.pairwise(covered))
    assert covered[-1][0] == 0


def test_pieces_shrink_while_they_take_long_and_everything_is_looked_at_again_once_a_round_is_cheap() -> None:
    # given
    floors = Floors()
    top_us = 100 * SECOND_US
    floors.found(ROUTE, [], 10, Now(top_us, top_us, 0))
    floors.looked(2 * CHEAP_S)

    # when, then
    widths = []
    for _ in range(4):
        widths.append(floors.pieces()[1])
        floors.looked_at_pieces(2 * PIECE_S[1])
    lengths = [piece.high_us - piece.low_us for piece in widths]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0]

    # when
    for _ in range(200):
        if not floors.pieces():
            break
        floors.looked_at_pieces(0.0001)

    # then
    floors.forget()
    assert not floors.knows(ROUTE)
