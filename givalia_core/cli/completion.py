"""Tab completion: verbs and flags from the parsers; keys, modules and workers from the server that the line names.

For each completion the shell runs the program itself, through `argcomplete`, which is imported only then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, NoReturn

from givalia_core.cli import show
from givalia_core.client import Client
from givalia_core.client.servers import found_by, from_settings
from givalia_core.model import JobState

ASKED: Final = "_ARGCOMPLETE"  # Set by the shell script of `argcomplete`.
PROGRAMS: Final = ("givalia", "givalia-server", "givalia-worker")
SHELLS: Final = ("bash", "zsh", "fish")
PATIENCE_S: Final = 0.5
ANSWER_S: Final = 1.0  # Time for the server's answers; those received by then are shown.
JOBS_MAX: Final = 1_000  # Keys of one state that are shown.
ENDED_BADLY: Final = (JobState.DEAD, JobState.CANCELLED)

Given = argparse.Namespace


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end the process, if the shell asks for completions."""
    if ASKED not in os.environ:
        return
    from argcomplete import autocomplete  # Imported here because nothing else needs it.

    for action in _actions(parser):
        if action.dest in _ANSWERS and action.choices is None:
            action.completer = _completer(_ANSWERS[action.dest])  # type: ignore[attr-defined]
    autocomplete(parser)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the shell."""
    parser.add_argument("shell", nargs="?", choices=SHELLS, help="the shell [that of $SHELL]")


def act(_: Client, given: Given) -> None:
    """Print the commands that enable completion in a shell."""
    show.emit(script(given.shell))


def script(shell: str | None) -> str:
    """Return the commands that enable completion of Givalia's programs in a shell."""
    from argcomplete.shell_integration import shellcode  # Imported here because nothing else needs it.

    own = os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 - A name alone, as it is.
    text: str = shellcode(list(PROGRAMS), shell=shell or (own if own in SHELLS else "bash"))
    return text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all arguments of a parser and of its verbs."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them.
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - Nor a public class.
            for under in action.choices.values():
                yield from _actions(under)


def _completer(answer: Callable[[Client, str, Given], Iterable[Any]]) -> Callable[..., list[str]]:
    """Return a completer that asks the server; without an answer it offers nothing, as a person who types must not wait."""

    def completions(prefix: str, parsed_args: Given, **_: Any) -> list[str]:
        found: set[str] = set()
        with contextlib.suppress(Exception), _at_most(ANSWER_S):
            find = from_settings(parsed_args.master, parsed_args.port, parsed_args.config, _ignore)
            with found_by(Client, find, PATIENCE_S) as client:
                found.update(str(each) for each in answer(client, prefix, parsed_args))
        return sorted(each for each in found if each.startswith(prefix) and each.isprintable())

    return completions


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` here after this time: a server may search all its jobs for a prefix."""

    def end(*_: object) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _keys(client: Client, prefix: str, given: Given) -> Iterator[str]:
    """Yield keys with this prefix; for `requeue`, those of dead and cancelled jobs."""
    states = ENDED_BADLY if given.verb == "requeue" else (None,)
    for state in states:
        for job in islice(client.list(state, key_prefix=prefix or None), JOBS_MAX):
            if job.key is not None:
                yield job.key


def _ignore(_: str) -> None:
    """Ignore a notice about the settings: the command itself repeats it."""


_ANSWERS: Final[dict[str, Callable[[Client, str, Given], Iterable[Any]]]] = {
    "key": _keys,
    "module": lambda client, *_: (module["module"] for module in client.modules()),
    "target_worker": lambda client, *_: (worker["name"] for worker in client.workers()),
}
