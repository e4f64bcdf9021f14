"""Verbs that take one job or several: which ones the command names, and what it says of each.

Several are one call of the client. A job that is refused does not keep the others from being shown: the exit code tells.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final, TypeVar

from givalia_core.cli import show
from givalia_core.errors import BadRequest, GivaliaError, PartlyRefused
from givalia_core.printable import printable

T = TypeVar("T")

STDIN: Final = "-"
LINE_BYTES_MAX: Final = 1_024  # More than any key or id has.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Key or id, as often as one likes."""
    parser.add_argument("key", nargs="*", help="the job's key, or several; -: keys from standard input, one a line")
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
    name: str,
    words: Callable[[T], str],
) -> None:
    """Ask for all the jobs that are named, and show what each was answered, in order.

    Args:
        given: What `arguments` has read.
        ask: Takes keys or ids, and gives an answer or an error for each.
        name: Of the answer, in JSON.
        words: The answer, for people.

    Raises:
        GivaliaError: None of it was asked, or it is not known what became of it.
        SystemExit: Some were refused: with their exit code if it is the same for all, else with that of `PartlyRefused`.
    """
    keys = list(_read(given.key)) if given.key else None
    ids = list(_read(given.id)) if given.id else None
    try:
        answers = ask(keys, ids)
    except PartlyRefused as error:
        answers = error.answers
    codes = set()
    for job, answer in zip(keys if ids is None else ids, answers, strict=True):  # type: ignore[arg-type]
        shown: dict[str, Any] = {"key" if ids is None else "id": job}
        if isinstance(answer, GivaliaError):
            codes.add(answer.exit_code)
            print(f"givalia: {answer.code}: {printable(job)}: {printable(answer)}", file=sys.stderr)
            shown |= {"error": answer.code, **answer.details}
        else:
            shown[name] = answer
        if given.json:
            show.emit(show.to_json(shown))
        elif name in shown:
            show.emit(f"{printable(job)}  {words(shown[name])}")
    if codes:
        raise SystemExit(codes.pop() if len(codes) == 1 else PartlyRefused.exit_code)


def _read(words: Sequence[str]) -> Iterator[str]:
    """The names on the command line; in the place of a `-`, those of standard input."""
    for word in words:
        if word == STDIN:
            yield from _lines(sys.stdin.buffer)
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
