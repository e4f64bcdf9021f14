"""The workers that may take a job: names, modules, credits, and the words for why no worker has taken one."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core import variants, why
from givalia_core.clock import Now
from givalia_core.model import WAITING, Job
from givalia_core.protocol.messages import Announce, Join
from givalia_core.routing import Routing
from givalia_core.store.base import Near, Route, Span
from givalia_core.store.shared import News
from givalia_core.takers import WorkerSession
from givalia_core.timers import PREFIX_TIMERS

NOW = Now(1_000, 5_000, 7)


def session(conn: int, name: str = "any", *modules: str, capacity: int = 1, **join: Any) -> WorkerSession:
    made = WorkerSession(conn, Join(name, bytes([conn]) * 16, **join), NOW)
    made.rooms["greenlet"].capacity = capacity
    made.announced = {module: Announce(module, "dist", "1") for module in modules}
    return made


def routing(*sessions: WorkerSession) -> Routing:
    made = Routing()
    for each in sessions:
        made.join(each)
        made.announce(each, list(each.announced.values()))
    variants.learn(made, set(made.unlearned), {})
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
    assert {route.target for route in made.routes()} == expected


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
    assert made.unlearned == {Route("Mail", "any")}
    assert made.tick(NOW) == [Span(Route("Mail", "any"), PREFIX_TIMERS)]

    made = routing(one)
    assert made.unlearned == set()
    assert made.tick(NOW) == []
    made.forget_windows()
    assert made.unlearned == {Route("Mail", "any")}


TRACEBACK = "Traceback (most recent call last):"
W1 = session(1, "w1", "Mail")
BROKEN = session(2, "w2")
BROKEN.announced = {"Mail": Announce("Mail", "dist", "1", broken=f"{TRACEBACK}\n  ...\nImportError: no lib")}


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
def test_why_says_in_words_what_is_missing(sessions: list[WorkerSession], fields: dict[str, Any], expected: str) -> None:
    assert why.not_taken(routing(*sessions), job(**fields)).startswith(expected)


# Versions.


def versioned(conn: int, name: str, version: str, **join: Any) -> WorkerSession:
    made = session(conn, name, "Mail", **join)
    made.announced = {"Mail": Announce("Mail", "dist", version)}
    return made


PLAIN, NEW = Route("Mail", "any"), Route("Mail", "any >=2")


def test_a_variant_of_a_route_knows_the_route_and_what_is_asked_for() -> None:
    assert (NEW.plain, NEW.specifier) == (PLAIN, ">=2")
    assert (PLAIN.plain, PLAIN.specifier) == (PLAIN, None)
    assert job(specifier=">=2").target == NEW.target


def test_variants_have_windows_as_long_as_jobs_wait_there_and_somebody_satisfies_them() -> None:
    made = routing(versioned(1, "w1", "1.0"), versioned(2, "w2", "2.0"))
    jobs = [
        job(1, specifier=">=2"),
        job(2, specifier="<2"),
        job(3, specifier=">=3"),
        job(4, specifier="<2", target_worker="w2"),
    ]

    for each in jobs:
        made.offer(each, NOW)

    plain = {PLAIN, Route("Mail", "w1"), Route("Mail", "w2")}
    assert set(made.windows) - plain == {NEW, Route("Mail", "any <2")}
    made.leave(1)
    assert set(made.windows) - plain == {NEW}
    variants.learn(made, [PLAIN], {})
    assert set(made.windows) == {PLAIN, Route("Mail", "w2")}


def test_each_worker_takes_what_it_satisfies() -> None:
    old, new = versioned(1, "any", "1.0", capacity=9), versioned(2, "any", "2.0", capacity=1)
    made = routing(old, new)

    variants.learn(made, [PLAIN], {PLAIN: [NEW, Route("Mail", "any <9")]})

    assert made.taker(PLAIN) is old.room("Mail")
    assert made.taker(NEW) is new.room("Mail")
    assert made.credits(Route("Mail", "any <9")) == 10


def test_variants_are_learned_when_a_worker_announces_and_when_nothing_is_known_for_sure() -> None:
    made = routing(versioned(1, "w1", "1.0"))
    assert made.unlearned == set()

    made.forget_windows()
    assert made.unlearned == {PLAIN, Route("Mail", "w1")}
    variants.learn(made, [PLAIN, Route("Mail", "w1")], {PLAIN: [NEW]})
    assert (made.unlearned, set(made.windows)) == (set(), {PLAIN, Route("Mail", "w1")})

    upgraded = versioned(2, "any", "2.0")
    made.join(upgraded)
    made.announce(upgraded, list(upgraded.announced.values()))
    assert made.unlearned == {PLAIN}


def test_news_of_a_variant_is_taken_in_by_whoever_has_a_worker_for_it() -> None:
    made = routing(versioned(1, "any", "2.0"))
    later, never = Route("Mail", "any <3"), Route("Mail", "any >=3")

    variants.hear(made, News(ready=frozenset({NEW, never}), nearing={later: NOW.timer_us + 5, never: NOW.timer_us + 5}))

    assert set(made.windows) == {PLAIN, NEW, later}
    assert made.windows[NEW].has_ready
    assert made.windows[later].next_due_us() == NOW.timer_us + 5


def elsewhere(name: str, version: str | None, **fields: Any) -> dict[str, Any]:
    versions = {} if version is None else {"versions": {"Mail": version}}
    return {"name": name, "only_targeted": False, "modules": ["Mail"], **versions, **fields}


@pytest.mark.parametrize(
    ("sessions", "others", "fields", "expected"),
    [
        (["1.0"], [], {}, "no worker has Mail >=2; connected: w1 with 1.0"),
        (["1.0"], [elsewhere("w2", "1.5")], {}, "no worker has Mail >=2; connected: w1 with 1.0, w2 with 1.5"),
        (["1.0"], [elsewhere("w2", "1.5")], {"target_worker": "w1"}, "no worker w1 has Mail >=2; connected: w1 with 1.0"),
        (["1.0"], [elsewhere("w2", "1.5", only_targeted=True)], {}, "no worker has Mail >=2; connected: w1 with 1.0"),
        (["1.0"], [elsewhere("w2", None)], {}, "no worker has Mail >=2; connected: w1 with 1.0, w2 with an unknown version"),
        (["1.0"], [elsewhere("w2", "2.0")], {}, "it is for a worker of another server"),
        ([], [elsewhere("w2", "1.5")], {}, "no worker has Mail >=2; connected: w2 with 1.5"),
        ([], [elsewhere("w2", "1.5")], {"target_worker": "w2"}, "no worker w2 has Mail >=2; connected: w2 with 1.5"),
        ([], [], {}, "no worker has module Mail"),
    ],
)
def test_why_names_the_versions_that_are_connected_over_all_servers(
    sessions: list[str], others: list[dict[str, Any]], fields: dict[str, Any], expected: str
) -> None:
    made = routing(*(versioned(1, "w1", version) for version in sessions))
    made.elsewhere.tell(others)

    assert why.not_taken(made, job(specifier=">=2", **fields)).startswith(expected)
