"""A queue that moves to another store is the same queue there, or the move ends with an error."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import pytest

from givalia_core.clock import SECOND_US, ManualClock, Mark, Now, TimerClock
from givalia_core.errors import GivaliaError, StoreCorrupt, StoreFailed, StoreFull, StoreLocked, StoreTooNew, StoreUnfit
from givalia_core.model import CANCELLED, DEAD, DONE, JOB_FIELDS, RUNNING, Answered, Job
from givalia_core.store import Memory, SQLite, export_stream, moving
from givalia_core.store.base import FENCE_COUNTER_BITS, SCAN_MAX, Filter, Found, Opened, Store, Wanted
from givalia_core.store.export_stream import FORMAT, MAGIC, ExportReader, ExportWriter, Footer, Header
from givalia_core.store.shared import Watched
from givalia_core.store.sqlite import copies, disk
from givalia_core.store.suite import MARK, NOW, StoreSuite, inserts, job_id, request_id, waiting

FENCE = 5 << FENCE_COUNTER_BITS
LEASE_US = 45 * SECOND_US


@pytest.fixture(autouse=True)
def _small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BALLAST_BYTES", 1 << 16)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Store]]:
    """Makes a store of a kind, not open yet; closed when the test ends."""
    stores: list[Store] = []

    def make(kind: str) -> Store:
        stores.append(Memory() if kind == "memory" else SQLite(f"sqlite://{tmp_path}/{len(stores)}/queue.db"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def every_kind() -> list[Job]:
    """Jobs of every state, on both clocks, with all that a job can have."""
    end = {"ended_at_us": NOW.timer_us - 50, "forget_at_us": NOW.timer_us + 1_000_000}
    return [
        waiting(1, key="k"),
        waiting(2, key="wall", on_wall=True, expires_at_us=NOW.wall_us + 9_000, due_at_us=NOW.wall_us + 7_000),
        waiting(
            4,
            expires_at_us=NOW.timer_us + 5_000,
            expires_us=4_000,
            priority=-3,
            module="Fax",
            target_worker="w1",
            specifier=">=2",
        ),
        waiting(
            5,
            key="run",
            state=RUNNING,
            fence=FENCE + 7,
            attempt=1,
            worker="w",
            holder=b"h" * 16,
            stop_asked=True,
            version=2,
            max_attempts=3,
            timeout_us=5,
            backoff_us=(1, 2),
            params=b"\x00\xff",
            answered=(Answered(job_id(5), "enq", 3), Answered(request_id(1), "cancel", 4)),
        ),
        waiting(6, key="k", state=DONE, result=b"\xa2ok", **end),
        waiting(7, key="k", state=DEAD, reason="failed", error="Traceback: ü", deaths=1, fence=FENCE + 1, **end).changed(
            ended_at_us=NOW.timer_us - 20
        ),
        waiting(9, state=CANCELLED, retain_us=66, releases=1, replacements=2, on_wall=True, **end),
        waiting(10, state=DONE, result_error="TOO_LARGE", **end),
    ]


def clock_of_the_source() -> ManualClock:
    """Where the source's timer clock stands as in `NOW`, behind the wall clock."""
    return ManualClock(wall_us=NOW.wall_us)


def filled(store: Store, jobs: list[Job]) -> Store:
    """The store with these jobs, closed as its server left it."""
    store.open()
    assert not store.commit(inserts(jobs), MARK._replace(lease_us=LEASE_US)).refused
    store.close()
    return store


def exported(store: Store, page_jobs: int = 3) -> bytes:
    """The export of a store, closed again."""
    file = io.BytesIO()
    moving.export(store, store.open(), clock_of_the_source(), file, page_jobs)
    store.close()
    return file.getvalue()


def imported(store: Store, content: bytes, clock: ManualClock | None = None) -> Footer:
    """Import into a store that stays open."""
    return moving.import_(store, store.open(), clock or clock_of_the_source(), ExportReader(io.BytesIO(content)))


def held(store: Store) -> list[Job]:
    """What a store holds."""
    return StoreSuite.listed(store, limit=100)


