"""The phases of a job that this worker was lent: one table, and an error that tells the story of a forbidden step."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core.errors import IllegalTransition
from givalia_core.protocol.messages import Dispatch
from givalia_core.worker.assignment import HAS_CODE, TRANSITIONS, Assignment, Phase

ACTS = {act for _, act in TRANSITIONS}


def made(phase: Phase) -> Assignment[Any]:
    return Assignment(Dispatch(b"j" * 16, 7, "Mail", 2, 0), None, is_apart=True, phase=phase)


@pytest.mark.parametrize(("phase", "act"), sorted(TRANSITIONS))
def test_each_act_of_the_table_leads_where_it_says(phase: Phase, act: str) -> None:
    job = made(phase)

    job.act(act)

    assert job.phase is TRANSITIONS[phase, act]


@pytest.mark.parametrize(
    ("phase", "act"), sorted((phase, act) for phase in Phase for act in ACTS if (phase, act) not in TRANSITIONS)
)
def test_no_other_act_is_allowed_and_none_changes_the_phase(phase: Phase, act: str) -> None:
    job = made(phase)

    with pytest.raises(IllegalTransition):
        job.act(act)

    assert job.phase is phase


def test_an_illegal_act_tells_the_story_of_the_attempt() -> None:
    job = made(Phase.NEW)
    for act in ("prepare", "start", "stop", "kill"):
        job.act(act)

    with pytest.raises(IllegalTransition) as raised:
        job.act("trust")

    assert str(raised.value) == (
        "trust of an assignment that is killed"
        " (6a6a6a6a-6a6a-6a6a-6a6a-6a6a6a6a6a6a of Mail, attempt 2: prepare, start, stop, kill)"
    )


def test_every_phase_of_a_job_apart_can_come_to_its_end() -> None:
    assert {phase for phase, act in TRANSITIONS if act == "end"} == set(Phase) - {Phase.TRUSTED, Phase.ENDED}


def test_code_is_stopped_only_where_there_is_some() -> None:
    assert {phase for phase, act in TRANSITIONS if act == "kill"} == HAS_CODE
