"""Values on the wire: a packed value can be unpacked, and an unsuitable one is named with its type and its place."""

from __future__ import annotations

import decimal
import math
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest

from givalia_core.protocol import values

PLAIN = "plain data is None, bool, int, float, str, bytes, list, tuple and dict"


class Loud(dict[Any, Any]):
    def items(self) -> Any:
        raise RuntimeError("no")


class Items(list[Any]):
    pass


class Pair(NamedTuple):
    a: Any
    b: Any


class Own(str):
    """A text that is equal to itself alone."""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({(1, 2): "a"}, "params has a key of type tuple, which cannot be a key when it is unpacked"),
        ({"a": [{(): 1}]}, 'params["a"][0] has a key of type tuple, which cannot be a key when it is unpacked'),
        ({"cart": [1, 2, 3, decimal.Decimal(1)]}, f'params["cart"][3] is of type Decimal; {PLAIN}'),
        ({"a": {7: {b"c": (1 << 64,)}}}, "params[\"a\"][7][b'c'][0] is of type int and beyond 64 bits"),
        ((-1 << 63) - 1, "params is of type int and beyond 64 bits"),
        ("\ud800", "params is of type str and has characters that UTF-8 does not have"),
        ({"\udfff": 1}, "params has a key of type str and has characters that UTF-8 does not have"),
        ({frozenset(): 1}, f"params has a key of type frozenset; {PLAIN}"),
        (Loud(a=1), f"params is of type Loud; {PLAIN}"),
        ({"a": OrderedDict(b=Items([1, Loud(a=1)]))}, f'params["a"]["b"][1] is of type Loud; {PLAIN}'),
        ([Pair(1, Items([{2}]))], f"params[0][1][0] is of type set; {PLAIN}"),
        (OrderedDict({(): 1}), "params has a key of type tuple, which cannot be a key when it is unpacked"),
        ([{Own("a"): 1, Own("a"): 2}], "params[0] is of type dict and has keys that are one when it is unpacked"),
        (UserDict(), f"params is of type UserDict; {PLAIN}"),
        ({"k" * 99: {1, 2}}, f'params["{"k" * 36}...] is of type set; {PLAIN}'),
    ],
)
def test_what_cannot_be_packed_is_named(value: Any, words: str) -> None:
    with pytest.raises(values.CannotPack) as caught:
        values.pack(value, "params")

    assert str(caught.value) == words


@pytest.mark.parametrize(
    "value",
    [None, True, -1 << 63, (1 << 64) - 1, 0.5, math.inf, "é", b"\0", [], {}, {None: 1, 1.5: [2], b"x": {"y": {}}}, nested(500)],
)
def test_plain_data_is_read_as_it_was(value: Any) -> None:
    assert values.unpack(values.pack(value, "params")) == value


def test_what_is_nested_too_deeply_is_said_to_be() -> None:
    with pytest.raises(values.CannotPack, match="is nested too deeply"):
        values.pack(nested(5_000), "params")


@pytest.mark.parametrize("payload", [b"\xc1", b"\x92\x01", b"\x01\x01", b"\x81\x91\x01\x02"])
def test_what_is_no_value_is_an_error_of_value(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - The words are those of the packer.
        values.unpack(payload)
