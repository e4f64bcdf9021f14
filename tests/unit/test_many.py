"""Many jobs called off or moved in one call, with either client: one commit per frame, an answer for each, all sent or none."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scripted_server import ScriptedServer, every, first, hang_up, refuse, serve
from waits import yield_until

from givalia_core import BadRequest, Busy, DuplicateKey, NotFound, PartlyRefused, ShuttingDown, WrongState
from givalia_core.clock import Mark
from givalia_core.protocol.codec import refusal
from givalia_core.protocol.messages import OK, Kind
from givalia_core.protocol.session import Port
from givalia_core.server import Server
from givalia_core.settings import ServerSettings
from givalia_core.store.base import Change, Commit

PATIENCE_S = 20.0
CLOCKS_S = 0.05
"""A due is shown on the wall clock, counted from two clocks that are read one after the other."""

WAITS = {"module": "Sample", "time": 600}


class House:
    """A server in this thread and a client in another; `commits` has the number of changes of each commit that had any."""

    def __init__(self, any_client: Any) -> None:
        self.server = Server(ServerSettings(port=0, worker_port=0, store="memory:", plugins=""))
        self.server.start()
        self.client = any_client("127.0.0.1", self.server.client_port, resend=PATIENCE_S)
        self.commits: list[int] = []
        commit = self.server._store.commit

        def noting(changes: Sequence[Change], mark: Mark, *rest: Any) -> Commit:
            if changes:
                self.commits.append(len(changes))
            return commit(changes, mark, *rest)

        self.server._store.commit = noting  # type: ignore[method-assign]

    def ask(self, verb: str, *args: Any, **options: Any) -> Any:
        """A verb from a native thread, while this thread's hub serves."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(getattr(self.client, verb), *args, **options)
            yield_until(future.done, "the answer", PATIENCE_S)
            return future.result()

    def jobs(self, count: int, prefix: str = "k") -> list[Any]:
        """Handles of so many waiting jobs, with the keys k0, k1 and so on."""
        made: list[Any] = self.ask("enq_many", [{**WAITS, "key": f"{prefix}{n}"} for n in range(count)])
        self.commits.clear()
        return made

    def close(self) -> None:
        self.client.close()
        self.server.stop()


@pytest.fixture
def house(any_client: Any) -> Iterator[House]:
    house = House(any_client)
    yield house
    house.close()


Scripted = Callable[..., tuple[Any, ScriptedServer]]


@pytest.fixture
def client_of(any_client: Any) -> Iterator[Scripted]:
    """A client of a server that follows a script, and that server."""
    with ExitStack() as opened:

        def client(script: Any) -> tuple[Any, ScriptedServer]:
            server = ScriptedServer(Port.CLIENT, script)
            opened.callback(server.close)
            return opened.enter_context(any_client(server.address, resend=PATIENCE_S)), server

        yield client


# One frame, one commit, an answer for each.


def test_a_thousand_jobs_are_called_off_in_one_commit(house: House) -> None:
    house.jobs(1_000)

    assert house.ask("cancel_many", [f"k{n}" for n in range(1_000)]) == ["cancelled"] * 1_000

    assert house.commits == [1_000]
    assert house.ask("info")["jobs"]["Sample"] == {"cancelled": 1_000}


def test_a_thousand_jobs_are_moved_in_one_commit(house: House) -> None:
    jobs = house.jobs(1_000)

    dues = house.ask("ext_many", [f"k{n}" for n in range(1_000)], 30)

    assert house.commits == [1_000]
    assert all(abs((due - job.due).total_seconds() - 30) < CLOCKS_S for due, job in zip(dues, jobs, strict=True))


def test_more_than_a_frame_holds_is_split_and_answered_in_order(house: House) -> None:
    keys = [f"{n:0250}" for n in range(12_000)]
    jobs = house.ask("enq_many", [{**WAITS, "key": key} for key in keys])
    house.commits.clear()

    answers = house.ask("cancel_many", [*keys[:6_000], "nobody", *keys[6_000:]])

    assert isinstance(answers.pop(6_000), NotFound)
    assert answers == ["cancelled"] * len(jobs)
    assert sum(house.commits) == len(jobs)
    assert len(house.commits) <= 4  # Twelve thousand commands of 300 bytes are four frames.


def test_a_thousand_jobs_are_requeued_in_one_commit(house: House) -> None:
    jobs = house.jobs(1_000)
    house.ask("cancel_many", jobs)
    house.commits.clear()

    dues = house.ask("requeue_many", ids=[job.id for job in jobs], time=600)

    assert house.commits == [1_000]
    assert len(dues) == 1_000
    assert house.ask("info")["jobs"]["Sample"] == {"waiting": 1_000}


def test_a_job_whose_key_is_taken_is_an_answer_of_requeue(house: House) -> None:
    (job,) = house.jobs(1)
    house.ask("cancel", id=job.id)
    house.jobs(1)

    (answer,) = house.ask("requeue_many", ids=[job.id])

    assert isinstance(answer, DuplicateKey)


