"""Jobs, and the table of their transitions."""

from __future__ import annotations

import itertools

import pytest

from givalia_core.clock import Now
from givalia_core.errors import IllegalTransition
from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    ENDED,
    RUNNING,
    STORED_STATES,
    TRANSITIONS,
    WAITING,
    Answered,
    Job,
    JobState,
    OutcomeKind,
    evolve,
)

NOW = Now(timer_us=1_000, wall_us=5_000, mono_us=1)
ACTS = sorted({act for _, act in TRANSITIONS})


def job(**fields: object) -> Job:
    values = {
        "seq": 7, "id": b"i" * 16, "key": "k", "state": WAITING, "module": "Mail", "target_worker": "any", "priority": 3,
        "on_wall": False, "due_at_us": 1_000, "attempt": 2, "fence": 9, "answered": (Answered(b"r" * 16, "ext", 1),),
    }  # fmt: skip
    return Job(**{**values, **fields})


SPECIFIED = {
    (WAITING, "claim", RUNNING),  # T3
    (RUNNING, "succeed", DONE),  # T4
    (RUNNING, "fail", WAITING),  # T5, T6
    (RUNNING, "die", DEAD),  # T7
    (RUNNING, "stop", CANCELLED),  # T8
    (RUNNING, "release", WAITING),  # T9
    (WAITING, "cancel", CANCELLED),  # T10
    (WAITING, "ext", WAITING),  # T11
    (WAITING, "replace", WAITING),
    (WAITING, "reschedule", WAITING),
    (DEAD, "requeue", WAITING),  # T12
    (CANCELLED, "requeue", WAITING),
    (WAITING, "expire", DEAD),  # T14
    (RUNNING, "ask_stop", RUNNING),  # C3
    (RUNNING, "adopt", RUNNING),  # Another server of the same store looks after it now.
}


def test_the_table_is_the_contract_and_nothing_more() -> None:
    assert {(state, act, to) for (state, act), to in TRANSITIONS.items()} == SPECIFIED


@pytest.mark.parametrize(("state", "act"), TRANSITIONS)
def test_a_legal_act_gives_the_state_of_the_table_and_a_higher_version(state: JobState, act: str) -> None:
    before = job(state=state, version=4)

    after = evolve(before, act)

    assert after == before.changed(state=TRANSITIONS[state, act], version=5)
    assert before == job(state=state, version=4)


@pytest.mark.parametrize(("state", "act"), [pair for pair in itertools.product(JobState, ACTS) if pair not in TRANSITIONS])
def test_every_other_act_is_a_bug_and_tells_the_story(state: JobState, act: str) -> None:
    with pytest.raises(IllegalTransition, match=rf"{act} of a job that is {state} .*seq 7.*attempt 2.*fence 9.*ext"):
        evolve(job(state=state), act)


@pytest.mark.parametrize("act", ["", "CLAIM", "unknown"])
def test_an_unknown_act_is_a_bug(act: str) -> None:
    with pytest.raises(IllegalTransition):
        evolve(job(), act)


def test_done_is_final_and_ready_is_never_stored() -> None:
    assert not any(state is DONE for state, _ in TRANSITIONS)
    assert JobState.READY not in STORED_STATES
    assert all(to in STORED_STATES for to in TRANSITIONS.values())


def test_the_order_of_stored_states_never_changes_because_it_is_on_disk() -> None:
    assert STORED_STATES == ("waiting", "running", "done", "dead", "cancelled")


def test_states_and_kinds_are_their_words() -> None:
    assert f"{JobState.READY} {OutcomeKind.DIED}" == "ready died"
    assert JobState("dead") is DEAD


def test_a_job_is_live_until_it_ends() -> None:
    assert [job(state=state).is_live for state in STORED_STATES] == [True, True, False, False, False]
    assert {DONE, DEAD, CANCELLED} == ENDED


@pytest.mark.parametrize(("on_wall", "due_us"), [(False, 1_000), (True, 5_000)])
def test_a_due_is_judged_on_its_own_clock(on_wall: bool, due_us: int) -> None:
    due, ahead = job(on_wall=on_wall, due_at_us=due_us), job(on_wall=on_wall, due_at_us=due_us + 1)

    assert (due.is_due(NOW), ahead.is_due(NOW)) == (True, False)
    assert (due.shown_state(NOW), ahead.shown_state(NOW)) == (JobState.READY, WAITING)
    assert (due.due_on_timer_us(NOW), due.due_on_wall_us(NOW)) == (1_000, 5_000)


@pytest.mark.parametrize(("on_wall", "at_us"), [(False, 1_000), (True, 5_000)])
def test_a_job_expires_on_the_clock_of_its_due_and_only_while_it_waits(on_wall: bool, at_us: int) -> None:
    assert job(on_wall=on_wall, expires_at_us=at_us).is_expired(NOW)
    assert not job(on_wall=on_wall, expires_at_us=at_us + 1).is_expired(NOW)
    assert not job(on_wall=on_wall, expires_at_us=None).is_expired(NOW)
    assert not job(on_wall=on_wall, expires_at_us=at_us, state=RUNNING).is_expired(NOW)


def test_only_a_waiting_job_is_shown_as_ready() -> None:
    assert [job(state=state).shown_state(NOW) for state in STORED_STATES[1:]] == list(STORED_STATES[1:])


def test_what_is_urgent_ranks_first() -> None:
    assert sorted([job(priority=-9), job(priority=9), job(priority=0)], key=lambda each: each.rank)[0].priority == 9
