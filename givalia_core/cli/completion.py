"""Tab completion: verbs and flags from the parsers, keys, modules and workers from the server that the line names.

The shell runs the program itself for each completion, by way of `argcomplete`; nothing here is imported otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from givalia_core.client import Client
from givalia_core.settings import ClientSettings, load

ASKED: Final = "_ARGCOMPLETE"  # Set by the shell's part of `argcomplete`.
PROGRAMS: Final = ("givalia", "givalia-server", "givalia-worker")
SHELLS: Final = ("bash", "zsh", "fish")
PATIENCE_S: Final = 0.5
JOBS_MAX: Final = 1_000  # So many are looked at for keys that begin like the word.

Given = argparse.Namespace


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end, if it asks for completions."""
    if ASKED not in os.environ:
        return
    from argcomplete import autocomplete  # Late: it is not needed for anything else.

    for action in _actions(parser):
        if action.dest in _ANSWERS and action.choices is None:
            action.completer = _completer(_ANSWERS[action.dest])  # type: ignore[attr-defined]
    autocomplete(parser)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The shell to speak to."""
    parser.add_argument("shell", nargs="?", choices=SHELLS, help="the shell [that of $SHELL]")


def script(shell: str | None) -> str:
    """Return the commands that let a shell complete our programs."""
    from argcomplete.shell_integration import shellcode  # Late, as above.

    own = os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 - A name alone, as it is.
    text: str = shellcode(list(PROGRAMS), shell=shell or (own if own in SHELLS else "bash"))
    return text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of the verbs under it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for under in action.choices.values():
                yield from _actions(under)


def _completer(answer: Callable[[Client], Iterable[Any]]) -> Callable[..., list[str]]:
    """Let a server answer; nothing if there is none, since a person who types must not wait."""

    def completions(prefix: str, parsed_args: Given, **_: Any) -> list[str]:
        with contextlib.suppress(Exception):
            settings = load(ClientSettings, vars(parsed_args), file=getattr(parsed_args, "config", None))
            with Client(settings.master, settings.port, resend=PATIENCE_S) as client:
                found = {str(each) for each in answer(client)}
            return sorted(each for each in found if each.startswith(prefix) and each.isprintable())
        return []

    return completions


_ANSWERS: Final[dict[str, Callable[[Client], Iterable[Any]]]] = {
    "key": lambda client: (job.key for job in islice(client.list(), JOBS_MAX) if job.key is not None),
    "module": lambda client: (module["module"] for module in client.modules()),
    "target_worker": lambda client: (worker["name"] for worker in client.workers()),
}
