"""The line protocol of 2012: bytes to lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from givalia_core.errors import TooLarge
from givalia_core.protocol import lines

MAX = lines.LINE_BYTES_MAX


def test_a_line_comes_out_whole_when_it_came_in_byte_by_byte() -> None:
    reader = lines.LineReader()

    out = [reader.feed(bytes([byte])) for byte in b'{"a":1}\r\n{"b":2}\n']

    assert [line for fed in out for line in fed] == [b'{"a":1}', b'{"b":2}']
    assert not reader.is_mid_line


def test_a_thousand_lines_in_one_packet_come_out_in_order() -> None:
    sent = [b'{"n":%d}' % n for n in range(1000)]

    assert lines.LineReader().feed(b"\n".join(sent) + b"\n") == sent


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lf_and_crlf_end_a_line(end: bytes) -> None:
    assert lines.LineReader().feed(b"{}" + end + b"{ }" + end) == [b"{}", b"{ }"]


def test_empty_lines_and_surrounding_blanks_are_ignored() -> None:
    assert lines.LineReader().feed(b"\n\r\n  \t \n \t{ } \t\r\n\n") == [b"{ }"]


def test_a_line_without_its_end_is_waited_for() -> None:
    reader = lines.LineReader()

    assert reader.feed(b'{"a"') == []
    assert reader.is_mid_line
    assert reader.feed(b":1}\n") == [b'{"a":1}']


def test_reader_takes_no_bytes_as_nothing() -> None:
    assert lines.LineReader().feed(b"") == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("step", [1, 1000, MAX, MAX + 1, 2 * MAX])
def test_a_line_of_exactly_64_kib_is_taken_however_it_is_cut(end: bytes, step: int) -> None:
    reader = lines.LineReader()
    data = b"x" * MAX + end

    out = [line for at in range(0, len(data), step) for line in reader.feed(data[at : at + step])]

    assert out == [b"x" * MAX]


@pytest.mark.parametrize("over", [b"x" * (MAX + 1), b"x" * (MAX + 1) + b"\n", b" " * (MAX + 1), b"x" * MAX + b"\r\r"])
def test_one_byte_more_is_too_large(over: bytes) -> None:
    with pytest.raises(TooLarge):
        lines.LineReader().feed(over)


def test_a_line_too_large_in_pieces_is_refused_before_more_is_kept() -> None:
    reader = lines.LineReader()
    reader.feed(b"x" * MAX)

    with pytest.raises(TooLarge):
        reader.feed(b"x")

    assert not reader.is_mid_line
    with pytest.raises(TooLarge):
        reader.feed(b"\n{}\n")


def test_whole_lines_before_one_too_large_are_still_given_out() -> None:
    reader = lines.LineReader()

    assert reader.feed(b"{}\n{ }\n" + b"x" * (MAX + 1) + b"\n{}\n") == [b"{}", b"{ }"]

    assert reader.is_overlong
    with pytest.raises(TooLarge):
        reader.feed(b"")


@given(data=st.lists(st.sampled_from([b"\n", b"\r", b" ", b"{}", b"x" * 9, b"x" * MAX]), max_size=12), step=st.data())
@settings(max_examples=60, deadline=None)
def test_how_packets_are_cut_changes_nothing(data: list[bytes], step: st.DataObject) -> None:
    whole = b"".join(data)
    cuts = sorted(step.draw(st.lists(st.integers(0, len(whole)), max_size=6)))

    def read(pieces: list[bytes]) -> tuple[list[bytes], bool]:
        reader, out = lines.LineReader(), []
        try:
            for piece in pieces:
                out += reader.feed(piece)
        except TooLarge:
            assert reader.is_overlong
        return out, reader.is_overlong

    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(pieces) == read([whole])