def test_many_jobs_are_asked_about_in_order(house: House) -> None:
    jobs = house.ask("enq_many", [{**WAITS, "key": f"k{n}", "params": n} for n in range(50)])

    answers = house.ask("stat_many", [*jobs[:10], "nobody", *jobs[10:]], params=True)

    assert isinstance(answers.pop(10), NotFound)
    assert [(each.key, each.params) for each in answers] == [(f"k{n}", n) for n in range(50)]


@pytest.mark.parametrize("verb", ["cancel_many", "ext_many"])
def test_of_nothing_nothing_is_asked(house: House, verb: str) -> None:
    assert house.ask(verb, [], **({"time": 1} if verb == "ext_many" else {})) == []
    assert house.ask(verb, ids=iter([]), **({"time": 1} if verb == "ext_many" else {})) == []


def test_jobs_are_named_by_key_handle_status_or_id(house: House) -> None:
    jobs = house.jobs(4)
    status = house.ask("stat", "k2")

    moved = house.ask("ext_many", ["k0", jobs[1], status], 10)
    assert [round((due - job.due).total_seconds()) for due, job in zip(moved, jobs, strict=False)] == [10, 0, 10]
    assert house.ask("cancel_many", ["k0", jobs[1], status]) == ["cancelled"] * 3
    assert house.ask("cancel_many", ids=[jobs[3].id]) == ["cancelled"]


def test_a_handle_that_is_moved_hears_of_its_new_due(house: House) -> None:
    job, gone = house.jobs(2)
    before = job.due, gone.due
    house.ask("cancel", "k1")

    due, refused = house.ask("ext_many", [job, gone], timedelta(seconds=30))

    assert isinstance(refused, WrongState)
    assert (job.due, gone.due) == (due, before[1])
    assert abs((due - before[0]).total_seconds() - 30) < CLOCKS_S


def test_a_mapping_gives_each_job_its_own_time(house: House) -> None:
    jobs = house.jobs(3)
    before = [job.due for job in jobs]

    dues = house.ask("ext_many", {"k0": 10, jobs[1]: timedelta(seconds=20)})
    dues += house.ask("ext_many", ids={jobs[2].id: -30.0})

    moved = [(due - was).total_seconds() for due, was in zip(dues, before, strict=True)]
    assert moved == [pytest.approx(seconds, abs=CLOCKS_S) for seconds in (10, 20, -30)]


def test_all_are_moved_to_one_instant(house: House) -> None:
    house.jobs(2)
    at = datetime.now(UTC) + timedelta(hours=2)

    assert house.ask("ext_many", ["k0", "k1"], at=at) == [at, at]


def test_that_some_are_gone_is_an_answer_and_no_error(house: House) -> None:
    jobs = house.jobs(3)
    house.ask("cancel", "k1")

    first_moved, gone, unknown = house.ask("ext_many", [jobs[0], jobs[1], "nobody"], 1)
    assert isinstance(first_moved, datetime)
    assert (type(gone), gone.state) == (WrongState, "cancelled")
    assert isinstance(unknown, NotFound)

    answers = house.ask("cancel_many", ["k0", "nobody", "k1", "k2"])
    assert [getattr(answer, "code", answer) for answer in answers] == ["cancelled", "NOT_FOUND", "cancelled", "cancelled"]


def test_a_job_that_runs_goes_on_unless_running_is_said(client_of: Scripted) -> None:
    def running(line: Any, ask: Any) -> None:
        runs = refusal(WrongState("the job is running", state="running"))
        line.say(ask, [((OK, "stop_requested"), b"") if message.running else runs for message in ask.messages])

    client, _ = client_of(every(Kind.CANCEL, running))

    (answer,) = client.cancel_many(["a"])
    assert (type(answer), answer.state) == (WrongState, "running")
    assert client.cancel_many(["a", "b"], running=True) == ["stop_requested"] * 2


def test_a_job_that_is_named_twice_is_called_off_once_and_answered_twice(house: House) -> None:
    job, _ = house.jobs(2)

    answers = house.ask("cancel_many", ["k0", "nobody", "k0", "k1", "nobody", job])

    assert [getattr(answer, "code", answer) for answer in answers] == [
        "cancelled", "NOT_FOUND", "cancelled", "cancelled", "NOT_FOUND", "cancelled",
    ]  # fmt: skip
    assert house.commits == [2]


# What is no answer.


@pytest.mark.parametrize(("verb", "options"), [("cancel_many", {}), ("ext_many", {"time": 5})])
@pytest.mark.parametrize("error", [Busy("later", retry_after=1.0), ShuttingDown("it stops", retry_after=1.0)], ids=type)
def test_what_the_server_would_not_decide_is_raised_with_all_the_answers(
    client_of: Scripted, verb: str, options: dict[str, Any], error: Busy
) -> None:
    def partly(line: Any, ask: Any) -> None:
        fine = (OK, "cancelled") if ask.kind is Kind.CANCEL else (OK, b"i" * 16, 0)
        line.say(ask, [(fine, b""), refusal(NotFound("no job")), refusal(error)])

    client, _ = client_of(partly)

    with pytest.raises(PartlyRefused, match="1 of 3") as caught:
        getattr(client, verb)(["a", "b", "c"], **options)

    taken, unknown, refused = caught.value.answers
    assert taken == ("cancelled" if verb == "cancel_many" else datetime(1970, 1, 1, tzinfo=UTC))
    assert (type(unknown), type(refused)) == (NotFound, type(error))


