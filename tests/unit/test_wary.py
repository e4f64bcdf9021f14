"""Questions about objects that lie: none of their code runs, and the answer is true."""

from __future__ import annotations

from typing import Any

from givalia_core.worker.attempt.wary import LEAVES_MAX, is_a, leaves, name_of


class Loud(type):
    """Raises at whatever is asked of its classes."""

    def __instancecheck__(cls, instance: Any) -> bool:
        raise SystemExit

    def __subclasscheck__(cls, subclass: type) -> bool:
        raise SystemExit

    def __getattribute__(cls, name: str) -> Any:
        raise SystemExit


def test_a_class_that_raises_or_lies_is_known_by_its_type() -> None:
    class Liar(Exception, metaclass=Loud):  # In here, for pytest asks the classes of a module.
        @property
        def __class__(self) -> Any:  # type: ignore[override]
            return KeyError

    liar = Liar()

    assert is_a(liar, Exception)
    assert not is_a(liar, KeyError)
    assert name_of(liar) == "Liar"


def test_the_leaves_of_a_group_are_found_however_deep_they_are() -> None:
    one, two = ValueError("one"), KeyError("two")

    assert set(leaves(ExceptionGroup("", [one, ExceptionGroup("", [two])]))) == {one, two}
    assert leaves(one) == [one]


def test_of_too_many_leaves_some_are_enough() -> None:
    group = ExceptionGroup("", [ValueError(str(number)) for number in range(LEAVES_MAX + 10)])

    assert len(leaves(group)) == LEAVES_MAX


def test_a_group_that_lies_about_its_parts_is_read_by_its_own() -> None:
    class Lying(ExceptionGroup[Exception]):
        exceptions = property(lambda _: [KeyError()])  # type: ignore[assignment]

    one = ValueError("one")

    assert leaves(Lying("", [one])) == [one]
