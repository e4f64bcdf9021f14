"""Exports as streams: how jobs are cut into records, and how far an export that is not whole is believed."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from typing import Any

import msgpack
import pytest

from givalia_core.clock import Mark
from givalia_core.errors import GivaliaError, StoreCorrupt, StoreFailed, StoreTooNew
from givalia_core.model import DONE, JOB_FIELDS, JOB_REQUIRED, WAITING, Job
from givalia_core.store import export_stream
from givalia_core.store.export_stream import ExportReader, ExportWriter, Footer, Header, Tally
from givalia_core.store.suite import MARK, waiting

FULL = waiting(
    3, key="ключ", state=DONE, ended_at_us=7, forget_at_us=9, version=4, fence=5, result=b"\x00", backoff_us=(1, 2),
    specifier=">=2", holder=b"h" * 16, error="Boom",
)  # fmt: skip


def header_of(jobs: list[Job], mark: Mark | None = MARK) -> Header:
    return Header(11, 22, mark, dict(Counter((job.module, job.state) for job in jobs)), "1.2.3")


def written(jobs: list[Job], record_jobs: int = 2, seq: int = 0, fence: int = 0) -> bytes:
    file = io.BytesIO()
    writer = ExportWriter(file, header_of(jobs), record_jobs)
    for job in jobs:
        writer.add(job)
    writer.end(seq, fence)
    return file.getvalue()


def read(export: bytes) -> tuple[list[list[Job]], GivaliaError | None]:
    """Return the records that are believed, and the error that ends them."""
    records: list[list[Job]] = []
    try:
        for record in ExportReader(io.BytesIO(export)).records():
            records.append(record)
    except GivaliaError as error:
        return records, error
    return records, None


def ends_of(export: bytes) -> list[int]:
    """Return where each record of the stream ends: those of the header, of the jobs, and of the footer."""
    unpacker = msgpack.Unpacker(io.BytesIO(export))
    return [unpacker.tell() for _ in unpacker]


def made_of(*bodies: Any) -> bytes:
    """Return a stream of these records whose checksums are right."""
    crc, stream = 0, b""
    for body in map(msgpack.packb, bodies):
        crc = zlib.crc32(body, crc)
        stream += msgpack.packb((body, crc))
    return stream


@pytest.mark.parametrize("mark", [MARK, None])
def test_every_field_the_clocks_and_the_counts_come_back(mark: Mark | None) -> None:
    jobs = [waiting(1), FULL]
    file = io.BytesIO()
    writer = ExportWriter(file, header_of(jobs, mark))
    for job in jobs:
        writer.add(job)
    assert writer.end(0, 0) == Footer(2, 3, 5)

    reader = ExportReader(io.BytesIO(file.getvalue()))

    assert reader.header == header_of(jobs, mark)
    assert list(reader.records()) == [jobs]
    assert reader.footer == Footer(2, 3, 5)


@pytest.mark.parametrize(("count", "cut"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_a_record_that_has_its_number_of_jobs_ends_when_another_comes(count: int, cut: list[int]) -> None:
    records, error = read(written([waiting(seq) for seq in range(1, count + 1)], 3))

    assert error is None
    assert [len(record) for record in records] == cut


def test_a_record_may_have_just_its_most_bytes_and_only_a_single_job_more(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [waiting(seq, params=bytes(100)) for seq in range(1, 4)]
    row = len(msgpack.packb((*jobs[0].front(), jobs[0].params)))

    monkeypatch.setattr(export_stream, "RECORD_BYTES", 2 * row)
    assert [len(record) for record in read(written(jobs, 100))[0]] == [2, 1]
    monkeypatch.setattr(export_stream, "RECORD_BYTES", 2 * row - 1)
    assert [len(record) for record in read(written(jobs, 100))[0]] == [1, 1, 1]
    monkeypatch.setattr(export_stream, "RECORD_BYTES", row // 2)
    assert [len(record) for record in read(written(jobs, 100))[0]] == [1, 1, 1]


def test_the_footer_has_the_numbers_of_the_store_or_of_the_jobs_whichever_are_higher() -> None:
    for seq, fence, expected in ((2, 4, Footer(1, 3, 5)), (9, 4, Footer(1, 9, 5)), (2, 8, Footer(1, 3, 8))):
        reader = ExportReader(io.BytesIO(written([FULL], seq=seq, fence=fence)))
        assert list(reader.records()) == [[FULL]]
        assert reader.footer == expected


@pytest.mark.parametrize("seq", [2, 1])
def test_a_job_that_does_not_come_behind_the_last_one_is_refused(seq: int) -> None:
    tally = Tally()
    tally.add(waiting(2))

    with pytest.raises(StoreCorrupt, match=f"job {seq} comes behind job 2"):
        tally.add(waiting(seq))

    assert (tally.jobs, tally.seq) == (1, 2)


def test_jobs_that_are_not_those_that_the_store_counted_get_no_footer() -> None:
    tally = Tally()
    tally.add(waiting(1))
    tally.compare({("Mail", WAITING): 1, ("Fax", DONE): 0})
    file = io.BytesIO()
    writer = ExportWriter(file, header_of([waiting(1), waiting(2)]))
    writer.add(waiting(1))

    with pytest.raises(StoreCorrupt, match="counts 2 jobs and lists 1"):
        writer.end(0, 0)

    assert len(ends_of(file.getvalue())) == 1


def test_an_export_that_is_cut_anywhere_is_not_whole_and_its_sound_records_are_read() -> None:
    jobs = [waiting(seq) for seq in range(1, 6)]
    export = written(jobs)
    header, *ends = ends_of(export)

    for cut in range(len(export)):
        records, error = read(export[:cut])

        assert isinstance(error, StoreCorrupt)
        assert records == [jobs[:2], jobs[2:4], jobs[4:]][: sum(end <= cut for end in ends[:-1])]
        assert cut < header or str(error).startswith("the export ends")


def test_a_byte_that_differs_ends_the_reading_before_its_record() -> None:
    jobs = [waiting(seq) for seq in range(1, 6)]
    export = written(jobs)
    ends = ends_of(export)

    for place in range(len(export)):
        records, error = read(export[:place] + bytes([export[place] ^ 4]) + export[place + 1 :])

        assert isinstance(error, StoreCorrupt)
        whole = sum(end <= place for end in ends)
        assert records == [jobs[:2], jobs[2:4], jobs[4:]][: max(whole - 1, 0)]


def test_something_behind_the_end_is_noticed_and_every_job_was_read() -> None:
    records, error = read(written([waiting(1)]) + b"\x00")

    assert records == [[waiting(1)]]
    assert str(error) == "something follows the end of the export"


def test_a_file_that_fails_is_a_failed_export_and_no_damaged_one() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "disk trouble")

    with pytest.raises(StoreFailed, match=r"at its beginning.*disk trouble"):
        ExportReader(Failing())


def header_with(fields: list[str], **more: Any) -> dict[str, Any]:
    shown = {"magic": export_stream.MAGIC, "format": export_stream.FORMAT, "version": "9.9", "fields": fields}
    return {**shown, "timer_us": 1, "wall_us": 2, "mark": None, "counts": [("Mail", "waiting", 1)], **more}


def test_fields_are_read_by_name_and_those_that_are_missing_get_their_defaults() -> None:
    fields = list(reversed(JOB_FIELDS[:JOB_REQUIRED]))
    row = [getattr(waiting(1), name) for name in fields]

    reader = ExportReader(io.BytesIO(made_of(header_with(fields), [row], {"end": {"jobs": 1, "seq": 1, "fence": 0}})))

    assert list(reader.records()) == [[waiting(1, answered=(), params=b"")]]


@pytest.mark.parametrize(
    ("header", "kind", "words"),
    [
        (header_with([*JOB_FIELDS, "mood"]), StoreTooNew, "written by Givalia 9.9: format 1 and the fields mood are not known"),
        (header_with([*JOB_FIELDS], format=2), StoreTooNew, "written by Givalia 9.9: format 2 are not known here"),
        (header_with([*JOB_FIELDS[1:]]), StoreCorrupt, "the jobs of the export have no seq"),
        (header_with([*JOB_FIELDS], magic="another"), StoreCorrupt, "this is not an export of Givalia"),
        (header_with([*JOB_FIELDS], timer_us=1.5), StoreCorrupt, "a record that Givalia did not write at its beginning"),
    ],
)
def test_a_header_that_this_version_cannot_read_is_refused_in_words(
    header: dict[str, Any], kind: type[GivaliaError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        ExportReader(io.BytesIO(made_of(header)))
