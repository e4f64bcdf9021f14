"""Attempts share a greenlet only if none could notice: one that waits, or leaves something, is the last in its greenlet."""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local
from waits import yield_until

from givalia_core.worker.attempt import runner as starter_room
from givalia_core.worker.attempt.runner import Running, Starter

Code = Callable[[], None]

LOCAL = local()
CONTEXT: contextvars.ContextVar[str] = contextvars.ContextVar("context", default="nothing")


class Made:
    """Runs pieces of code as a starter does, and counts the greenlets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self
        self.greenlets = 0

        class Counted(Running):
            def __init__(self, run: Code) -> None:
                super().__init__(run)
                made.greenlets += 1

        monkeypatch.setattr(starter_room, "Running", Counted)
        self.starter: Starter[Code] = Starter(self._call)
        self._left = 0
        self._have_all_ended = Event()

    def _call(self, code: Code, running: Running) -> None:
        try:
            code()
        finally:
            self._left -= 1
            if not self._left:
                self._have_all_ended.set()

    def run(self, *codes: Code) -> None:
        """Start all of them, and wait until each has ended."""
        self._left = len(codes)
        self._have_all_ended.clear()
        for code in codes:
            self.starter.begin(code)
        assert self._have_all_ended.wait(10)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setattr(starter_room, "TURN_S", 60.0)  # A machine that does much else may need longer for a turn.
    return Made(monkeypatch)


def test_attempts_that_wait_for_nothing_run_in_their_order_and_share_a_greenlet(made: Made) -> None:
    ran: list[int] = []

    made.run(*(lambda number=number: ran.append(number) for number in range(100)))  # type: ignore[misc]

    assert ran == list(range(100))
    assert made.greenlets == 1


def test_an_attempt_that_waits_holds_up_none_and_has_its_greenlet_for_itself(made: Made) -> None:
    ran: list[str] = []
    event = Event()

    def wait() -> None:
        event.wait()
        ran.append("waited")

    made.run(wait, lambda: ran.append("beside"), event.set, lambda: ran.append("behind"))

    assert ran == ["beside", "behind", "waited"]
    assert made.greenlets == 2


def test_an_attempt_that_has_waited_is_not_followed_by_another(made: Made) -> None:
    """What was on its way to it from then may arrive any time."""
    caught: list[BaseException] = []

    def wait() -> None:
        gevent.getcurrent().kill(RuntimeError(), block=False)  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError):
            gevent.sleep(1)
        gevent.getcurrent().kill(RuntimeError("too late"), block=False)  # type: ignore[attr-defined]

    def rest() -> None:
        try:
            gevent.sleep(0)
        except BaseException as error:
            caught.append(error)

    made.run(wait, rest, rest)

    assert not caught


HELD: list[Any] = []
LEAVES: dict[str, Code] = {
    "a local": lambda: setattr(LOCAL, "value", 1),
    "a value in the context": lambda: CONTEXT.set("something") and None,
    "a number by which it is known": lambda: HELD.append(gevent.getcurrent().minimal_ident),  # type: ignore[attr-defined]
    "an attribute": lambda: setattr(gevent.getcurrent(), "mine", 1),
    "somebody who refers to it": lambda: HELD.append(gevent.getcurrent()),
    "somebody who would know of its end": lambda: HELD.append(weakref.ref(gevent.getcurrent())),
    "somebody who waits for it": lambda: HELD.append(gevent.spawn(gevent.getcurrent().join)),  # type: ignore[attr-defined]
    "an exception on its way": lambda: gevent.getcurrent().kill(block=False),  # type: ignore[attr-defined]
    "a timer": lambda: HELD.append(gevent.Timeout.start_new(0.001)),
}


@pytest.mark.parametrize("left", LEAVES)
def test_what_an_attempt_leaves_in_its_greenlet_is_not_there_for_the_next(made: Made, left: str) -> None:
    seen: list[Any] = []

    def look() -> None:
        current = gevent.getcurrent()
        seen.append((hasattr(LOCAL, "value"), CONTEXT.get(), hasattr(current, "mine")))
        gevent.sleep(0.005)  # Time for whatever is on its way.
        seen.append("undisturbed")

    made.run(LEAVES[left], look)
    HELD.clear()

    assert made.greenlets == 2
    assert seen == [(False, "nothing", False), "undisturbed"]


def test_the_loop_has_its_turn_however_many_attempts_wait_to_start(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(starter_room, "TURN_S", 0.0)  # Each turn is over before it has begun.
    for number in range(10):
        made.starter.begin(lambda number=number: ran.append(number))  # type: ignore[misc]
    timer = gevent.get_hub().loop.timer(0)
    turns: list[int] = []
    timer.start(lambda: turns.append(len(ran)))

    yield_until(lambda: turns and len(ran) == 10, "the loop has had its turn, and all have run")
    timer.close()

    assert ran == list(range(10))
    assert turns[0] <= 2  # The loop runs dozens of callbacks in a row, and looks at no socket or timer in between.


def test_what_is_forgotten_does_not_start(made: Made) -> None:
    ran: list[int] = []
    made.starter.begin(lambda: ran.append(1))

    made.starter.forget()
    made.run(lambda: ran.append(2))

    assert ran == [2]


def test_attempts_start_though_a_trace_function_has_raised_at_a_switch(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    raised: list[int] = []

    class Raises(Running):
        def switch(self) -> None:
            if not raised:
                raised.append(1)
                raise RuntimeError("what a trace function of a job raises is raised here")
            super().switch()

    monkeypatch.setattr(starter_room, "Running", Raises)
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)

    made.run(lambda: ran.append(1))
    made.run(lambda: ran.append(2))

    assert ran == [1, 2]
