"""The test kit: one attempt, or a queue on a clock that stands still."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from givalia_core import (
    AsyncClient,
    BadRequest,
    Client,
    Fail,
    JobFailed,
    NotFound,
    Retry,
    WaitTimeout,
    WorkModule,
    WrongState,
    hookimpl,
)
from givalia_core.client.handles import AsyncJobHandle, JobHandle
from givalia_core.testing import Queue, run
from givalia_core.times import to_datetime
from givalia_core.views import JobView, Outcome


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

    before = [first.due, second.due]

    moved = queue.ext_many({"first": 5, second: -5})
    answers = queue.cancel_many(["first", "nobody"])

    assert [(due - was).total_seconds() for due, was in zip(moved, before, strict=True)] == [5, -5]
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


# The verbs are the clients'.


def verbs_of(some: type) -> dict[str, list[inspect.Parameter]]:
    """The public methods of a class, each with its parameters."""
    named = {name: method for name, method in inspect.getmembers(some, callable) if not name.startswith("_")}
    bare = inspect.Parameter.empty
    return {
        name: [each.replace(annotation=bare) for each in inspect.signature(method).parameters.values() if each.name != "self"]
        for name, method in named.items()
    }


def test_all_clients_and_the_kit_have_the_same_verbs() -> None:
    verbs = verbs_of(Client)

    assert verbs_of(AsyncClient) == verbs
    own = {name: verbs_of(Queue)[name] for name in ("advance", "from_settings")}
    assert verbs_of(Queue) == {**verbs, **own}
    with pytest.raises(TypeError, match="a Queue asks no server"):
        Queue.from_settings("127.0.0.1")
    assert verbs_of(AsyncJobHandle) == verbs_of(JobHandle)


def test_the_kit_answers_every_verb_as_a_client_does() -> None:
    queue = Queue({"Greet": Greet, "Hopeless": Hopeless})

    later, done = queue.enq_many([{"module": "Greet", "time": 60, "key": "later"}, {"module": "Greet", "params": "you"}])
    dead = queue.enq("Hopeless", key="h")
    assert (later.stat().state, done.wait(), later.cancel()) == ("waiting", "hello you", "cancelled")
    assert [(each.key, each.state) for each in queue.list()] == [("later", "cancelled"), (None, "done"), ("h", "dead")]
    assert [each.id for each in queue.list("dead", module="Hopeless")] == [dead.id]

    again = queue.requeue("later", time=5)
    assert (again.id, queue.stat("later").state) == (later.id, "waiting")
    assert queue.ext_all(60, key_prefix="lat").counts == {"moved": 1}
    assert queue.requeue_all(module="Hopeless").counts == {"requeued": 1}
    assert [(ran.key, ran.attempt) for ran in queue.ran[-1:]] == [("h", 1)]
    assert queue.cancel_all(all=True, dry_run=True).counts == {"cancelled": 1}
    assert queue.cancel("later", running=True) == "cancelled"

    assert queue.info()["workers"] == 1
    assert [each["name"] for each in queue.workers()] == ["any"]
    assert {each["module"] for each in queue.modules()} == {"Greet", "Hopeless"}


def test_wait_lets_time_pass_until_the_job_has_ended() -> None:
    queue = Queue({"Stubborn": Stubborn, "Hopeless": Hopeless})
    job = queue.enq("Stubborn", time=3600)

    with pytest.raises(WaitTimeout, match="600 s have passed"):
        job.wait(timeout=600)
    assert job.stat().timeleft == pytest.approx(3000, abs=0.1)
    assert job.wait() == 3
    with pytest.raises(JobFailed, match="never"):
        queue.enq("Hopeless", time=60).wait()


@pytest.mark.parametrize("timeout", [timedelta(minutes=10), -1, "10m", float("inf")])
def test_wait_takes_the_lengths_that_a_client_takes(timeout: Any) -> None:
    queue = Queue({"Stubborn": Stubborn})
    job = queue.enq("Stubborn", time=3600)

    if isinstance(timeout, str):
        with pytest.raises(BadRequest, match="timeout is a number of seconds or a timedelta"):
            job.wait(timeout)
    elif timeout == float("inf"):
        assert job.wait(timeout) == 3
    else:
        with pytest.raises(WaitTimeout, match="the job has not ended"):
            job.wait(timeout)


def test_a_queue_that_threads_share_serves_one_after_the_other() -> None:
    queue = Queue({"Greet": Greet})

    def use(name: int) -> list[str]:
        return [queue.enq("Greet", params=name, key=f"{name}-{number}").wait() for number in range(20)]

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(use, range(4)))

    assert said == [[f"hello {name}"] * 20 for name in range(4)]


class Threaded(WorkModule):
    """Asks by way of threads of its own, and says so from one."""

    queue: ClassVar[Queue]

    def process(self) -> list[str]:
        def ask(number: int) -> str:
            self.progress(number / 10, "")
            return self.queue.enq("Greet", params=number, time=3_600).id

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(ask, range(4)))


def test_a_job_may_ask_its_queue_by_way_of_threads_of_its_own() -> None:
    Threaded.queue = queue = Queue({"Threaded": Threaded, "Greet": Greet})

    made = queue.enq("Threaded").wait(10)

    assert [queue.stat(id=job_id).state for job_id in made] == ["waiting"] * 4


class Watched(WorkModule):
    """Asks the queue about itself while it runs, and calls itself off."""

    queue: ClassVar[Queue]
    seen: ClassVar[list[Any]] = []

    def process(self) -> str:
        self.progress(0.5, "half")
        self.seen.append(self.queue.stat(self.job.key).progress)
        self.seen.append((self.queue.cancel(self.job.key, running=True), self.cancelled))
        return "stopped"


def test_a_job_that_runs_is_seen_to_be_where_it_is_and_sees_that_it_was_called_off() -> None:
    class Cancels:
        told: ClassVar[list[bool]] = []

        @hookimpl
        def on_cancel(self, running: bool) -> None:
            self.told.append(running)

    Watched.queue = queue = Queue({"Watched": Watched}, plugins=[Cancels()])
    Watched.seen.clear()
    heard: list[tuple[float, str]] = []

    job = queue.enq("Watched", time=60, key="k")
    assert job.wait(progress=lambda *said: heard.append(said)) == "stopped"

    assert Watched.seen == [(0.5, "half"), ("stop_requested", True)]
    assert (heard, Cancels.told) == ([(0.5, "half")], [True])
    assert queue.ran[0].progress == [(0.5, "half")]


def test_a_queue_takes_no_module_that_nobody_could_enqueue_for() -> None:
    with pytest.raises(BadRequest, match="not 'a b'"):
        Queue({"a b": Greet})


@pytest.mark.parametrize("length", [-1, "90", 1e12, float("nan")])
def test_time_passes_by_a_length_that_is_one(length: Any) -> None:
    with pytest.raises(BadRequest, match="seconds is"):
        Queue({}).advance(length)


def test_wait_for_what_nobody_can_run_does_not_hang() -> None:
    queue = Queue({"Greet": Greet})

    with pytest.raises(WaitTimeout, match="nothing is due"):
        queue.enq("Nobody").wait()


def test_wait_tells_the_progress() -> None:
    queue = Queue({"Greet": Greet})
    told: list[tuple[float, str]] = []

    queue.enq("Greet", time=1).wait(progress=lambda *progress: told.append(progress))

    assert told == [(0.5, "half")]


def test_a_job_of_a_certain_version_runs() -> None:
    queue = Queue({"Greet": Greet})

    assert queue.enq("Greet", params="you", version="<1").wait() == "hello you"


def test_many_short_steps_do_not_lose_the_worker() -> None:
    queue = Queue({"Greet": Greet})
    queue.enq("Greet", time=300, key="k")

    for _ in range(200):
        queue.advance(1.6)

    assert queue.stat("k").state == "done"


class Told:
    """A plugin that notes the hooks that the server calls, and with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @hookimpl
    def on_enq(self, job: JobView) -> None:
        self.calls.append(("on_enq", job.key))

    @hookimpl
    def on_retry(self, job: JobView, outcome: Outcome) -> None:
        self.calls.append(("on_retry", job.attempt, outcome.kind))

    @hookimpl
    def on_done(self, job: JobView) -> None:
        self.calls.append(("on_done", job.attempt))

    @hookimpl
    def on_dead(self, job: JobView, reason: str, error: str | None) -> None:
        self.calls.append(("on_dead", reason, error))

    @hookimpl
    def on_requeue(self, job: JobView) -> None:
        self.calls.append(("on_requeue", job.key, job.attempt))


def test_plugins_are_told_what_a_server_tells_them() -> None:
    plugin = Told()
    queue = Queue({"Hopeless": Hopeless, "Patient": Patient}, plugins=[plugin])

    queue.enq("Patient", key="p").wait()
    queue.enq("Hopeless", key="h")
    queue.requeue("h", time=5)

    assert plugin.calls == [
        ("on_enq", "p"), ("on_retry", 1, "failed"), ("on_done", 2),
        ("on_enq", "h"), ("on_dead", "failed", "never"), ("on_requeue", "h", 0),
    ]  # fmt: skip
