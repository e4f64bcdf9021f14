"""Checks of objects of job code that run none of that code: a class may lie, raise, or never return."""

from __future__ import annotations

from typing import Any, Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

LEAVES_MAX: Final = 1_000
_NAME: Final = type.__dict__["__name__"].__get__
_PARTS: Final = BaseExceptionGroup.__dict__["exceptions"].__get__


def is_a(value: object, kind: type) -> bool:
    """Return whether the type of a value is this class or derived from it, without reading `__class__`."""
    return issubclass(type(value), kind)


def name_of(value: object) -> str:
    """Return the name of the value's class."""
    name: Any = _NAME(type(value))
    return name if isinstance(name, str) else "?"


def leaves(raised: BaseException) -> list[BaseException]:
    """Return the exceptions in a group, nested ones too, at most a thousand; for any other exception, only itself."""
    found: list[BaseException] = []
    left = [raised]
    while left and len(found) < LEAVES_MAX:
        one = left.pop()
        if is_a(one, BaseExceptionGroup):
            left += _PARTS(one)
        else:
            found.append(one)
    return found
