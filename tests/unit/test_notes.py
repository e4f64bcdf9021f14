"""Messages between the supervisor and its processes arrive unchanged, in any pieces, within their size limit."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgpack
import pytest

from givalia_core.protocol.messages import Announce, Dispatch, FailReport, Progress, Release, Succeed
from givalia_core.worker import notes
from givalia_core.worker.notes import (
    Begin,
    CancelAsked,
    ChildReported,
    Drain,
    End,
    HostReady,
    Logged,
    PluginBusy,
    PluginsTold,
    Serve,
    Start,
    Stuck,
)

JOB = Dispatch(b"j" * 16, 7, "Sample", 2, 1_000, "key", payload=b"\x93\x01\x02\x03")
SAID: list[Any] = [
    Serve({"name": "any", "grace": 30.0}, {"Deadly": "it died"}),
    HostReady([list(Announce("Sample", "example", "1"))], {"Sample": "example:Sample"}, ["before_run"], ["Logging"]),
    PluginBusy(b"i" * 16, 7, "before_run of plugin Logging"),
    Start(),
    Drain(is_over=True),
    JOB,
    End(JOB.id, 7, "timeout", "timeout: it ran longer than 1 s"),
    Stuck(JOB.id, 7),
    PluginsTold(JOB.id, 7),
    Succeed(JOB.id, 7, None, b"\xc0"),
    FailReport(JOB.id, 7, "failed", "no", None, False, True),
    Release(JOB.id, 7, True),
    Progress(JOB.id, 7, 0.5, "half"),
    Logged({"name": "givalia.job", "msg": "a\nline"}),
]


def test_notes_arrive_as_they_were_said() -> None:
    assert notes.NoteReader().feed(notes.pack(SAID)) == SAID


def test_notes_arrive_whole_in_whatever_pieces() -> None:
    data = notes.pack(SAID[:4]) + notes.pack(SAID[4:])
    reader = notes.NoteReader()

    heard = [note for place in range(len(data)) for note in reader.feed(data[place : place + 1])]

    assert heard == SAID


def test_a_dispatch_inside_another_note_can_be_made_again() -> None:
    begin, cancelled = notes.NoteReader().feed(notes.pack([Begin(tuple(JOB), "example:Sample"), CancelAsked(tuple(JOB), True)]))

    assert Dispatch(*begin.job) == Dispatch(*cancelled.job) == JOB


def test_how_a_job_ended_travels_with_its_report() -> None:
    (ended,) = notes.NoteReader().feed(notes.pack([ChildReported(True, Succeed(JOB.id, 7, None, b"\x01"), 0.5)]))

    assert Succeed(*ended.report) == Succeed(JOB.id, 7, None, b"\x01")


def record(packed: bytes, size: int | None = None) -> bytes:
    size = len(packed) if size is None else size
    return struct.pack("<III", size, size ^ 0xFFFFFFFF, zlib.crc32(packed)) + packed


@pytest.mark.parametrize(
    "data",
    [
        record(b"", 1 << 20),
        b"\xff" * 12,
        record(b"\xc1"),
        record(msgpack.packb([(99, [])])),
        record(msgpack.packb([(0, [1, 2, 3, 4, 5])])),
    ],
    ids=["too large", "no record", "no msgpack", "no such note", "too many fields"],
)
def test_what_nobody_of_ours_says_is_refused(data: bytes) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  (Whatever it is: the process that said it is ended.)
        notes.NoteReader(1 << 16).feed(data)


@pytest.mark.parametrize("place", range(60))
@pytest.mark.parametrize("what", ["a byte more", "a byte less", "another byte"])
def test_what_a_job_does_to_the_connection_shows_with_the_next_record_at_the_latest(what: str, place: int) -> None:
    data = notes.pack([Succeed(JOB.id, 7, None, b"result" * 5)])
    assert len(data) > place
    cut = data[place + 1 :] if what != "a byte more" else data[place:]
    spoiled = data[:place] + (b"" if what == "a byte less" else bytes([data[place] ^ 1])) + cut

    with pytest.raises(ValueError, match="record"):
        notes.NoteReader(1 << 20).feed(spoiled + notes.pack([Start()]))
