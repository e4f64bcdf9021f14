"""Verbs on one job or several: reading the names of the jobs, and showing each job's answer.

A refused job does not keep the others from being shown: the exit code tells.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, BinaryIO, Final, Generic, NamedTuple, TypeAlias, TypeVar

from givalia_core.cli import endings, show
from givalia_core.errors import BadRequest, ConnectionLost, GivaliaError, PartlyRefused, TooLarge
from givalia_core.printable import printable

T = TypeVar("T")

STDIN: Final = "-"
PART_NAMES: Final = 10_000  # Names in one call.
LINE_BYTES_MAX: Final = 1_024  # Longer than any key or id.

Ask: TypeAlias = Callable[[list[str] | None, list[str] | None], Sequence[T | GivaliaError]]
"""Takes keys or ids; returns an answer or an error for each."""


class ShownJob(NamedTuple, Generic[T]):
    """The presentation of a job's answer: its fields for programs, and its words for people."""

    as_json: Callable[[T], dict[str, Any]]
    words: Callable[[T], str]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name jobs: any number of keys or ids."""
    parser.add_argument("key", nargs="*", help="the job's key, or several; -: keys from standard input, one a line, each once")
    parser.add_argument("--id", action="append", help="the job's id, instead of a key; repeated for several, and - as above")


def single(given: argparse.Namespace) -> tuple[str | None, str | None] | None:
    """Return the key or the id if at most one job is named; None if several are, or if standard input has the names."""
    keys, ids = given.key, given.id or []
    if len(keys) > 1 or len(ids) > 1 or (keys and ids) or STDIN in (*keys, *ids):
        return None
    return keys[0] if keys else None, ids[0] if ids else None


def show_each(given: argparse.Namespace, ask: Ask[T], shown: ShownJob[T], *, changes: bool = True) -> None:
    """Ask for all named jobs, some thousand at a time, and show the answer for each, in order.

    Each part is a call with its own patience. A terminal shows the count of answers so far; if there was more than one part,
    a last line counts the answers by kind.

    Args:
        given: The arguments that `arguments` added.
        ask: The call for one part.
        shown: How an answer is shown.
        changes: False if the call only reads, so that an unanswered part has changed nothing.

    Raises:
        GivaliaError: The call for a part failed. A line says so, and how many jobs were answered before.
        SystemExit: Some jobs were refused: with their exit code if all have the same, else with that of `PartlyRefused`.
    """
    if given.key and given.id:
        raise BadRequest("name the jobs by their keys or by their ids, and by one of them only")
    run = _Run(given, ask, shown)
    names = _read(given.id or given.key)
    try:
        with show.ProgressLine(sys.stderr) as progress:
            while part := list(islice(names, PART_NAMES)):
                run.call(part)
                if sys.stderr.isatty():
                    progress.show_line(run.counted())
    except BaseException as error:
        run.say_so_far(error, changes=changes)
        raise
    if run.counts.total() > PART_NAMES:
        endings.say(f"givalia: {run.counted()}")
    if run.exit_codes:
        raise SystemExit(run.exit_codes.pop() if len(run.exit_codes) == 1 else PartlyRefused.exit_code)


class _Run(Generic[T]):
    """One command on several jobs: its answers so far."""

    def __init__(self, given: argparse.Namespace, ask: Ask[T], shown: ShownJob[T]) -> None:
        self.counts: Counter[str] = Counter()
        self.exit_codes: set[int] = set()
        self._given, self._ask, self._shown = given, ask, shown
        self._name = "id" if given.id else "key"
        self._under_way = 0

    def call(self, part: list[str]) -> None:
        """Ask for one part, and show and count its answers."""
        self._under_way = len(part)
        try:
            answers = self._ask(part, None) if self._name == "key" else self._ask(None, part)
        except PartlyRefused as error:
            answers = error.answers
        self._under_way = 0
        for job, answer in zip(part, answers, strict=True):
            if isinstance(answer, GivaliaError):
                self._show_error(job, answer)
            else:
                self._show(job, answer)

    def _show(self, job: str, answer: T) -> None:
        if self._given.json:
            show.emit(show.to_json({self._name: job, **self._shown.as_json(answer)}))
        else:
            show.emit(f"{printable(job)}  {self._shown.words(answer)}")
        self.counts["OK"] += 1

    def _show_error(self, job: str, error: GivaliaError) -> None:
        endings.say(f"givalia: {error.code}: {printable(job)}: {printable(error)}")
        if self._given.json:
            show.emit(show.to_json({self._name: job, "error": error.code, **error.details}))
        self.exit_codes.add(error.exit_code)
        self.counts[error.code] += 1

    def counted(self) -> str:
        """Return the number of answers of each kind, in words."""
        return ", ".join(f"{count:,} {code}" for code, count in sorted(self.counts.items()))

    def say_so_far(self, error: BaseException, *, changes: bool) -> None:
        """Say what is known of a run that ends early: the answers so far, and the part that is unanswered."""
        if self.counts:
            endings.say(f"givalia: {self.counts.total():,} were answered before this: {self.counted()}")
        if self._under_way and changes and not _is_undone(error):
            after = f" after those {self.counts.total():,}" if self.counts else ""
            endings.say(f"givalia: what became of the {self._under_way:,} names{after} is unknown: they were under way")


def _is_undone(error: BaseException) -> bool:
    """Return whether the failed call has done nothing: it was refused by the client, or never sent."""
    return isinstance(error, (BadRequest, TooLarge)) or (
        isinstance(error, ConnectionLost) and error.details.get("sent") is False
    )


def _read(words: Sequence[str]) -> Iterator[str]:
    """Yield the names on the command line; in place of a `-`, those of standard input."""
    for word in words:
        if word == STDIN:
            # Each once: a listing in the order of dues repeats a job that was moved meanwhile.
            seen: set[bytes] = set()
            for line in _lines(sys.stdin.buffer):
                digest = blake2b(line.encode(), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield line
        else:
            yield word


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines that are not empty; a line that is too long is not read to its end."""
    number = 0
    while line := stream.readline(LINE_BYTES_MAX):
        number += 1
        if len(line) == LINE_BYTES_MAX:
            raise BadRequest(f"line {number} of standard input is longer than any key or id")
        try:
            text = line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise BadRequest(f"line {number} of standard input is not UTF-8") from None
        if text:
            yield text
