"""The test kit: one attempt, or a queue on a clock that stands still."""

from __future__ import annotations

from datetime import timedelta

import pytest

from givalia_core import Fail, NotFound, Retry, WorkModule, WrongState
from givalia_core.testing import Queue, run
from givalia_core.times import to_datetime


class Greet(WorkModule):
    def process(self) -> str:
        self.progress(0.5, "half")
        return f"hello {self.params}"


class Stubborn(WorkModule):
    backoff = 10.0
    max_attempts = 3

    def process(self) -> int:
        if self.job.attempt < 3:
            raise RuntimeError("not yet")
        return self.job.attempt


class Hopeless(WorkModule):
    def process(self) -> None:
        raise Fail("never")


class Patient(WorkModule):
    def process(self) -> None:
        if self.job.attempt == 1:
            raise Retry(after=3600)


class Own(Retry):
    def __init__(self, after_us: object = None) -> None:
        if after_us is not None:
            self.after_us = after_us  # type: ignore[assignment]


class Peculiar(WorkModule):
    def process(self) -> None:
        if self.job.attempt == 1:
            raise Own(self.params)


class Watchful(WorkModule):
    def process(self) -> bool:
        return self.cancelled


class Leisurely(WorkModule):
    backoff = timedelta(minutes=1)

    def process(self) -> None:
        if self.job.attempt == 1:
            raise Retry(after=timedelta(hours=1))


def test_lengths_are_numbers_or_timedeltas_and_instants_may_be_iso_text() -> None:
    queue = Queue({"Leisurely": Leisurely})
    at = (to_datetime(queue.clock.read().wall_us) + timedelta(hours=2)).isoformat()
    queue.enq("Leisurely", time=timedelta(minutes=5), key="a", timeout=timedelta(minutes=1))
    queue.enq("Leisurely", at=at, key="b")

    assert [ran.key for ran in queue.advance(timedelta(minutes=6))] == ["a"]
    assert queue.advance(timedelta(minutes=50)) == []
    assert [ran.key for ran in queue.advance(minutes=10)] == ["a"]
    queue.ext("b", timedelta(hours=1))
    assert queue.advance(3_600) == []
    assert [ran.key for ran in queue.advance(3_600)] == ["b"]


def test_run_shows_the_result_and_the_progress_of_one_attempt() -> None:
    ran = run(Greet, "you")

    assert (ran.outcome.kind, ran.outcome.result, ran.progress) == ("succeeded", "hello you", [(0.5, "half")])


def test_run_never_raises_what_the_module_raises() -> None:
    ran = run(Hopeless)

    assert (ran.outcome.kind, ran.outcome.error) == ("failed", "never")


@pytest.mark.parametrize("after_us", [None, 1.5, -1, 1 << 60, "soon"])
def test_a_retry_that_was_not_made_as_ours_is_waits_as_long_as_any_failure(after_us: object) -> None:
    queue = Queue({"Peculiar": Peculiar})
    queue.enq("Peculiar", key="p", params=after_us)

    queue.advance(60)

    assert queue.stat("p").state == "done"


def test_run_lets_the_module_see_that_it_was_cancelled() -> None:
    assert run(Watchful, cancelled=True).outcome.result is True


def test_a_week_passes_in_a_moment() -> None:
    queue = Queue({"Greet": Greet})
    queue.enq("Greet", time=7 * 86_400, key="cart-7", params="you")

    assert queue.advance(days=6) == []
    (ran,) = queue.advance(days=1)

    assert ran.key == "cart-7"
    assert queue.stat("cart-7").result == "hello you"


def test_retries_follow_their_backoff() -> None:
    queue = Queue({"Stubborn": Stubborn})
    queue.enq("Stubborn", key="s")

    assert [ran.attempt for ran in queue.ran] == [1]
    assert queue.advance(7.9) == []
    assert [ran.attempt for ran in queue.advance(30)] == [2, 3]
    assert queue.stat("s").result == 3


def test_an_extended_job_runs_at_its_new_due_and_a_cancelled_one_never() -> None:
    queue = Queue({"Greet": Greet})
    queue.enq("Greet", time=10, key="later")
    queue.enq("Greet", time=10, key="never")
    queue.ext("later", 10)
    queue.cancel("never")

    assert queue.advance(19.999) == []
    assert [ran.key for ran in queue.advance(0.001)] == ["later"]
    assert queue.advance(days=30) == []


def test_many_are_moved_and_called_off_as_by_the_client() -> None:
    queue = Queue({"Greet": Greet})
    first, second = (queue.enq("Greet", time=10, key=key) for key in ("first", "second"))

    moved = queue.ext_many({"first": 5, second: -5})
    answers = queue.cancel_many(["first", "nobody"])

    assert [(due - before.due).total_seconds() for due, before in zip(moved, (first, second), strict=True)] == [5, -5]
    assert answers[0] == "cancelled"
    assert isinstance(answers[1], NotFound)
    assert [ran.key for ran in queue.advance(20)] == ["second"]
    (done,) = queue.cancel_many(ids=[second.id])
    assert isinstance(done, WrongState)


def test_errors_are_those_of_the_client() -> None:
    queue = Queue({"Greet": Greet, "Patient": Patient})
    done = queue.enq("Greet", key="k")

    with pytest.raises(WrongState):
        queue.cancel(id=done.id)
    with pytest.raises(NotFound):
        queue.stat("unknown")


def test_retry_after_waits_as_long_as_it_says() -> None:
    queue = Queue({"Patient": Patient})
    queue.enq("Patient", key="p")

    assert queue.advance(minutes=59) == []
    assert [ran.attempt for ran in queue.advance(minutes=1)] == [2]
