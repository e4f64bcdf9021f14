"""Every message: the values its fields may hold; any other value is refused by the field's name."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, DuplicateKey, GivaliaError, TooLarge
from givalia_core.model import TEN_YEARS_US
from givalia_core.protocol import codec, messages
from givalia_core.protocol.codec import TABLE, answer_error, check, decode, item, refusal
from givalia_core.protocol.frames import PARAMS_BYTES_MAX, RESULT_BYTES_MAX
from givalia_core.protocol.messages import Kind

ID = b"i" * 16
DAY_US = 86_400 * SECOND_US
NONE = object()  # Nil is legal here.


class Field(NamedTuple):
    """One field: its legal values (first the one used elsewhere), and the illegal ones of the right type."""

    good: list[Any]
    bad: list[Any]
    types: tuple[type, ...]
    optional: bool = False


def numbers(least: int, most: int, *, optional: bool = False) -> Field:
    return Field([least, most, (least + most) // 2], [least - 1, most + 1, 1 << 63, -(1 << 63)], (int,), optional)


def text(most: int, *, optional: bool = False) -> Field:
    return Field(["", "ü" * most, "line\nline"], ["x" * (most + 1)], (str,), optional)


def long_text(most: int, *, optional: bool = False) -> Field:
    return Field(["", "ü" * (most // 2), "x" * most, "line\nline"], ["x" * (most + 1), "🗝" * (most // 4 + 1)], (str,), optional)


def words(*legal: str, optional: bool = False) -> Field:
    return Field(list(legal), ["", "other", legal[0].swapcase(), legal[0] + " "], (str,), optional)


BAD_NAMES = ["", "1a", "a b", "ü", "a/b", "a\n", "a\x00", "x" * 129, "-a", ".a", "__import__('os')", "../x"]
BAD_KEYS = ["", "a\x00b", "\n", "\x7f", "\x85", "x" * 256, "ü" * 128, "🗝" * 64, "\ud800", "k" * 70 + "\udfff"]
NAME = Field(["Mail", "_", "a.b-c_9", "x" * 128], BAD_NAMES, (str,))
OPTIONAL_NAME = NAME._replace(optional=True)
KEY = Field(["cart-7", "x" * 255, "ü" * 127, "🗝" * 63, " ", "{", "\u202e"], BAD_KEYS, (str,), True)
UUID = Field([ID, bytes(16)], [b"", b"x" * 15, b"x" * 17], (bytes,))
OPTIONAL_UUID = UUID._replace(optional=True)
BOOL = Field([False, True], [], (bool,))
DELAY = numbers(0, TEN_YEARS_US)
OPTIONAL_DELAY = DELAY._replace(optional=True)
AT = Field([0, -(10**15), 4 * 10**15], [1 << 62, -(1 << 62)], (int,), True)
LENGTH = numbers(SECOND_US, DAY_US, optional=True)
ATTEMPTS = numbers(1, 100, optional=True)
FENCE = Field([1, (5 << 40) + 7, (1 << 63) - 1], [-1, 1 << 63], (int,))
CURSOR = Field([0, 1 << 62], [-1, (1 << 62) + 1], (int,), True)
SPECIFIER = Field(
    [">=2", "==1.4.*", " >= 1.5 , < 2 ", "===odd", "~=1.0" + " " * 95],
    ["2", ">=", ">=1\n", "===\x00", "===ü", "~=1.0" + " " * 96], (str,), True,
)  # fmt: skip
NAMED = {"key": KEY, "id": OPTIONAL_UUID}
STATE = words("waiting", "ready", "running", "done", "dead", "cancelled", optional=True)
HELD = {"id": UUID, "fence": FENCE}

FIELDS: dict[Kind, dict[str, Field]] = {
    Kind.HELLO: {
        "version_min": numbers(0, 1 << 16), "version_max": numbers(0, 1 << 16), "agent": text(255), "auth": text(255),
        "proof": Field([b"", b"x" * 99], [], (bytes,)),
    },
    Kind.ENQ: {
        "id": UUID, "module": NAME, "delay_us": DELAY, "key": KEY, "target_worker": NAME, "at_us": AT,
        "if_exists": words("refuse", "keep", "replace", "reschedule"), "priority": numbers(-9, 9), "max_attempts": ATTEMPTS,
        "timeout_us": LENGTH, "expires_us": OPTIONAL_DELAY, "retain_us": OPTIONAL_DELAY, "version": SPECIFIER,
    },
    Kind.CLOCK: {"until_us": numbers(0, 1 << 62, optional=True)},
    Kind.STAT: {**NAMED, "params": BOOL},
    Kind.WAIT: {**NAMED, "progress": BOOL},
    Kind.CANCEL: {"request": UUID, **NAMED, "running": BOOL},
    Kind.EXT: {"request": UUID, **NAMED, "delta_us": numbers(-TEN_YEARS_US, TEN_YEARS_US, optional=True), "at_us": AT},
    Kind.REQUEUE: {"request": UUID, **NAMED, "delay_us": DELAY, "at_us": AT},
    Kind.LIST: {
        "state": STATE, "module": OPTIONAL_NAME, "target_worker": OPTIONAL_NAME, "limit": numbers(1, messages.LIST_LIMIT_MAX),
        "after_a": CURSOR, "after_b": CURSOR, "key_prefix": KEY, "due_before_us": AT, "due_after_us": AT,
        "ended_after_us": AT, "error": text(255, optional=True), "params": BOOL,
    },
    Kind.ACT: {
        "request": UUID, "act": words("cancel", "ext", "requeue"), "state": STATE, "module": OPTIONAL_NAME,
        "target_worker": OPTIONAL_NAME, "key_prefix": KEY, "due_before_us": AT, "due_after_us": AT, "ended_after_us": AT,
        "error": text(255, optional=True), "dry_run": BOOL, "running": BOOL,
        "delta_us": numbers(-TEN_YEARS_US, TEN_YEARS_US, optional=True), "at_us": AT,
        "limit": numbers(1, messages.LIST_LIMIT_MAX), "end_seq": CURSOR, "after_a": CURSOR, "after_b": CURSOR,
        "run": OPTIONAL_UUID,
    },
    Kind.RESUME_LENDING: {"request": UUID},
    Kind.INFO: {},
    Kind.MODULES: {},
    Kind.WORKERS: {},
    Kind.BACKUP: {"backup": UUID, "part": numbers(0, 1 << 62)},
    Kind.JOIN: {"name": NAME, "instance": UUID, "only_targeted": BOOL, "pid": numbers(0, 1 << 32)},
    Kind.ANNOUNCE: {
        "name": NAME, "distribution": text(255), "version": text(255), "isolation": text(32), "max_attempts": ATTEMPTS,
        "timeout_us": LENGTH, "backoff_us": OPTIONAL_DELAY, "backoff_max_us": OPTIONAL_DELAY,
        "broken": long_text(messages.ERROR_BYTES_MAX, optional=True),
    },
    Kind.RESUME: HELD,
    Kind.CREDIT: {"capacity": numbers(0, 8_000), "processes": numbers(0, 8_000)},
    Kind.BEAT: HELD,
    Kind.SUCCEED: {**HELD, "result_error": words("TOO_LARGE", "UNSERIALIZABLE", optional=True)},
    Kind.FAIL: {
        **HELD, "kind": words("failed", "timeout", "stopped", "died"), "error": long_text(messages.ERROR_BYTES_MAX),
        "after_us": OPTIONAL_DELAY, "permanent": BOOL, "child_died": BOOL,
    },
    Kind.RELEASE: {**HELD, "replaced": BOOL},
    Kind.PROGRESS: {
        **HELD,
        "fraction": Field([0, 0.5, 1, 1.0], [-0.1, 1.1, math.nan, math.inf, -math.inf, 2, -1], (int, float)),
        "text": text(255),
    },
    Kind.PROCESSES: {
        "pid": numbers(0, 1 << 32), "role": text(32), "state": text(32), "jobs": numbers(0, 1 << 32),
        "since_us": numbers(0, messages.FOREVER_US), "memory_bytes": numbers(0, 1 << 62), "restarts": numbers(0, 1 << 32),
        "module": OPTIONAL_NAME, "job": OPTIONAL_UUID, "blocked_us": numbers(0, messages.FOREVER_US),
        "stack": long_text(messages.STACK_BYTES_MAX),
    },
}  # fmt: skip

WRONG_TYPES: list[Any] = [
    True, False, 0, 7, -7, 1.5, 0.0, math.nan, math.inf, "", "text", b"", ID, b"bytes", [], [1], {}, {"a": 1}, 1 << 63,
]  # fmt: skip
OPTIONS = {
    "delay_us": "time", "delta_us": "time", "after_a": "the place to go on from", "after_b": "the place to go on from",
    "backoff_max_us": "the longest backoff",
    **{f"{name}_us": name for name in ("at", "timeout", "expires", "retain", "backoff", "after", "until", "since", "blocked")},
    **{f"{name}_us": name for name in ("due_before", "due_after", "ended_after")},
}  # fmt: skip
EVERY = [(kind, name) for kind, fields in FIELDS.items() for name in fields]


def legal(kind: Kind, /, **instead: Any) -> list[Any]:
    return [instead.get(name, None if field.optional else field.good[0]) for name, field in FIELDS[kind].items()]


def test_every_kind_that_can_be_sent_to_a_server_is_tested_here() -> None:
    assert set(FIELDS) == set(TABLE)
    for kind, fields in FIELDS.items():
        record = TABLE[kind].record
        assert [name for name in record._fields if name != "payload"] == list(fields)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_legal_value_comes_through_as_it_was(kind: Kind, name: str) -> None:
    field = FIELDS[kind][name]
    for value in [*field.good, *([None] if field.optional else [])]:
        message = check(kind, legal(kind, **{name: value}))

        assert getattr(message, name) == value
        assert type(getattr(message, name)) is type(value)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_value_outside_its_limits_is_refused_by_name(kind: Kind, name: str) -> None:
    field = FIELDS[kind][name]
    for value in [*field.bad, *([] if field.optional else [None])]:
        with pytest.raises(BadRequest, match=f"^{OPTIONS.get(name, name)} is .*, not "):
            check(kind, legal(kind, **{name: value}))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_value_of_another_type_is_refused_by_name(kind: Kind, name: str) -> None:
    field = FIELDS[kind][name]
    for value in WRONG_TYPES:
        if type(value) in field.types:
            continue
        with pytest.raises(BadRequest, match=f"^{OPTIONS.get(name, name)} is .*, not "):
            check(kind, legal(kind, **{name: value}))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_refusal_speaks_no_names_and_units_of_the_wire(kind: Kind, name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check(kind, legal(kind, **{name: object()}))

    words = str(caught.value)
    assert "_us" not in words
    assert kind.name not in words
    assert "another kind of value" not in words  # Each check has words of its own.


@pytest.mark.parametrize(
    ("kind", "instead", "words"),
    [
        (Kind.ENQ, {"priority": 10}, "priority is -9 to 9, not 10"),
        (Kind.ENQ, {"timeout_us": 500_000}, "timeout is 1 s to 24 h, not 0.5 s"),
        (Kind.ENQ, {"delay_us": -1_000_000}, "time is 0 to 10 years, not -1 s"),
        (Kind.ENQ, {"at_us": 1 << 62}, "at is an instant within 1000 years of 1970, not 4611686018427387904"),
        (Kind.ENQ, {"if_exists": "drop"}, "if_exists is refuse, keep, replace or reschedule, not 'drop'"),
        (Kind.ENQ, {"key": ""}, "key is text of 1 to 255 bytes without control characters, not ''"),
        (Kind.ENQ, {"version": "2.0"}, "version is a specifier as pip has it, such as >=2,<3, not '2.0'"),
        (Kind.LIST, {"limit": 501}, "limit is 1 to 500, not 501"),
        (Kind.CANCEL, {"running": 1}, "running is true or false, not 1"),
    ],
)
def test_a_refusal_gives_the_limits_in_words(kind: Kind, instead: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check(kind, legal(kind, **instead))

    assert str(caught.value) == words


@pytest.mark.parametrize("kind", FIELDS)
def test_trailing_defaults_may_be_left_out_and_what_is_required_may_not(kind: Kind) -> None:
    record = TABLE[kind].record
    whole = legal(kind)
    required = sum(name not in record._field_defaults for name in FIELDS[kind])

    for count in range(required, len(whole) + 1):
        assert type(check(kind, whole[:count])) is record
    for count in [*range(required), len(whole) + 1, len(whole) + 9]:
        with pytest.raises(BadRequest, match=f"{kind.name} has"):
            check(kind, [*whole, *[None] * 9][:count])


@pytest.mark.parametrize("kind", FIELDS)
def test_a_message_goes_over_the_wire_and_back(kind: Kind) -> None:
    for place in range(3):
        values = [field.good[place % len(field.good)] for field in FIELDS[kind].values()]
        message = TABLE[kind].record(*values)

        fields, payload = item(message)

        assert decode(kind, msgpack.packb(fields), payload) == message


def test_trailing_defaults_are_not_sent() -> None:
    assert item(messages.Enq(ID, "Mail")) == ((ID, "Mail"), b"")
    assert item(messages.Enq(ID, "Mail", key="k", payload=b"p")) == ((ID, "Mail", 0, "k"), b"p")
    assert item(messages.Info()) == ((), b"")
    assert item(messages.Succeed(ID, 4, payload=b"r")) == ((ID, 4), b"r")


@pytest.mark.parametrize(
    ("kind", "most"), [(kind, {Kind.ENQ: PARAMS_BYTES_MAX, Kind.SUCCEED: RESULT_BYTES_MAX}.get(kind, 0)) for kind in FIELDS]
)
def test_a_payload_is_taken_up_to_its_limit(kind: Kind, most: int) -> None:
    check(kind, legal(kind), bytes(most))

    with pytest.raises(TooLarge, match=f"at most {most}"):
        check(kind, legal(kind), bytes(most + 1))


@pytest.mark.parametrize("packed", [b"", b"\xc0", b"\x91", b"\x81\x01\x02", b"\x94\x90\x90\x90\x90"])
def test_fields_that_cannot_be_read_are_refused(packed: bytes) -> None:
    for kind in FIELDS:
        with pytest.raises(BadRequest):
            decode(kind, packed, bytes(0) if packed else b"")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=17),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(list(FIELDS)), fields=st.lists(VALUES, max_size=13))
def test_any_fields_are_a_message_or_a_bad_request(kind: Kind, fields: list[Any]) -> None:
    said = TABLE[kind].record
    try:
        said = type(check(kind, fields))
    except BadRequest as error:
        text = str(error)
    else:
        text = ""

    assert said is TABLE[kind].record
    assert text.isascii()
    assert len(text) < 200


@pytest.mark.parametrize("value", ["\x1b[31m", "a\r\nb", "\u202e", "\ud800", b"\x1b", "x" * 10_000])
def test_a_refusal_shows_what_was_sent_without_its_control_characters(value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        check(Kind.ENQ, [ID, value])

    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 160


# Answers.


def test_an_error_goes_over_the_wire_and_back() -> None:
    error = answer_error(msgpack.unpackb(msgpack.packb(refusal(DuplicateKey("held", id="abc"))[0])))

    assert isinstance(error, DuplicateKey)
    assert (str(error), error.id) == ("held", "abc")


def test_an_error_without_details_sends_none() -> None:
    assert refusal(BadRequest("no")) == (("BAD_REQUEST", "no"), b"")
    assert len(refusal(BadRequest("x" * 50_000))[0][1]) == 1_000


def test_a_success_carries_no_error() -> None:
    assert answer_error(["OK", 1, 2]) is None


@pytest.mark.parametrize(
    "fields", [[], [None], [7], ["BUSY"], ["BUSY", None], ["BUSY", "m", None], ["BUSY", "m", [1]], ["NEW", "m", {}, 1, 2],
               ["BUSY", "m", {"message": 1}], ["BUSY", "m", {1: 2}]],
)  # fmt: skip
def test_any_answer_that_is_no_success_is_an_error(fields: list[Any]) -> None:
    error = answer_error(fields)

    assert isinstance(error, GivaliaError)
    assert isinstance(error, Busy) == (fields[:1] == ["BUSY"])


def test_codes_are_never_given_twice_and_the_ports_share_none() -> None:
    assert len({int(kind) for kind in Kind}) == len(Kind)
    assert not messages.CLIENT_KINDS & messages.WORKER_KINDS
    assert set(TABLE) - messages.CLIENT_KINDS - messages.WORKER_KINDS == {Kind.HELLO}


@pytest.mark.parametrize(
    "message",
    [
        messages.Heard(1, 5),
        messages.Dispatch(bytes(16), 1, "M", 1, 0),
        messages.Stop(bytes(16), 1),
        messages.Progressed(1, 0.5),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_later_server_says_at_the_end_is_passed_over(message: Any) -> None:
    fields = [field for name, field in zip(message._fields, message, strict=True) if name != "payload"]

    assert codec.told(type(message), [*fields, "news", 7]) == message
