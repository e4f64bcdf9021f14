"""The writing of one commit: any number of changes as a few statements over many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from givalia_core.model import Job
from givalia_core.store.base import Change
from givalia_core.store.packing import NUMBER
from givalia_core.store.shared import Kept

from givalia_postgres import statements as sql
from givalia_postgres.checksums import seal
from givalia_postgres.connection import Statement
from givalia_postgres.rows import bytes_, int2s, int8s, job_columns, texts, uuids


def statements(changes: Sequence[Change], until_us: int) -> Iterator[Statement]:
    """Yield the statements that apply the changes, each with the written seqs as its rows; then those that account for them.

    They fail if the changes include new jobs and the database's clock is past `until_us`.
    """
    for wave in _waves(changes):
        yield from apply(wave)
    yield from _account(changes, until_us)


def _waves(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield the changes in groups that may be written kind by kind: no change takes the key of another in its group."""
    wave: list[Change] = []
    taken: set[str] = set()
    for change in changes:
        was, job = change
        keys = {key for key in (job.key, was.key if was else None) if key is not None}
        if not taken.isdisjoint(keys):
            yield wave
            wave, taken = [], set()
        wave.append(change)
        if was is None or _replaces(was, job):
            taken |= keys
    if wave:
        yield wave


def _replaces(was: Job, job: Job) -> bool:
    """Return whether the change sets columns that `sql.UPDATE` leaves alone, or may take a key."""
    return (
        (was.module, was.target_worker, was.priority) != (job.module, job.target_worker, job.priority)
        or was.specifier != job.specifier
        or was.key != job.key
        or was.params != job.params
        or (was.ended_at_us > 0 and not job.ended_at_us)
    )


def apply(wave: Sequence[Change]) -> Iterator[Statement]:
    """Yield the statements of one group, updates first: they may free the keys that others take."""
    updates = [change for change in wave if change.was is not None and not _replaces(change.was, change.job)]
    replaced = [change for change in wave if change.was is not None and _replaces(change.was, change.job)]
    new = [change.job for change in wave if change.was is None]
    for words, some in ((sql.UPDATE, updates), (sql.REPLACE, replaced)):
        if some:
            versions = int8s([change.was.version for change in some if change.was is not None])
            yield words, [*job_columns([change.job for change in some]), versions]
    if new:
        yield sql.INSERT, job_columns(new)


class Accounts(NamedTuple):
    """The effect of changes on the counts (seq, module, state's number, difference) and the request ids (each with its seq)."""

    counts: list[tuple[int, str, int, int]]
    known: list[tuple[bytes, int]]
    dropped: list[tuple[bytes, int]]


def accounts_of(changes: Sequence[Change]) -> Accounts:
    """Return the effect of these changes if they all apply."""
    accounts = Accounts([], [], [])
    for was, job in changes:
        if was is None or was.state != job.state or was.module != job.module:
            accounts.counts.append((job.seq, job.module, NUMBER[job.state], 1))
            if was is not None:
                accounts.counts.append((job.seq, was.module, NUMBER[was.state], -1))
        if was is None or was.answered is not job.answered:
            before = set() if was is None else set(was.answered)
            after = set(job.answered)
            accounts.known.extend((past.request, job.seq) for past in after - before if past.request != job.id)
            accounts.dropped.extend((past.request, job.seq) for past in before - after)
    return accounts


def _account(changes: Sequence[Change], until_us: int) -> Iterator[Statement]:
    """Yield the statements for the counts and the request ids of the rows that were written."""
    counts, known, dropped = accounts_of(changes)
    if counts:
        seqs, modules, states, deltas = zip(*counts, strict=True)
        yield sql.COUNT, [int8s(seqs), texts(modules), int2s(states), int2s(deltas)]
    for words, some in ((sql.FORGET_REQUESTS, dropped), (sql.KEEP_REQUESTS, known)):
        if some:
            yield words, [uuids([request for request, _ in some]), int8s([seq for _, seq in some])]
    if new := [change.job.id for change in changes if change.was is None]:
        yield sql.ARE_NEW_IDS, [uuids(new), int8s([until_us])]


def keep(answers: Sequence[Kept]) -> Iterator[Statement]:
    """Yield the statements that keep answers that changed no job, in a transaction of their own.

    The second statement returns the kept requests; the fourth, if there is one, returns those of them whose ids belong to
    jobs by now: they are not kept after all.
    """
    answers = sorted(answers)  # So that two servers with copies of the same commands do not wait for each other.
    requests = uuids([answer.request for answer in answers])
    yield sql.KEEP_WAIT, ()
    yield sql.KEEP_ANSWERS, [requests, bytes_([seal(answer.answer) for answer in answers])]
    if new := [answer.request for answer in answers if answer.is_enq]:
        ids = uuids(new)
        yield sql.TAKE_IDS, [ids]
        yield sql.DROP_ANSWERS_OF_JOBS, [ids]
        yield sql.GIVE_IDS_BACK, [ids]
