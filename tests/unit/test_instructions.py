"""The tool that cuts code short at each of its instructions misses none."""

from __future__ import annotations

import dis
import threading
from collections.abc import Callable
from types import CodeType

import pytest
from instructions import before_each_instruction


class Cut(Exception):
    """Raised at an instruction."""


def new_code() -> Callable[[int], int]:
    """A function that nobody has called, watched or compiled before."""
    names: dict[str, Callable[[int], int]] = {}
    exec("def inner(n):\n    return n * 2\ndef outer(n):\n    steps.append(n)\n    return inner(n) + 1\nsteps = []", names)
    names["outer"].steps = names["steps"]  # type: ignore[attr-defined]
    return names["outer"]


def is_outer(code: CodeType) -> bool:
    return code.co_name == "outer"


def counted(function: Callable[[int], int], of: Callable[[CodeType], bool] = is_outer) -> int:
    seen: list[None] = []
    with before_each_instruction(of, lambda: seen.append(None)):
        assert function(3) == 7
    return len(seen)


def test_the_first_call_of_a_function_is_seen_as_the_second_is() -> None:
    function = new_code()

    first, second = counted(function), counted(function)

    assert first == second
    assert len(list(dis.get_instructions(function))) - 2 <= first <= len(list(dis.get_instructions(function)))


def test_only_the_chosen_functions_are_seen() -> None:
    function = new_code()

    assert counted(function, lambda code: False) == 0
    assert counted(function) < counted(function, lambda code: code.co_name in ("outer", "inner"))


def test_what_is_raised_ends_the_call_at_its_instruction() -> None:
    function = new_code()
    steps: list[int] = function.steps  # type: ignore[attr-defined]
    whole = counted(function)
    done: list[int] = []
    for number in range(1, whole + 1):
        left = number
        steps.clear()

        def act() -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Cut

        with pytest.raises(Cut), before_each_instruction(is_outer, act):
            function(3)
        done.append(len(steps))

    assert done == sorted(done)
    assert set(done) == {0, 1}
    assert counted(function) == whole


def test_other_threads_are_left_alone() -> None:
    function = new_code()
    alone = counted(function)
    seen: list[None] = []
    thread = threading.Thread(target=function, args=(3,))

    with before_each_instruction(is_outer, lambda: seen.append(None)):
        function(3)
        thread.start()
        thread.join()

    assert len(seen) == alone
