"""Params and results: values of Python, packed only if they can be unpacked again."""

from __future__ import annotations

from json import dumps
from typing import Any, Final

from msgpack import Packer, unpackb

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

_BUFFER_BYTES_MAX: Final = 65_536  # A packer keeps the memory of the largest value that it has packed.
_KEY_CHARACTERS_MAX: Final = 40
_STEPS_MAX: Final = 64
_KEY: Final = " has a key"  # The step to a key.
_INT_LEAST, _INT_MOST = -(1 << 63), (1 << 64) - 1


def _exact_packer() -> Any:
    """Return a packer of exact types alone: the values it takes run no code, and are equal when they are unpacked."""
    return Packer(autoreset=True, strict_types=True)


_exact = _exact_packer()
"""Serves all threads, since nothing else runs while it packs."""


class CannotPack(ValueError):  # noqa: N818 - It says what happened, and is caught where that is known.
    """The value, or one inside it, is not plain data; the message names its type and its place."""


def pack(value: Any, name: str) -> bytes:
    """Return None, bool, int of 64 bits, float, str, bytes, or lists, tuples and dicts of these, packed by msgpack.

    The result can be unpacked again. Raise CannotPack for another value, which the message calls by `name` (such as `params`),
    and MemoryError if there is no memory for it.
    """
    global _exact
    try:
        exact: bytes = _exact.pack(value)
    except MemoryError:
        raise
    except Exception:  # A part is of another type, which may run its own code when it is packed: a subclass of dict.
        _exact = _exact_packer()
        return _pack_other(value, name)
    if len(exact) > _BUFFER_BYTES_MAX:
        _exact = _exact_packer()
    return exact


def _pack_other(value: Any, name: str) -> bytes:
    try:
        return _packed(value)
    except MemoryError:
        raise
    except Exception:
        raise CannotPack(_words(value, name)) from None


def _packed(value: Any) -> bytes:
    """Return the packed value, after a test that it can be unpacked.

    Raises:
        Exception: The value cannot be packed or unpacked, or differs when it is unpacked: some keys of a type with its own
            comparison would be one key.
    """
    packed: bytes = Packer().pack(value)
    if len(Packer().pack(unpack(packed))) != len(packed):
        raise ValueError("some of it would be lost")
    return packed


def unpack(packed: bytes) -> Any:
    """Return the value that was packed; None for an empty payload.

    Raises:
        ValueError: These bytes are no value, or have a dict with a value that cannot be a key.
    """
    try:
        return unpackb(packed, strict_map_key=False) if packed else None
    except TypeError as error:
        raise ValueError(f"a dict has a key that cannot be one: {error}") from None


def _words(value: Any, name: str) -> str:
    """Return which value inside this one cannot be packed, and why."""
    place = name
    for _ in range(_STEPS_MAX):
        inside = _inside(value)
        if inside is None:
            break
        step, value = inside
        place += step
        if step == _KEY:
            return f"{place} of type {_fault(value, is_key=True)}"
    return f"{place} is of type {_fault(value)}"


def _inside(value: Any) -> tuple[str, Any] | None:
    """Return the first part of a container that cannot be packed, and the step that leads to it."""
    if issubclass(type(value), dict):  # Ask the base class: the `items` of a subclass may be the fault.
        for key, part in list(dict.items(value)):
            if not _can_be_key(key):
                return _KEY, key
            if not _is_sound(part):
                return f"[{_shown(key)}]", part
    elif issubclass(type(value), (list, tuple)):
        for number, part in enumerate(list.__iter__(value) if issubclass(type(value), list) else tuple.__iter__(value)):
            if not _is_sound(part):
                return f"[{number}]", part
    return None


def _is_sound(value: Any) -> bool:
    try:
        _packed(value)
    except Exception:
        return False
    return True


def _can_be_key(key: Any) -> bool:
    return _is_sound({key: None})


def _fault(value: Any, *, is_key: bool = False) -> str:
    kind = type(value).__name__
    if type(value) is int and not _INT_LEAST <= value <= _INT_MOST:
        return f"{kind} and beyond 64 bits"
    if type(value) is str:
        return f"{kind} and has characters that UTF-8 does not have"
    if is_key and type(value) in (tuple, list, dict):
        return f"{kind}, which cannot be a key when it is unpacked"
    if type(value) is dict and _has_equal_keys(value):
        return f"{kind} and has keys that are one when it is unpacked"
    if type(value) in (dict, list, tuple):
        return f"{kind} and is nested too deeply"
    return f"{kind}; plain data is None, bool, int, float, str, bytes, list, tuple and dict"


def _has_equal_keys(value: dict[Any, Any]) -> bool:
    keys = [bytes(Packer().pack(key)) for key in list(value)]
    return len(set(keys)) < len(keys)


def _shown(key: Any) -> str:
    if type(key) is str:
        words = dumps(key)
    else:
        words = ascii(key) if type(key) in (bytes, int, float, bool, type(None)) else type(key).__name__
    return words if len(words) <= _KEY_CHARACTERS_MAX else words[: _KEY_CHARACTERS_MAX - 3] + "..."
