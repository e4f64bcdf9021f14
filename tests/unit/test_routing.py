"""Who may take what: names, modules, credits, and the words for why nobody has."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core.clock import Now
from givalia_core.model import WAITING, Job
from givalia_core.protocol.messages import Announce, Join
from givalia_core.routing import Routing, Session
from givalia_core.store.base import Near, Route, Span
from givalia_core.timers import PREFIX_TIMERS

NOW = Now(1_000, 5_000, 7)


def session(conn: int, name: str = "any", *modules: str, capacity: int = 1, **join: Any) -> Session:
    made = Session(conn, Join(name, bytes([conn]) * 16, **join), NOW)
    made.rooms["greenlet"].capacity = capacity
    made.announced = {module: Announce(module, "dist", "1") for module in modules}
    return made


def routing(*sessions: Session) -> Routing:
    made = Routing()
    for each in sessions:
        made.join(each)
        made.announce(each, list(each.announced.values()))
    for window in made.windows.values():
        window.fill(Near(False, [], more=False))
    return made


def job(seq: int = 1, **fields: Any) -> Job:
    values = {
        "id": b"i" * 16, "key": None, "state": WAITING, "module": "Mail", "target_worker": "any", "priority": 0,
        "on_wall": False, "due_at_us": 0,
    }  # fmt: skip
    return Job(seq, **{**values, **fields})


@pytest.mark.parametrize(
    ("name", "only_targeted", "expected"),
    [("any", False, {"any"}), ("any", True, {"any"}), ("w1", False, {"w1", "any"}), ("w1", True, {"w1"})],
)
def test_a_worker_serves_its_own_name_and_any_unless_only_targeted(name: str, only_targeted: bool, expected: set[str]) -> None:
    made = session(1, name, "Mail", only_targeted=only_targeted)

    assert list(made.routes()) == [Route("Mail", each) for each in ([name, "any"] if len(expected) == 2 else [name])]
    assert {route.target_worker for route in made.routes()} == expected


def test_a_broken_module_is_not_served() -> None:
    made = session(1, "any", "Mail")
    made.announced["Fax"] = Announce("Fax", "dist", "1", broken="ImportError: x")

    assert [route.module for route in made.routes()] == ["Mail"]
    assert not made.serves("Fax")
    assert not made.serves("Unknown")
    assert (made.describe()["modules"], made.describe()["broken"]) == (["Mail"], ["Fax"])


def test_there_is_a_window_for_each_served_route_and_for_no_other() -> None:
    made = routing(session(1, "w1", "Mail"), session(2, "any", "Fax"))

    assert set(made.windows) == {Route("Mail", "w1"), Route("Mail", "any"), Route("Fax", "any")}
    made.offer(job(module="Nobody"), NOW)
    assert set(made.windows) == {Route("Mail", "w1"), Route("Mail", "any"), Route("Fax", "any")}


def test_a_window_stays_as_long_as_anybody_serves_its_route() -> None:
    made = routing(session(1, "any", "Mail"), session(2, "any", "Mail"))
    window = made.windows[Route("Mail", "any")]

    made.leave(1)
    kept = made.windows.get(Route("Mail", "any"))
    made.leave(2)

    assert kept is window
    assert made.windows == {}
    assert made.leave(2) is None


def test_an_announcement_replaces_the_one_before() -> None:
    one = session(1, "any", "Mail", "Fax")
    made = routing(one)

    made.announce(one, [Announce("Fax", "dist", "2")])

    assert set(made.windows) == {Route("Fax", "any")}


def test_the_taker_is_whoever_has_most_free_credits_and_nobody_when_all_are_full() -> None:
    small, large = session(1, "any", "Mail", capacity=2), session(2, "any", "Mail", capacity=5)
    made = routing(small, large)
    route = Route("Mail", "any")

    taken = []
    while (taker := made.taker(route)) is not None:
        taker.held += 1
        taken.append(taker.session.conn)

    assert taken[:3] == [2, 2, 2]
    assert (small.room("Mail").held, large.room("Mail").held) == (2, 5)
    assert made.credits(route) == 0
    assert made.taker(Route("Fax", "any")) is None


def test_a_worker_that_holds_more_than_its_new_capacity_takes_from_no_other() -> None:
    full, free = session(1, "any", "Mail", capacity=0), session(2, "any", "Mail", capacity=2)
    full.rooms["greenlet"].held = 5

    assert routing(full, free).credits(Route("Mail", "any")) == 2


def test_jobs_of_either_isolation_have_a_room_of_their_own() -> None:
    both = session(1, "any", "Mail", capacity=1)
    made = routing(both)
    made.announce(both, [Announce("Mail", "d", "1"), Announce("Video", "d", "1", "process")])
    both.rooms["process"].capacity = 2
    mail, video = Route("Mail", "any"), Route("Video", "any")

    taker = made.taker(mail)
    assert taker is not None
    taker.lend(0)

    assert (made.credits(mail), made.credits(video)) == (0, 2)
    assert (both.describe()["capacity"], both.describe()["process_capacity"], both.describe()["running"]) == (1, 2, 1)


def test_a_job_is_near_on_its_own_route_only() -> None:
    made = routing(session(1, "w1", "Mail"))

    made.offer(job(1, due_at_us=NOW.timer_us + 50), NOW)
    made.offer(job(2, due_at_us=NOW.wall_us + 20, on_wall=True, target_worker="w1"), NOW)

    assert made.windows[Route("Mail", "any")].next_due_us() == NOW.timer_us + 50
    assert made.windows[Route("Mail", "w1")].next_due_us() == NOW.timer_us + 20
    assert made.next_due_us() == NOW.timer_us + 20
    made.discard(job(2, target_worker="w1"))
    assert made.next_due_us() == NOW.timer_us + 50


def test_new_windows_must_be_read_and_thrown_away_ones_again() -> None:
    made = Routing()
    one = session(1, "any", "Mail")
    made.join(one)
    made.announce(one, list(one.announced.values()))
    assert made.must_read
    assert made.tick(NOW) == [Span(Route("Mail", "any"), PREFIX_TIMERS)]

    made = routing(one)
    assert not made.must_read
    assert made.tick(NOW) == []
    made.forget_windows()
    assert made.must_read


W1 = session(1, "w1", "Mail")
BROKEN = session(2, "w2")
BROKEN.announced = {"Mail": Announce("Mail", "dist", "1", broken="Traceback\n  ...\nImportError: no lib")}


@pytest.mark.parametrize(
    ("sessions", "fields", "expected"),
    [
        ([], {}, "no worker has module Mail"),
        ([session(1, "any", "Fax")], {}, "no worker has module Mail"),
        ([BROKEN], {}, "no worker has module Mail that works: on w2, ImportError: no lib"),
        ([W1], {"target_worker": "w9"}, "worker w9 is not connected"),
        ([session(3, "w9", "Fax"), W1], {"target_worker": "w9"}, "worker w9 has no module Mail"),
        ([BROKEN, W1], {"target_worker": "w2"}, "worker w2 has no module Mail that works: on w2, ImportError: no lib"),
        ([session(1, "w1", "Mail", only_targeted=True)], {}, "every worker with module Mail takes only jobs for its own name"),
        ([session(1, "w1", "Mail", capacity=0)], {}, "every worker that could take it is full"),
        ([session(1, "w1", "Mail", capacity=0), session(2, "w2", "Mail", only_targeted=True)], {}, "every worker that could"),
        ([session(1, "w1", "Mail", capacity=0), session(2, "any", "Mail")], {"target_worker": "w1"}, "every worker that could"),
        ([W1], {}, "it is about to be given to a worker"),
    ],
)
def test_why_says_in_words_what_is_missing(sessions: list[Session], fields: dict[str, Any], expected: str) -> None:
    assert routing(*sessions).why_not_taken(job(**fields)).startswith(expected)
