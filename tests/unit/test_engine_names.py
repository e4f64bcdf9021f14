"""Naming a job by a key: the live one, the one that ended last, and a key in the form of an id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from engine_rig import EngineRig, bring, uid

from givalia_core.clock import SECOND_US
from givalia_core.errors import DuplicateKey, NotFound, WrongState
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.views import text_id


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


@pytest.mark.parametrize("state", ["done", "dead", "cancelled"])
def test_a_key_whose_last_job_ended_answers_ext_with_that_state(rig: EngineRig, state: str) -> None:
    bring(rig, state)

    error = rig.ext("k", delta_us=1)

    assert isinstance(error, WrongState)
    assert error.state == state
    assert str(error) == f"the last job of key k is {state}"


@pytest.mark.parametrize("state", ["done", "dead"])
def test_a_key_whose_last_job_ended_answers_cancel_with_that_state(rig: EngineRig, state: str) -> None:
    bring(rig, state)

    error = rig.cancel("k")

    assert isinstance(error, WrongState)
    assert error.state == state


def test_a_key_of_which_all_is_forgotten_is_not_found(rig: EngineRig) -> None:
    bring(rig, "done", retain_us=SECOND_US)
    rig.clock.advance(300)
    rig.turn()

    assert isinstance(rig.ext("k", delta_us=1), NotFound)
    assert isinstance(rig.cancel("k"), NotFound)


def waited(rig: EngineRig, key: str) -> Any:
    frame = rig.frame(Kind.WAIT, m.Wait(key))
    rig.turn(frame)
    return rig.answers(frame)[0]


def ended(rig: EngineRig) -> EngineRig:
    rig.cancel(id=uid(1))
    return rig


FOUND: Final[dict[str, Callable[[EngineRig, str], bool]]] = {
    "stat": lambda rig, key: rig.stat(key)["id"] == uid(1),
    "cancel": lambda rig, key: rig.cancel(key) == ("cancelled",) and rig.state(id=uid(1)) == "cancelled",
    "ext": lambda rig, key: rig.ext(key, delta_us=SECOND_US)[0] == uid(1),
    "requeue": lambda rig, key: ended(rig).requeue(key)[0] == uid(1),
    "wait": lambda rig, key: waited(ended(rig), key) == ("cancelled",),
}
"""By verb: whether a key leads it to job 1."""


@pytest.mark.parametrize("verb", FOUND)
@pytest.mark.parametrize("has_key", [False, True])
def test_a_key_in_the_form_of_an_id_means_the_job_of_that_id(rig: EngineRig, verb: str, has_key: bool) -> None:
    rig.enq(id=uid(1), delay_us=SECOND_US, key="k" if has_key else None)

    assert FOUND[verb](rig, text_id(uid(1)).upper())


@pytest.mark.parametrize("verb", ["stat", "cancel", "ext"])
def test_a_live_key_in_the_form_of_an_id_comes_before_the_id(rig: EngineRig, verb: str) -> None:
    key = text_id(uid(2))
    rig.enq(id=uid(2), delay_us=SECOND_US)
    rig.enq(id=uid(1), delay_us=SECOND_US, key=key)

    assert FOUND[verb](rig, key)
    assert rig.stored(uid(2)).version == 1


def test_a_key_in_the_form_of_an_id_that_no_job_has_is_a_key_like_any_other(rig: EngineRig) -> None:
    key = text_id(uid(9))
    rig.enq(id=uid(1), delay_us=SECOND_US, key=key)
    rig.cancel(key)

    assert rig.stat(key)["id"] == uid(1)
    assert rig.cancel(key) == ("cancelled",)
    assert isinstance(rig.ext(key, delta_us=1), WrongState)
    assert rig.requeue(key)[0] == uid(1)
    assert isinstance(rig.requeue(key), DuplicateKey | WrongState)


def test_what_is_neither_key_nor_id_of_a_job_is_called_both(rig: EngineRig) -> None:
    assert str(rig.stat(text_id(uid(9)))) == f"no job has the key or id {text_id(uid(9))}"


def test_a_job_named_by_the_form_of_its_id_is_not_requeued_beside_a_live_one_of_its_key(rig: EngineRig) -> None:
    rig.enq(id=uid(1), delay_us=SECOND_US, key="k")
    rig.cancel("k")
    rig.enq(id=uid(2), delay_us=SECOND_US, key="k")

    assert isinstance(rig.requeue(text_id(uid(1))), DuplicateKey)
