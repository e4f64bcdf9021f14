"""The seam for servers that share one store: which stores are shared, and news and answers that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from givalia_core.model import REMEMBERED_AT_LEAST_US
from givalia_core.store.memory import Memory
from givalia_core.store.shared import ALIVE_US, AlreadyDecided, Keeping, Kept, News, as_shared
from givalia_core.store.sqlite import SQLite


class Foreign:
    """A store of somebody else, of which nothing is known but whether it is shared."""

    def __init__(self, *, is_shared: bool) -> None:
        self.is_shared = is_shared


def test_a_shared_store_is_itself_with_more_methods() -> None:
    store: Any = Foreign(is_shared=True)

    assert as_shared(store) is store


def test_a_store_that_says_that_it_is_not_shared_is_none_whatever_it_has() -> None:
    store = Foreign(is_shared=False)
    store.__dict__["watch"] = store.__dict__["news"] = lambda: None

    assert as_shared(cast(Any, store)) is None


def test_stores_of_one_server_are_not_shared(tmp_path: Path) -> None:
    assert as_shared(Memory()) is None
    assert as_shared(SQLite(f"sqlite://{tmp_path / 'queue.db'}")) is None


def test_news_without_a_word_name_nothing_and_ask_for_nothing() -> None:
    assert News() == (frozenset(), frozenset(), {}, False, False)


def test_answers_that_were_all_kept_leave_nothing_to_decide_again() -> None:
    assert Keeping() == (frozenset(), frozenset())


def test_an_answer_is_kept_longer_than_a_server_may_be_silent() -> None:
    """Otherwise a server that adopts the jobs of a silent one could decide a command again that was answered."""
    assert 0 < ALIVE_US < REMEMBERED_AT_LEAST_US


def test_what_is_kept_says_whether_its_request_may_be_a_jobs_id() -> None:
    assert Kept(b"request", b"answer", is_enq=True)._asdict() == {"request": b"request", "answer": b"answer", "is_enq": True}


def test_a_decision_of_another_server_is_no_error_of_a_store() -> None:
    """The engine catches it where it stores, and no caller ever sees it."""
    with pytest.raises(AlreadyDecided) as caught:
        raise AlreadyDecided

    assert AlreadyDecided.__mro__[1] is Exception
    assert caught.value.args == ()
