"""Verbs that take one job or several: which ones the command names, and what it says of each.

A job that is refused does not keep the others from being shown: the exit code tells.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, BinaryIO, Final, TypeVar

from givalia_core.cli import endings, show
from givalia_core.errors import BadRequest, ConnectionLost, GivaliaError, PartlyRefused, TooLarge
from givalia_core.printable import printable

T = TypeVar("T")

STDIN: Final = "-"
PART: Final = 10_000  # Names that are asked for in one call.
LINE_BYTES_MAX: Final = 1_024  # More than any key or id has.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Key or id, as often as one likes."""
    parser.add_argument("key", nargs="*", help="the job's key, or several; -: keys from standard input, one a line, each once")
    parser.add_argument("--id", action="append", help="the job's id, instead of a key; repeated for several, and - as above")


def single(given: argparse.Namespace) -> tuple[str | None, str | None] | None:
    """The key or the id if no more than one job is named; None if there are several, or standard input has them."""
    keys, ids = given.key, given.id or []
    if len(keys) > 1 or len(ids) > 1 or (keys and ids) or STDIN in (*keys, *ids):
        return None
    return keys[0] if keys else None, ids[0] if ids else None


def show_each(
    given: argparse.Namespace,
    ask: Callable[[list[str] | None, list[str] | None], Sequence[T | GivaliaError]],
    as_json: Callable[[T], dict[str, Any]],
    words: Callable[[T], str],
    *,
    changes: bool = True,
) -> None:
    """Ask for all the jobs that are named, some thousand at a time, and show what each was answered, in order.

    Each part is a call of its own, with its own patience. A terminal shows how many were answered, and the end how many of how
    they were, if they were more than one part.

    Args:
        given: What `arguments` has read.
        ask: Takes keys or ids, and gives an answer or an error for each.
        as_json: The answer, for programs, beside the name of the job.
        words: The answer, for people.
        changes: Whether a part that is not answered may have been done.

    Raises:
        GivaliaError: It is not known what became of the part that was asked for; that is said, and how many were answered
            before.
        SystemExit: Some were refused: with their exit code if it is the same for all, else with that of `PartlyRefused`.
    """
    if given.key and given.id:
        raise BadRequest("name the jobs by their keys or by their ids, and by one of them only")
    name = "id" if given.id else "key"
    names = _read(given.id or given.key)
    codes: set[int] = set()
    counts: Counter[str] = Counter()
    under_way = 0
    try:
        with show.Progress(sys.stderr) as progress:
            while part := list(islice(names, PART)):
                under_way = len(part)
                try:
                    answers = ask(part, None) if name == "key" else ask(None, part)
                except PartlyRefused as error:
                    answers = error.answers
                under_way = 0
                for job, answer in zip(part, answers, strict=True):
                    _show(given, name, job, answer, as_json, words)
                    if isinstance(answer, GivaliaError):
                        codes.add(answer.exit_code)
                    counts[answer.code if isinstance(answer, GivaliaError) else "OK"] += 1
                if sys.stderr.isatty():
                    progress.show_line(_counted(counts))
    except BaseException as error:
        if counts:
            endings.say(f"givalia: {counts.total():,} were answered before this: {_counted(counts)}")
        if under_way and changes and not _is_undone(error):
            of = f" after those {counts.total():,}" if counts else ""
            endings.say(f"givalia: what became of the {under_way:,} names{of} is unknown: they were under way")
        raise
    if counts.total() > PART:
        endings.say(f"givalia: {_counted(counts)}")
    if codes:
        raise SystemExit(codes.pop() if len(codes) == 1 else PartlyRefused.exit_code)


def _is_undone(error: BaseException) -> bool:
    """Return whether a call that ended so has done nothing: it was refused here, or never sent."""
    return isinstance(error, (BadRequest, TooLarge)) or (
        isinstance(error, ConnectionLost) and error.details.get("sent") is False
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in sorted(counts.items()))


def _show(
    given: argparse.Namespace,
    name: str,
    job: str,
    answer: T | GivaliaError,
    as_json: Callable[[T], dict[str, Any]],
    words: Callable[[T], str],
) -> None:
    shown: dict[str, Any] = {name: job}
    if isinstance(answer, GivaliaError):
        endings.say(f"givalia: {answer.code}: {printable(job)}: {printable(answer)}")
        shown |= {"error": answer.code, **answer.details}
    else:
        shown |= as_json(answer)
    if given.json:
        show.emit(show.to_json(shown))
    elif not isinstance(answer, GivaliaError):
        show.emit(f"{printable(job)}  {words(answer)}")


def _read(words: Sequence[str]) -> Iterator[str]:
    """The names on the command line; in the place of a `-`, those of standard input."""
    for word in words:
        if word == STDIN:
            # Each once: a listing in the order of dues tells a job again that was moved meanwhile.
            seen: set[bytes] = set()
            for line in _lines(sys.stdin.buffer):
                digest = blake2b(line.encode(), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield line
        else:
            yield word


def _lines(stream: BinaryIO) -> Iterator[str]:
    """The lines that are not empty. One that is too long is not read to its end."""
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
