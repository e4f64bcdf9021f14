"""The frames of a client: as few as the limits allow, and none that a server would refuse as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest

from givalia_core import testing
from givalia_core.client import commands, many
from givalia_core.client.commands import ENQ
from givalia_core.errors import BadRequest
from givalia_core.modules import WorkModule
from givalia_core.protocol import frames

COUNT = 5_000

MAKES: dict[str, Callable[[list[str]], Iterable[Any]]] = {
    "enq": lambda keys: many.enq_many({"module": "M", "key": key} for key in keys).requests,
    "cancel": lambda keys: many.cancel_many(keys, running=True).requests,
    "ext": lambda keys: many.ext_many(keys, at=9e9).requests,
}


class Mail(WorkModule):
    def process(self) -> None: ...


@pytest.mark.parametrize("verb", MAKES)
@pytest.mark.parametrize("letter", ["k", "é", "鍵", "😀"])
def test_no_frame_is_too_large_whatever_letters_the_keys_are_made_of(verb: str, letter: str) -> None:
    longest = 250 // len(letter.encode())
    keys = [letter * longest + f"{number:05}" for number in range(COUNT)]

    made = [(len(request.items), len(frames.encode(request.kind, 1, request.items)) - 4) for request in MAKES[verb](keys)]

    assert sum(items for items, _ in made) == COUNT
    assert all(size <= frames.FRAME_BYTES_MAX for _, size in made)


@pytest.mark.parametrize("verb", MAKES)
def test_no_frame_has_more_commands_than_one_may(verb: str) -> None:
    made = [len(request.items) for request in MAKES[verb]([f"{number}" for number in range(2 * frames.ITEMS_MAX + 1)])]

    assert sum(made) == 2 * frames.ITEMS_MAX + 1
    assert max(made) <= frames.ITEMS_MAX


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": -1}, "timeout is 1 s to 24 h, not -1 s"),
        ({"timeout": timedelta.max}, "timeout is 1 s to 24 h, not 1000000000 d"),
        ({"expires": -1}, "expires is 0 to 10 years, not -1 s"),
        ({"retain": 1e12}, "retain is 0 to 10 years, not 11574074 d 2 h"),
    ],
)
def test_a_length_that_is_refused_is_told_its_own_limits(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        ENQ.ask(commands.enq("M", **options))

    assert str(refused.value) == words


def _in_transaction(params: Any) -> Any:
    from givalia_postgres import transaction

    return transaction.enq(None, "M", params=params)


@pytest.mark.parametrize(
    "enq",
    [
        lambda params: commands.enq("M", params=params),
        lambda params: list(many.enq_many([{"module": "M"}, {"module": "M", "params": params}]).requests),
        lambda params: testing.run(WorkModule, params),
        lambda params: testing.Queue({"M": Mail}).enq("M", params=params),
        _in_transaction,
    ],
)
def test_params_that_a_worker_could_not_read_are_refused_before_anything_is_sent(enq: Callable[[Any], Any]) -> None:
    with pytest.raises(BadRequest, match=re.escape('params["cart"][1] has a key of type tuple')):
        enq({"cart": [1, {(1, 2): "a"}]})


def test_of_many_jobs_the_one_that_cannot_be_sent_is_named_by_its_place() -> None:
    with pytest.raises(BadRequest) as caught:
        many.enq_many([{"module": "M"}, {"module": "M", "priority": 10}])

    assert str(caught.value) == "jobs[1]: priority is -9 to 9, not 10"