def as_due(jobs: list[Job], now: Now) -> list[Job]:
    """The jobs with all times on the wall clock, so that those of two stores compare."""
    shift_us = -now.timer_ahead_us

    def wall(at_us: int | None, shift_us: int) -> int | None:
        return at_us and at_us + shift_us

    return [
        job.changed(
            due_at_us=job.due_on_wall_us(now),
            expires_at_us=wall(job.expires_at_us, 0 if job.on_wall else shift_us),
            ended_at_us=wall(job.ended_at_us, shift_us),
            forget_at_us=wall(job.forget_at_us, shift_us),
        )
        for job in jobs
    ]


def now_of_the_next_server(store: Store, clock: ManualClock) -> Now:
    """Now, as a server that starts on the store next has it."""
    store.close()
    return TimerClock.start(clock, store.open().mark).now(clock.read())


# There and back.


@pytest.mark.parametrize("target", ["memory", "sqlite"])
@pytest.mark.parametrize("source", ["memory", "sqlite"])
def test_a_moved_queue_has_every_job_with_every_field_due_when_it_was(
    make: Callable[[str], Store], source: str, target: str
) -> None:
    jobs = every_kind()
    clock = clock_of_the_source()

    footer = imported(store := make(target), exported(filled(make(source), jobs)), clock)

    now = now_of_the_next_server(store, clock)
    assert footer.jobs == len(jobs)
    assert now.timer_ahead_us != NOW.timer_ahead_us, "the clocks must differ for this to show anything"
    assert as_due(held(store), now) == as_due(jobs, NOW)
    assert store.check() == []


def test_indexes_of_keys_requests_and_counts_come_along(make: Callable[[str], Store]) -> None:
    imported(store := make("sqlite"), exported(filled(make("memory"), every_kind())))

    wanted = Wanted(keys=frozenset({"k", "run"}), past_keys=frozenset({"k"}), requests=frozenset({request_id(1)}))
    found = store.find(wanted, NOW)

    assert {key: job.seq for key, job in found.live.items()} == {"k": 1, "run": 5}
    assert found.ended["k"].seq == 7
    assert found.requests[request_id(1)].seq == 5
    assert sum(store.counts().values()) == len(every_kind())


def test_running_jobs_keep_their_leases_and_the_next_server_waits_as_long_for_them(make: Callable[[str], Store]) -> None:
    imported(store := make("sqlite"), exported(filled(make("sqlite"), every_kind())))
    store.close()

    opened = store.open()

    (running,) = store.running()
    assert (running.fence, running.holder, running.attempt, running.version) == (FENCE + 7, b"h" * 16, 1, 2)
    assert opened.mark is not None
    assert opened.mark.lease_us == LEASE_US


@pytest.mark.parametrize("target", ["memory", "sqlite"])
def test_numbers_after_a_move_are_above_all_that_the_source_gave_out(make: Callable[[str], Store], target: str) -> None:
    source = make("sqlite")
    source.open()
    source.raise_numbers(700, 77 << FENCE_COUNTER_BITS)
    source.close()
    epoch = filled(source, every_kind()).open().epoch
    source.close()

    footer = imported(store := make(target), exported(source))
    store.close()
    opened = store.open()

    assert footer.seq == 700
    assert opened.last_seq == 700
    assert opened.epoch > epoch > 77


def test_a_fence_above_the_epoch_of_its_store_is_not_given_again(make: Callable[[str], Store]) -> None:
    jobs = [waiting(3, state=RUNNING, fence=(90 << FENCE_COUNTER_BITS) + 1)]

    imported(store := make("sqlite"), exported(filled(make("memory"), jobs)))
    store.close()

    assert store.open().epoch > 90


def test_an_empty_queue_moves_too(make: Callable[[str], Store]) -> None:
    footer = imported(store := make("sqlite"), exported(make("memory")))

    assert footer.jobs == 0
    assert held(store) == []


def test_many_pages_and_records_lose_nothing(make: Callable[[str], Store]) -> None:
    jobs = [waiting(seq, key=f"k{seq}") for seq in range(3, 3 * SCAN_MAX, 2)]

    content = exported(filled(make("sqlite"), jobs), page_jobs=300)
    imported(store := make("sqlite"), content)

    assert [job.seq for job in held(store)] == [job.seq for job in jobs]


