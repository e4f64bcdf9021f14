"""The line protocol of 2012: lines to messages, answers to lines."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, DuplicateKey, NotFound, TooLarge, WrongState
from givalia_core.model import TEN_YEARS_US
from givalia_core.protocol import codec, lines
from givalia_core.protocol.frames import FrameReader
from givalia_core.protocol.frames import encode as encode_frame
from givalia_core.protocol.messages import Cancel, Enq, Ext, Kind, Stat
from givalia_core.protocol.session import Port, Session

MAX = lines.LINE_BYTES_MAX
NEW_ID = bytes(range(16))
JOB_ID = uuid.UUID("0195b2f0-1111-7000-8000-00000000002a")
ENQ = {"time": 10, "module": "Sample", "params": "parameter sample", "key": "k", "target_worker": "any"}
# What no field of any job may be; texts and numbers are judged field by field.
WRONG_ALIKE: list[Any] = [True, False, [], [1], {}, {"a": 1}, ""]
HOSTILE_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "-1e308",
    "1e400",
    "9" * 400,
    "9" * 5000,
    "1e13",
    "10000000000000",
]


def decode(line: bytes | str) -> lines.Request:
    return lines.decode(line.encode() if isinstance(line, str) else line, lambda: NEW_ID)


def ask(action: Any, job: Any) -> lines.Request:
    return decode(json.dumps({"action": action, "job": job}))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ENQ.items() if key != name}


def refusal(line: bytes | str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decode(line)
    return caught.value


def decoded_or_refused(line: bytes) -> lines.Request | bytes:
    try:
        return decode(line)
    except (BadRequest, TooLarge) as error:
        return lines.fail(error)


def read(line: bytes) -> Any:
    """An answer, which must be one line of printable ASCII."""
    assert line.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    return json.loads(line)


def answer(kind: Kind, *fields: Any) -> Any:
    return read(lines.encode(kind, codec.read_answer(kind, fields)))


def cpu_seconds(line: bytes) -> float:
    """The shortest of three tries, so that a busy machine fails no test."""
    times = []
    for _ in range(3):
        began = time.process_time()
        decoded_or_refused(line)
        times.append(time.process_time() - began)
        if times[-1] < 0.05:
            break
    return min(times)


# decode: what is taken


def test_enq_becomes_the_message_of_a_framed_client() -> None:
    assert ask("enq", ENQ) == (
        Kind.ENQ,
        Enq(NEW_ID, "Sample", 10 * SECOND_US, "k", "any", payload=msgpack.packb("parameter sample")),
    )


def test_enq_needs_no_more_than_time_and_module() -> None:
    assert ask("enq", {"time": 0, "module": "Sample"}).message == Enq(NEW_ID, "Sample", payload=msgpack.packb(None))


def test_stat_cancel_and_ext_name_their_job_by_key() -> None:
    assert ask("stat", {"key": "k"}) == (Kind.STAT, Stat("k"))
    assert ask("cancel", {"key": "k"}) == (Kind.CANCEL, Cancel(NEW_ID, "k"))
    assert ask("ext", {"key": "k", "time": 30}) == (Kind.EXT, Ext(NEW_ID, "k", None, 30 * SECOND_US))


def test_stat_cancel_and_ext_name_their_job_by_id() -> None:
    name = {"id": str(JOB_ID)}

    assert ask("stat", name).message == Stat(None, JOB_ID.bytes)
    assert ask("cancel", name).message == Cancel(NEW_ID, None, JOB_ID.bytes)
    assert ask("ext", {**name, "time": 1}).message == Ext(NEW_ID, None, JOB_ID.bytes, SECOND_US)


def test_the_key_counts_where_both_names_are_given_as_in_2012() -> None:
    assert ask("cancel", {"key": "k", "id": "not looked at"}).message == Cancel(NEW_ID, "k")


def test_each_changing_request_gets_a_new_id() -> None:
    ids = iter([b"a" * 16, b"b" * 16])

    made = [lines.decode(b'{"action":"cancel","job":{"key":"k"}}', lambda: next(ids)).message.request for _ in range(2)]

    assert made == [b"a" * 16, b"b" * 16]


@pytest.mark.parametrize(("given_as", "key"), [
    (7, "7"), (0, "0"), (-7, "-7"), (1.5, "1.5"), (1e22, "10000000000000000000000"), (0.000001, "0.000001"),
    (10**40, "1" + "0" * 40), ("7", "7"), ("ключ 😀", "ключ 😀"), ("k" * 255, "k" * 255),
])  # fmt: skip
def test_a_number_as_key_is_its_decimal_text(given_as: Any, key: str) -> None:
    assert ask("stat", {"key": given_as}).message == Stat(key)
    assert ask("enq", {**ENQ, "key": given_as}).message.key == key


@pytest.mark.parametrize(("seconds", "us"), [
    (0, 0), (-0.0, 0), (0.5, SECOND_US // 2), (1e-9, 0), (10, 10 * SECOND_US), (1e3, 1000 * SECOND_US),
    (TEN_YEARS_US // SECOND_US, TEN_YEARS_US),
])  # fmt: skip
def test_time_is_seconds(seconds: float, us: int) -> None:
    assert ask("enq", {**ENQ, "time": seconds}).message.delay_us == us


def test_ext_may_bring_the_due_forward() -> None:
    assert ask("ext", {"key": "k", "time": -30}).message.delta_us == -30 * SECOND_US


@pytest.mark.parametrize("params", [
    None, True, 0, -1, 1.5, 1e308, 2**64 - 1, -(2**63), "", "nul \x00", "\U0001f600", [], {}, {"": [{"a": None}]}, [[[]]],
])  # fmt: skip
def test_params_are_any_json_value(params: Any) -> None:
    assert msgpack.unpackb(ask("enq", {**ENQ, "params": params}).message.payload) == params


def test_unknown_names_are_ignored() -> None:
    asked = decode(json.dumps({"action": "enq", "job": {**ENQ, "id": 5, "priority": "high", "x": [1]}, "version": 1}))

    assert asked == ask("enq", ENQ)


def test_null_is_the_same_as_nothing() -> None:
    assert ask("enq", {**ENQ, "target_worker": None, "key": None}).message == ask("enq", without("key")).message


def test_a_full_line_of_params_is_taken() -> None:
    head = b'{"action":"enq","job":{"time":1,"module":"M","params":"'
    line = head + b"x" * (MAX - len(head) - 3) + b'"}}'

    assert len(line) == MAX
    assert len(decode(line).message.payload) > MAX - 100


@pytest.mark.parametrize(("action", "job"), [
    ("enq", ENQ), ("enq", without("key")), ("enq", {**ENQ, "target_worker": "w1", "params": [1, {"a": 2.5}]}),
    ("stat", {"key": 5}), ("stat", {"id": str(JOB_ID)}), ("cancel", {"key": "k"}), ("ext", {"key": "k", "time": -1.5}),
])  # fmt: skip
def test_what_a_line_asks_survives_the_framed_protocol(action: str, job: Any) -> None:
    kind, message = ask(action, job)

    (frame,) = FrameReader().feed(encode_frame(kind, 1, [codec.item(message)]))

    assert codec.decode(kind, *frame.items[0]) == message  # type: ignore[union-attr]


# decode: what is refused


@pytest.mark.parametrize("wrong", [*WRONG_ALIKE, None, 0, "ENQ", "requeue", "__class__", "enq ", "\x1b[2J"])
def test_an_unknown_action_is_refused(wrong: Any) -> None:
    with pytest.raises(BadRequest, match="unknown action") as caught:
        ask(wrong, ENQ)
    assert not lines.is_malformed(caught.value)


def test_a_line_without_action_or_job_is_refused() -> None:
    assert "unknown action" in str(refusal("{}"))
    assert "job must be an object" in str(refusal('{"action":"enq"}'))


@pytest.mark.parametrize("wrong", [True, None, 0, 1.5, "foobar", [], [ENQ]])
@pytest.mark.parametrize("action", ["enq", "stat", "cancel", "ext"])
def test_a_job_that_is_no_object_is_refused(action: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match="job must be an object"):
        ask(action, wrong)


@pytest.mark.parametrize(("action", "job", "words"), [
    ("enq", without("time"), "enq needs a time"), ("enq", {**ENQ, "time": None}, "enq needs a time"),
    ("enq", without("module"), "enq needs a module"), ("enq", {**ENQ, "module": None}, "enq needs a module"),
    ("stat", {}, "stat needs a key or an id"), ("stat", {"key": None, "id": None}, "stat needs a key or an id"),
    ("cancel", {}, "cancel needs a key or an id"), ("ext", {"time": 1}, "ext needs a key or an id"),
    ("ext", {"key": "k"}, "ext needs a time"),
])  # fmt: skip
def test_what_is_missing_is_named(action: str, job: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        ask(action, job)
    assert not lines.is_malformed(caught.value)


@pytest.mark.parametrize("wrong", [*WRONG_ALIKE, "10", "NaN", TEN_YEARS_US // SECOND_US + 1, 10**20, 10**250])
@pytest.mark.parametrize("action", ["enq", "ext"])
def test_time_is_a_number_within_ten_years(action: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match="time is"):
        ask(action, {**ENQ, "time": wrong})


@pytest.mark.parametrize("wrong", [-1, -0.5, -1e300])
def test_a_time_before_now_is_refused(wrong: float) -> None:
    with pytest.raises(BadRequest, match="time is"):
        ask("enq", {**ENQ, "time": wrong})


@pytest.mark.parametrize("number", HOSTILE_NUMBERS)
@pytest.mark.parametrize("action", ["enq", "ext"])
def test_no_hostile_number_is_a_time(action: str, number: str) -> None:
    refusal(f'{{"action":"{action}","job":{{"key":"k","module":"M","time":{number}}}}}')


@pytest.mark.parametrize(
    "wrong", [*WRONG_ALIKE, 0, 7, 1.5, "1x", "a b", "a/b", "../x", "os;x", "x" * 129, "naïve", "a\n", "\x00"]
)
@pytest.mark.parametrize("field", ["module", "target_worker"])
def test_module_and_worker_are_plain_names(field: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match=f"{field} is a name"):
        ask("enq", {**ENQ, field: wrong})


@pytest.mark.parametrize(
    "wrong", [*WRONG_ALIKE, "a\x00b", "\x00", "a\nb", "\x1b[31m", "\x7f", "\x85", "k" * 256, "é" * 128, 1e300]
)
@pytest.mark.parametrize("action", ["enq", "stat", "cancel", "ext"])
def test_a_key_is_short_text_without_control_characters(action: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match="key is text"):
        ask(action, {**ENQ, "key": wrong})


@pytest.mark.parametrize("wrong", [*WRONG_ALIKE, 0, 7, 1.5, "k", "0" * 31, "0" * 33, "\x00" * 32])
@pytest.mark.parametrize("action", ["stat", "cancel", "ext"])
def test_an_id_is_a_uuid(action: str, wrong: Any) -> None:
    with pytest.raises(BadRequest, match="an id is a UUID"):
        ask(action, {"id": wrong, "time": 1})


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**250])
@pytest.mark.parametrize("wrap", ["%d", "[%d]", '{"a":[%d]}'])
def test_params_hold_no_integer_beyond_64_bits(number: int, wrap: str) -> None:
    assert "64 bits" in str(refusal('{"action":"enq","job":{"time":1,"module":"M","params":%s}}' % (wrap % number)))


@pytest.mark.parametrize("value", [
    r'"\ud800"', r'"\uDFFF"', r'"a\ud800b"', r'["\udc00\ud800"]', r'{"\ud800":1}', r'{"a":{"b":["\udead"]}}',
])  # fmt: skip
@pytest.mark.parametrize("field", ["params", "key", "module", "target_worker", "id", "unknown"])
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(field: str, value: str) -> None:
    job = without(field)
    line = json.dumps({"action": "enq", "job": job})[:-2] + f', "{field}": {value}}}}}'

    assert lines.is_malformed(refusal(line))


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert decode(r'{"action":"stat","job":{"key":"\ud83d\ude00"}}').message.key == "\U0001f600"
    assert decode(r'{"action":"stat","job":{"key":"\\ud800"}}').message.key == r"\ud800"


def nested(depth: int) -> bytes:
    """An enq whose params bring the whole line to this depth; brackets in its texts do not count."""
    deep = b"[" * (depth - 2) + b"]" * (depth - 2)
    return b'{"action":"enq","job":{"time":1,"module":"M","key":"\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[","params":%b}}' % deep


def test_depth_is_limited_exactly_and_texts_do_not_count() -> None:
    assert decode(nested(lines.DEPTH_MAX)).kind is Kind.ENQ
    assert lines.is_malformed(refusal(nested(lines.DEPTH_MAX + 1)))
    assert lines.is_malformed(refusal(nested(30_000)))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert msgpack.unpackb(ask("enq", {**ENQ, "params": [[]] * 10_000}).message.payload) == [[]] * 10_000


MALFORMED = [
    b"{", b"}", b"[]", b"[{}]", b"1", b"null", b'"text"', b"{}{}", b"{} x", b"{'action':'enq'}", b'{"action":}', b"{,}",
    b'{"a":"\n"}', b'{"a":"\x00"}', b'{"a":\x00}', b"{\x00", b"\x00", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}",
    b'{"a":1,}', b'{"a":"\xff"}',
    b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\x80"}', b'{"a":"\\x41"}', b'{"a":"\\u12"}', b'{"a":01}', b'{"a":+1}', b'{"a":.5}',
    b'{"a":1,"a":1}', b'{"action":"enq","action":"cancel","job":{}}', b'{"job":{"params":{"a":1,"\\u0061":2}}}',
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":-1e400}', b'{"a":%b}' % (b"9" * 5000),
    b'{"a":0.%b}' % (b"1" * 5000), b'{"a":[%b]}' % (b"9" * 5000), b"GET / HTTP/1.1", b"\x93GV1", b"\\", b'"', b'{"',
]  # fmt: skip


@pytest.mark.parametrize("line", MALFORMED)
def test_what_is_not_one_json_object_is_malformed(line: bytes) -> None:
    error = refusal(line)

    assert lines.is_malformed(error)
    assert len(str(error)) < 200


def test_bad_json_names_the_place() -> None:
    assert str(refusal(b'{"action": oops}')) == "bad JSON: Expecting value at character 11"
    assert str(refusal(b'{"a":"\xff"}')) == "bad JSON: not UTF-8 at byte 6"


def test_a_name_that_stands_twice_is_named() -> None:
    assert str(refusal(b'{"a":1,"b":2,"c":3,"b":4}')) == "bad JSON: the name 'b' stands twice in one object"


ENQ_HEAD = b'{"action":"enq","job":{"time":1,"module":"M","params":'
BOMBS = {
    "brackets": b"[" * MAX,
    "closing brackets": b"]" * MAX,
    "braces": b'{"a":' * (MAX // 5),
    "pairs": b"[]" * (MAX // 2),
    "quotes": b'"' * MAX,
    "escaped quotes": b'"' + b'\\"' * (MAX // 2 - 1),
    "escaped quotes after brackets": b"[" * 33 + b'"' + b'\\"' * 32_000,
    "quotes after brackets": b"[" * 20 + b"]" * 20 + b"{" * 20 + b'"\\' * 32_000,
    "digits": b'{"a":' + b"9" * (MAX - 6) + b"}",
    "fraction": b'{"a":1.' + b"9" * (MAX - 8) + b"}",
    "exponent": b'{"a":1e' + b"9" * (MAX - 8) + b"}",
    "ints": ENQ_HEAD + b"[" + b"1," * 32_000 + b"1]}}",
    "floats": ENQ_HEAD + b"[" + b"1e9," * 16_000 + b"1]}}",
    "long floats": ENQ_HEAD + b"[" + (b"1." + b"7" * 250 + b",") * 250 + b"1]}}",
    "empty arrays": ENQ_HEAD + b"[" + b"[]," * 21_000 + b"1]}}",
    "names": ENQ_HEAD + b"{" + b",".join(b'"%d":0' % n for n in range(7_000)) + b"}}}",
    "last name twice": ENQ_HEAD + b"{" + b",".join(b'"%d":0' % n for n in range(7_000)) + b',"6999":0}}}',
    "same name": ENQ_HEAD + b"{" + b'"a":0,' * 10_000 + b'"a":0}}}',
    "surrogates": ENQ_HEAD + b'"' + b"\\ud800" * 10_000 + b'"}}',
    "pairs of surrogates": ENQ_HEAD + b'"' + b"\\ud83d\\ude00" * 5_000 + b'"}}',
    "escapes": ENQ_HEAD + b'"' + b"\\n" * 32_000 + b'"}}',
    "blanks": b"{" + b" " * (MAX - 2) + b"}",
    "long action": b'{"action":"' + b"\\u0001" * 10_000 + b'"}',
    "long id": b'{"action":"stat","job":{"id":"' + b"\\u0001" * 10_000 + b'"}}',
    "listed id": b'{"action":"stat","job":{"id":[' + b"1," * 30_000 + b"1]}}",
    "long key": b'{"action":"stat","job":{"key":"' + "é".encode() * 30_000 + b'"}}',
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_line_keeps_the_server_busy(name: str) -> None:
    assert len(BOMBS[name]) <= MAX
    assert cpu_seconds(BOMBS[name]) < 0.05


_number = st.sampled_from([0, -1, 2**63, 2**64, 10**19, -(10**30), 1e308, -0.0, 1.5]) | st.floats() | st.integers()
_text = st.sampled_from(["", "k", "any", "Sample", "\x00", "\ud800", "\x1b", str(JOB_ID), "x" * 300]) | st.text(max_size=20)
_value = st.recursive(
    st.none() | st.booleans() | _number | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)


def _mostly(sound: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 3).flatmap(lambda roll: sound if roll else _value)


_job = st.fixed_dictionaries({}, optional={name: _mostly(st.just(value)) for name, value in {**ENQ, "id": str(JOB_ID)}.items()})
_action = st.sampled_from(["enq", "stat", "cancel", "ext"])
_asked = st.fixed_dictionaries({"action": _mostly(_action), "job": _mostly(_job)}) | _value
_broken = st.tuples(_asked.map(lambda asked: json.dumps(asked).encode()), st.binary(max_size=4), st.integers(0, 200)).map(
    lambda parts: parts[0][: parts[2]] + parts[1] + parts[0][parts[2] + len(parts[1]) :]
)
_line = _asked.map(lambda asked: json.dumps(asked).encode()) | _broken | st.binary(max_size=200)


@given(line=_line)
@settings(max_examples=700, deadline=None)
def test_any_line_is_a_legal_message_or_a_refusal_in_printable_words(line: bytes) -> None:
    assert cpu_seconds(line) < 0.05
    out = decoded_or_refused(line)

    if isinstance(out, bytes):
        assert read(out)["response"] == "fail"
    else:
        fields, payload = codec.item(out.message)
        assert codec.decode(out.kind, msgpack.packb(fields), payload) == out.message
        assert out.kind is not Kind.ENQ or msgpack.unpackb(payload) == json.loads(line)["job"].get("params")


# encode

STATUS = {
    "id": JOB_ID.bytes, "key": "k", "module": "Sample", "target_worker": "any", "priority": 0, "state": "waiting",
    "due_us": 1_750_000_000 * SECOND_US, "timeleft_us": 9_999_999, "attempts": 0, "max_attempts": 5, "worker": None,
    "progress": None, "stop_asked": False, "reason": None, "error": None, "result_error": None, "why": "not due for 10 s",
}  # fmt: skip


def test_enq_is_answered_with_the_id() -> None:
    assert answer(Kind.ENQ, "OK", JOB_ID.bytes, 1, "fsync") == {
        "response": "success",
        "desc": "enque successfull.",
        "id": str(JOB_ID),
    }


def test_cancel_and_ext_are_answered_in_the_words_of_2012() -> None:
    assert answer(Kind.CANCEL, "OK", "cancelled") == {"response": "success", "desc": "Cancel successfull."}
    assert answer(Kind.EXT, "OK", JOB_ID.bytes, 1) == {"response": "success", "desc": "Extend successfull."}


def test_a_cancel_that_only_asked_to_stop_does_not_say_cancelled() -> None:
    assert "asked to stop" in answer(Kind.CANCEL, "OK", "stop_requested")["desc"]


def test_stat_of_a_waiting_job_has_whole_seconds() -> None:
    assert answer(Kind.STAT, "OK", STATUS) == {
        "response": "success",
        "desc": {
            "que": True,
            "timeleft": 9,
            "id": str(JOB_ID),
            "state": "waiting",
            "attempts": 0,
            "worker": None,
            "error": None,
            "why": "not due for 10 s",
        },
    }


def test_stat_of_a_ready_job_is_queued_with_no_time_left() -> None:
    desc = answer(Kind.STAT, "OK", {**STATUS, "state": "ready", "timeleft_us": 0})["desc"]

    assert (desc["que"], desc["timeleft"]) == (True, 0)


@pytest.mark.parametrize("state", ["running", "done", "dead", "cancelled"])
def test_stat_of_a_job_that_started_or_ended_is_not_queued(state: str) -> None:
    desc = answer(Kind.STAT, "OK", {**STATUS, "state": state, "timeleft_us": None, "attempts": 2, "worker": "w1"})["desc"]

    assert desc["que"] is False
    assert "timeleft" not in desc
    assert (desc["state"], desc["attempts"], desc["worker"]) == (state, 2, "w1")


def test_stat_of_an_unknown_key_is_a_success() -> None:
    said = lines.encode(Kind.STAT, NotFound("no job has the key k"))

    assert json.loads(said) == {"response": "success", "desc": {"que": False}}


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.EXT])
def test_an_unknown_key_fails_elsewhere(kind: Kind) -> None:
    assert answer(kind, *codec.refusal(NotFound("no job"))[0]) == {"response": "fail", "desc": "Key was not found."}


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"action": "ext", "job": {"key": "k", "time": 1}}, "Key was not found."),
        ({"action": "cancel", "job": {"key": "k"}}, "Key was not found."),
        ({"action": "cancel", "job": {"id": str(JOB_ID)}}, "the job is done"),
    ],
)
def test_a_key_whose_last_job_ended_is_not_found_as_in_2012(action: dict[str, Any], words: str) -> None:
    session = Session(Port.CLIENT)
    (asked,) = session.feed(json.dumps(action).encode() + b"\n")

    said = session.answer(asked.request, [WrongState("the job is done", state="done")])

    assert json.loads(said) == {"response": "fail", "desc": words}


def test_a_running_job_of_a_key_is_refused_in_lines_as_before() -> None:
    session = Session(Port.CLIENT)
    (asked,) = session.feed(b'{"action":"cancel","job":{"key":"k"}}\n')

    said = session.answer(asked.request, [WrongState("the job is running", state="running")])

    assert json.loads(said)["desc"] == "the job is running"


def test_a_live_key_is_refused_in_exactly_these_words() -> None:
    said = lines.encode(Kind.ENQ, DuplicateKey("key k is held by a live job", id=str(JOB_ID)))

    assert said == b'{"response":"fail","desc":"Key already exists."}\n'


@pytest.mark.parametrize("error", [
    WrongState("the job is running", state="running"), Busy("too many", retry_after=1.0), BadRequest("no"), TooLarge("big"),
])  # fmt: skip
@pytest.mark.parametrize("kind", [Kind.ENQ, Kind.STAT, Kind.CANCEL, Kind.EXT])
def test_other_refusals_fail_with_their_words(kind: Kind, error: BadRequest) -> None:
    assert answer(kind, *codec.refusal(error)[0]) == {"response": "fail", "desc": str(error)}


def test_no_control_character_reaches_a_terminal() -> None:
    hostile = "\x1b[2J\r\n\x00\x7f\x85\u202e\ud800\U0001f600"

    assert answer(Kind.STAT, "OK", {**STATUS, "error": hostile, "why": hostile})["desc"]["why"] == hostile
    assert answer(Kind.ENQ, "BAD_REQUEST", hostile)["desc"] == hostile


def test_a_line_that_was_refused_unread_can_be_answered() -> None:
    assert json.loads(lines.fail(refusal(b"{"))) == {
        "response": "fail",
        "desc": "bad JSON: Expecting property name enclosed in double quotes at character 1",
    }