def test_a_frame_that_is_refused_as_a_whole_raises_its_error(client_of: Scripted) -> None:
    def whole(line: Any, ask: Any) -> None:
        line.say(ask, [refusal(Busy("later", retry_after=1.0))])

    client, _ = client_of(whole)

    with pytest.raises(Busy):
        client.cancel_many(["a", "b"])


def test_an_instant_that_only_the_server_can_refuse_is_raised(house: House) -> None:
    house.jobs(1)

    with pytest.raises(PartlyRefused) as caught:
        house.ask("ext_many", ["k0"], at=datetime.now(UTC) + timedelta(days=3660))

    assert [type(answer) for answer in caught.value.answers] == [BadRequest]


# Resends.


@pytest.mark.parametrize(("verb", "options"), [("cancel_many", {}), ("ext_many", {"time": 5})])
def test_a_resend_carries_the_same_ids(client_of: Scripted, verb: str, options: dict[str, Any]) -> None:
    kind = Kind.CANCEL if verb == "cancel_many" else Kind.EXT

    def answer(line: Any, ask: Any) -> None:
        line.say(ask, [((OK, "cancelled") if kind is Kind.CANCEL else (OK, b"i" * 16, 0), b"")] * len(ask.messages))

    client, server = client_of(first(kind, hang_up, every(kind, answer, serve)))

    assert len(getattr(client, verb)(["a", "b", "c"], **options)) == 3

    lost, again = server.next(kind).messages, server.next(kind).messages
    assert lost == again
    assert len({message.request for message in lost}) == 3


# What cannot be sent.

JOB = str(uuid.UUID(int=7))
AWARE = datetime(2030, 1, 1, tzinfo=UTC)

BAD: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "no jobs": ("cancel_many", (), {}),
    "keys and ids": ("cancel_many", (["a"],), {"ids": [JOB]}),
    "one key": ("cancel_many", ("cart-7",), {}),
    "one id": ("cancel_many", (), {"ids": JOB}),
    "bytes": ("cancel_many", (b"cart-7",), {}),
    "a number": ("cancel_many", (7,), {}),
    "a number among the keys": ("cancel_many", (["a", 7],), {}),
    "nothing among the keys": ("cancel_many", (["a", None],), {}),
    "bytes among the keys": ("cancel_many", (["a", b"b"],), {}),
    "a list among the keys": ("cancel_many", (["a", ["b"]],), {}),
    "an empty key": ("cancel_many", (["a", ""],), {}),
    "a key that is too long": ("cancel_many", (["a", "é" * 128],), {}),
    "a control character": ("cancel_many", (["a", "b\n"],), {}),
    "half a character": ("cancel_many", (["a", "\ud800"],), {}),
    "an id that is none": ("cancel_many", (), {"ids": [JOB, "cart-7"]}),
    "running that is no bool": ("cancel_many", (["a"],), {"running": 1}),
    "no time": ("ext_many", (["a"],), {}),
    "no time and no job": ("ext_many", ([],), {}),
    "a time and an at": ("ext_many", (["a"], 5), {"at": AWARE}),
    "a time that is no number": ("ext_many", (["a"], "5"), {}),
    "a time that is NaN": ("ext_many", (["a"], math.nan), {}),
    "a time beyond ten years": ("ext_many", (["a"], 1e9), {}),
    "an at without a zone": ("ext_many", (["a"],), {"at": AWARE.replace(tzinfo=None)}),
    "a mapping and a time": ("ext_many", ({"a": 5}, 5), {}),
    "a mapping and an at": ("ext_many", ({"a": 5},), {"at": AWARE}),
    "a mapping to NaN": ("ext_many", ({"a": 5, "b": math.nan},), {}),
    "a mapping to nothing": ("ext_many", ({"a": 5, "b": None},), {}),
    "a mapping to an instant": ("ext_many", ({"a": 5, "b": AWARE},), {}),
    "a key twice": ("ext_many", (["a", "b", "a"], 5), {}),
    "an id twice": ("ext_many", (), {"ids": [JOB, JOB.upper()], "time": 5}),
    "bad ones without end": ("cancel_many", (itertools.chain(["a"], itertools.repeat("x" * 256)),), {}),
    "a job without end": ("ext_many", (itertools.repeat("a"), 5), {}),
}


@pytest.mark.parametrize("case", BAD)
def test_when_one_cannot_be_sent_nothing_is(client_of: Scripted, case: str) -> None:
    verb, args, options = BAD[case]
    client, server = client_of(refuse(Busy("nobody should ask")))

    with pytest.raises(BadRequest):
        getattr(client, verb)(*args, **options)

    assert server.asks.empty()