def test_pages_get_shorter_while_jobs_are_large(make: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "RECORD_BYTES", 1_000)
    monkeypatch.setattr(export_stream, "RECORD_BYTES", 1_000)
    source = Listing()
    filled(source, [waiting(seq, params=bytes(300)) for seq in range(1, 400)])

    content = exported(source, page_jobs=1_000)

    assert source.limits[0] == moving.FIRST_PAGE_JOBS
    assert max(source.limits[7:]) <= 8
    assert max(len(jobs) for jobs in ExportReader(io.BytesIO(content)).records()) == 2
    assert sum(len(jobs) for jobs in ExportReader(io.BytesIO(content)).records()) == 399


class Listing(Memory):
    """Notes the limits of the pages that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def page(self, wanted: Filter, after: tuple[int, int] | None, limit: int, now: Now) -> Any:
        self.limits.append(limit)
        return super().page(wanted, after, limit, now)


# Shared stores.


class Shared(Memory):
    """As a store of several servers shows itself to a move: a clock and numbers of its own, and word of the others."""

    is_shared = True
    others: tuple[bytes, ...] = ()
    ahead_us = 7 * SECOND_US
    timer = TimerClock("shared", ahead_us)

    def open(self, *, unsafe: bool = False) -> Opened:
        return super().open()._replace(epoch=1 << 30)

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> Watched:
        return Watched([], [], 0, False, 0, False, list(self.others), [])

    def find(self, wanted: Wanted, now: Now) -> Found:
        return super().find(wanted, now)._replace(floor=(6 << FENCE_COUNTER_BITS) + 8 if wanted.numbers else 0)


def test_a_shared_store_gives_its_own_clock_and_numbers_and_keepers_stay_behind(make: Callable[[str], Store]) -> None:
    jobs = [job.changed(keeper=2) for job in every_kind()]
    clock = clock_of_the_source()
    source = filled(Shared(), jobs)
    shared_now = Shared.timer.now(clock.read())

    footer = imported(store := make("sqlite"), exported(source), clock)

    now = now_of_the_next_server(store, clock)
    assert footer.seq == (6 << FENCE_COUNTER_BITS) + 8
    assert footer.fence == footer.seq, "an epoch says nothing of the fences of a shared store"
    assert [job.due_on_wall_us(now) for job in held(store)] == [job.due_on_wall_us(shared_now) for job in jobs]
    assert {job.keeper for job in held(store)} == {0}


def test_a_shared_store_that_other_servers_have_open_is_neither_source_nor_target(small: bytes) -> None:
    busy = Shared()
    busy.others = (b"one",)

    with pytest.raises(StoreLocked, match="other servers"):
        exported(busy)
    with pytest.raises(StoreLocked, match="other servers"):
        imported(busy, small)
    assert held(busy) == []


# The clocks.


def test_a_target_whose_timer_clock_stands_elsewhere_gets_the_same_instants(make: Callable[[str], Store]) -> None:
    clock = clock_of_the_source()
    target = make("sqlite")
    target.open()
    ahead_us = 3_600 * SECOND_US
    reading = clock.read()
    target.commit([], Mark("manual", reading.wall_us + ahead_us - reading.uptime_us, reading.wall_us, reading.wall_us))
    target.close()
    content = exported(filled(make("memory"), every_kind()))
    clock.advance(100)

    imported(target, content, clock)

    now = now_of_the_next_server(target, clock)
    assert now.timer_ahead_us == ahead_us
    assert as_due(held(target), now) == as_due(every_kind(), NOW)


def test_ends_lie_in_the_past_also_where_the_wall_clock_is_behind(make: Callable[[str], Store]) -> None:
    content = exported(filled(make("memory"), every_kind()))
    clock = ManualClock(wall_us=NOW.wall_us - 60 * SECOND_US)

    imported(store := make("sqlite"), content, clock)

    now = now_of_the_next_server(store, clock)
    ends = {job.seq: job.ended_at_us for job in held(store) if not job.is_live}
    assert {seq: now.timer_us - end_us for seq, end_us in ends.items()} == {6: 50, 7: 20, 9: 50, 10: 50}
    assert [job.due_on_wall_us(now) for job in held(store)] == [job.due_on_wall_us(NOW) for job in every_kind()]


# Damage.


@pytest.fixture(scope="module")
def small() -> bytes:
    """An export of three records."""
    return exported(filled(Memory(), every_kind()[3:7]), page_jobs=2)


def test_a_truncated_export_is_refused_wherever_it_ends(small: bytes) -> None:
    for length in range(len(small)):
        with pytest.raises(StoreCorrupt):
            imported(Memory(), small[:length])


def test_a_flipped_bit_is_noticed_wherever_it_is(small: bytes) -> None:
    for place in range(len(small)):
        for bit in range(8):
            damaged = bytearray(small)
            damaged[place] ^= 1 << bit
            with pytest.raises(StoreCorrupt):
                imported(Memory(), bytes(damaged))


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\xc1", b"\x92"])
def test_a_byte_too_many_or_another_is_noticed_wherever_it_is(small: bytes, byte: bytes) -> None:
    for place in range(len(small)):
        with pytest.raises(StoreCorrupt):
            imported(Memory(), small[:place] + byte + small[place:])
        if small[place : place + 1] != byte:
            with pytest.raises(StoreCorrupt):
                imported(Memory(), small[:place] + byte + small[place + 1 :])


def _records(content: bytes) -> list[bytes]:
    unpacker = msgpack.Unpacker(io.BytesIO(content))
    ends = [0]
    for _ in unpacker:
        ends.append(unpacker.tell())
    return [content[start:end] for start, end in pairwise(ends)]


def test_a_record_that_is_missing_doubled_or_moved_is_noticed(small: bytes) -> None:
    header, first, second, footer = _records(small)

    for wrong in ((header, second, footer), (header, first, first, second, footer), (header, second, first, footer)):
        with pytest.raises(StoreCorrupt):
            imported(Memory(), b"".join(wrong))


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00", b"{}\n", b"\x92\xc4\x00\x00", b"\xdd\xff\xff\xff\xff"])
def test_what_is_no_export_is_refused(content: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        ExportReader(io.BytesIO(content))


def test_damage_that_shows_late_is_said_to_leave_a_target_to_throw_away(small: bytes) -> None:
    target = Memory()

    with pytest.raises(StoreCorrupt, match="incomplete: throw its target away"):
        imported(target, small[:-1])


def test_a_store_that_fills_up_is_said_to_be_incomplete(small: bytes) -> None:
    class Full(Memory):
        def commit(self, *_: Any) -> Any:
            raise StoreFull("no room")

    with pytest.raises(StoreFull, match="The import is incomplete"):
        imported(Full(), small)


def test_a_source_that_cannot_be_read_ends_the_import() -> None:
    class Torn(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("it is gone")

    torn: Any = Torn()
    with pytest.raises(StoreFailed, match="it is gone"):
        ExportReader(torn)


def test_a_store_whose_rows_are_not_what_it_counted_makes_no_export(make: Callable[[str], Store]) -> None:
    class Forgetful(Memory):
        def counts(self) -> Any:
            return {("Mail", DONE): 9}

    file = io.BytesIO()
    store = filled(Forgetful(), every_kind())
    with pytest.raises(StoreCorrupt, match="counts 9 jobs"):
        moving.export(store, store.open(), clock_of_the_source(), file)
    with pytest.raises(StoreCorrupt):
        imported(Memory(), file.getvalue())


def test_two_jobs_with_one_id_are_refused(make: Callable[[str], Store]) -> None:
    file = io.BytesIO()
    twins = [waiting(1), waiting(2, id=job_id(1))]
    _write(file, twins)

    with pytest.raises(StoreCorrupt, match="job 2 has the id or the key"):
        imported(make("sqlite"), file.getvalue())


def _write(file: BinaryIO, jobs: list[Job]) -> None:
    writer = ExportWriter(file, Header(NOW.timer_us, NOW.wall_us, None, {("Mail", jobs[0].state): len(jobs)}))
    for job in jobs:
        writer.add(job)
    writer.end(0, 0)


SHORT = {
    "magic": MAGIC, "format": 1, "version": "0", "fields": JOB_FIELDS[:9], "timer_us": 5, "wall_us": 5, "mark": None,
    "counts": [["Mail", "waiting", 1]],
}  # fmt: skip


# Whom it refuses, and what later versions may change.


@pytest.mark.parametrize("target", ["memory", "sqlite"])
def test_a_store_that_holds_a_job_is_refused_and_left_alone(make: Callable[[str], Store], small: bytes, target: str) -> None:
    store = filled(make(target), [waiting(1), waiting(2)])

    with pytest.raises(StoreUnfit, match="holds 2 jobs"):
        imported(store, small)

    assert held(store) == [waiting(1), waiting(2)]


def _stream(*bodies: Any) -> bytes:
    """Records of these values, with their checksums."""
    content, crc = b"", 0
    for body in map(msgpack.packb, bodies):
        crc = zlib.crc32(body, crc)
        content += msgpack.packb([body, crc])
    return content


def _rewritten(small: bytes, **changes: Any) -> bytes:
    """The export with another header, and the checksums that go with it."""
    header, *others = (msgpack.unpackb(msgpack.unpackb(record)[0]) for record in _records(small))
    return _stream({**header, **changes}, *others)


def test_a_later_format_and_unknown_fields_are_too_new(small: bytes) -> None:
    with pytest.raises(StoreTooNew, match=f"format {FORMAT + 1}"):
        imported(Memory(), _rewritten(small, format=FORMAT + 1))
    with pytest.raises(StoreTooNew, match="the fields colour"):
        imported(Memory(), _rewritten(small, version="9.9", fields=[*JOB_FIELDS[:-1], "colour"]))


def test_fields_that_an_earlier_version_did_not_have_get_their_defaults() -> None:
    content = _stream(SHORT, [waiting(1).front()[:9]], {"end": {"jobs": 1, "seq": 1, "fence": 0}})

    imported(store := Memory(), content, ManualClock())

    assert held(store) == [Job(*waiting(1).front()[:9])]


@pytest.mark.parametrize(
    "rows",
    [
        [waiting(1).front()[:8]],
        [waiting(1).front()],
        [waiting(1, state="ready").front()[:9]],
        [waiting(2).front()[:9], waiting(1).front()[:9]],
        [("1", *waiting(1).front()[1:9])],
        [7],
        7,
        {"end": {}},
        {"end": {"jobs": 0, "seq": 0, "fence": 0}},
    ],
)
def test_a_record_that_givalia_never_wrote_is_corrupt(rows: Any) -> None:
    with pytest.raises(StoreCorrupt):
        imported(Memory(), _stream(SHORT, rows, {"end": {"jobs": 1, "seq": 1, "fence": 0}}), ManualClock())


@pytest.mark.parametrize(
    "changes",
    [{"fields": ["seq"]}, {"fields": None}, {"counts": [["Mail", "ready", 1]]}, {"counts": []}, {"mark": [1]}, {"magic": "x"}],
)
def test_a_header_that_givalia_never_wrote_is_corrupt(small: bytes, changes: dict[str, Any]) -> None:
    with pytest.raises(StoreCorrupt):
        imported(Memory(), _rewritten(small, **changes))


def test_every_error_of_an_import_is_ours(small: bytes) -> None:
    for changes in ({"timer_us": None}, {"wall_us": "x"}, {"format": "1"}):
        with pytest.raises(GivaliaError):
            imported(Memory(), _rewritten(small, **changes))


@pytest.mark.parametrize("days", [0, 2])
def test_fences_of_an_old_export_begin_above_those_that_its_store_may_have_granted_since(
    make: Callable[[str], Store], days: int
) -> None:
    source = filled(make("sqlite"), every_kind())
    content = exported(source)
    for _ in range(5):
        last = source.open().epoch
        source.close()
    target = make("sqlite")

    imported(target, content, ManualClock(wall_us=NOW.wall_us + days * 86_400 * SECOND_US))

    target.close()
    assert (target.open().epoch > last + copies.STARTS) is (days == 2)
