"""The calls of hooks that the engine orders, and which refusals decide a command."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import NOW, job

from givalia_core.engine.records import Ended, Refusal, hook_of
from givalia_core.errors import BadRequest, Busy, DuplicateKey, GivaliaError, NotFound, ShuttingDown, Stale, StoreFull, TooLarge
from givalia_core.model import DEAD, OutcomeKind
from givalia_core.times import to_datetime
from givalia_core.views import JobView, Outcome, text_id


@pytest.mark.parametrize(
    ("error", "is_decided"),
    [
        (NotFound("?"), True), (DuplicateKey("?"), True), (Stale("?"), True), (ShuttingDown("?"), False),
        (Busy("?"), False), (StoreFull("?"), False), (BadRequest("?"), False), (TooLarge("?"), False),
    ],
)  # fmt: skip
def test_a_refusal_decides_unless_the_same_command_may_be_done_later(error: GivaliaError, is_decided: bool) -> None:
    assert Refusal(error).is_decided is is_decided
    assert Refusal(error, is_decided=True).is_decided
    assert not Refusal(error, is_decided=False).is_decided
    assert str(Refusal(error)) == str(error)


def test_a_hook_is_given_the_job_as_people_see_it() -> None:
    given = job(3, key="k", priority=2, attempt=4, specifier=">=2", on_wall=True, due_at_us=NOW.wall_us + 5)

    arguments = hook_of("on_cancel", given, running=True).arguments(NOW)

    due = to_datetime(NOW.wall_us + 5)
    assert arguments == {
        "job": JobView(text_id(given.id), "k", "Mail", "any", 2, 4, due, version=">=2"),
        "running": True,
    }


def test_the_due_of_a_delayed_job_is_told_on_the_wall_clock() -> None:
    view: Any = hook_of("on_enq", job(due_at_us=NOW.timer_us + 9)).arguments(NOW)["job"]

    assert view.due == to_datetime(NOW.wall_us + 9)


@pytest.mark.parametrize(("reason", "told"), [("exhausted", "Boom"), ("expired", None)])
def test_an_error_of_an_earlier_life_is_not_told_of_an_expiry(reason: str, told: str | None) -> None:
    dead = job(state=DEAD, reason=reason, error="Boom")

    extra = hook_of("on_dead", dead).extra

    assert extra == {"reason": reason, "error": told}


def test_the_end_of_an_attempt_is_an_outcome_for_plugins() -> None:
    hook = hook_of("on_retry", job(), outcome=Ended(OutcomeKind.FAILED, "Boom"))

    assert hook.arguments(NOW)["outcome"] == Outcome(OutcomeKind.FAILED, error="Boom")
