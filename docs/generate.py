"""Writes the generated parts of these pages, between the markers `<!-- generated: name -->` and `<!-- end -->`.

    python docs/generate.py            write them
    python docs/generate.py --check    only print which are out of date; exit code 1 if any is

The script changes nothing outside the markers. If these tables do not explain a part of the code, such as a new transition,
the script fails, so nothing new stays undocumented.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final, get_type_hints

from givalia_core import errors, setting_values
from givalia_core.cli import common
from givalia_core.cli.main import VERBS, Subcommand
from givalia_core.clock import SECOND_US
from givalia_core.model import TRANSITIONS, JobState
from givalia_core.protocol import frames, line_session, lines, messages, session
from givalia_core.protocol.codec import TABLE
from givalia_core.protocol.messages import CLIENT_KINDS, WORKER_KINDS, Kind
from givalia_core.server import app, connection
from givalia_core.settings import PREFIX, TABLES
from givalia_core.worker import supervisor

DOCS: Final = Path(__file__).parent
MARKED: Final = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# lifecycle.md

WAITING, READY, RUNNING = JobState.WAITING, JobState.READY, JobState.RUNNING
DONE, DEAD, CANCELLED = JobState.DONE, JobState.DEAD, JobState.CANCELLED

# For each row of `model.TRANSITIONS`: its numbers in the contract, what happens, and what is on disk before what.
_WORDS: Final[dict[tuple[JobState, str], tuple[str, str, str]]] = {
    (WAITING, "claim"): (
        "T3",
        "It is ready and a worker that announced its module has room: attempt + 1, a new fence, `expires` is over.",
        "the dispatch",
    ),
    (WAITING, "ext"): ("T11", "`ext`: the due moves.", "the answer"),
    (WAITING, "replace"): (
        "T11",
        "`enq` of its key with `if_exists=replace`: params, due and options change, the id stays.",
        "the answer",
    ),
    (WAITING, "reschedule"): ("T11", "`enq` of its key with `if_exists=reschedule`: the due changes.", "the answer"),
    (WAITING, "cancel"): ("T10", "`cancel`: it will not start.", "the answer"),
    (WAITING, "expire"): ("T14", "`expires` has passed before a first attempt started; reason `expired`.", "anybody reads it"),
    (RUNNING, "ask_stop"): ("", "`cancel running=true`: the worker is told, and there will be no retry.", "the answer"),
    (RUNNING, "adopt"): (
        "",
        "Another server of the same store manages the lease: the worker has connected there, or the earlier server is gone.",
        "the answer to the worker",
    ),
    (RUNNING, "succeed"): (
        "T4",
        "The worker reports success with the present fence, also after a stop was requested.",
        "the answer to the worker",
    ),
    (RUNNING, "fail"): (
        "T5, T6",
        "The attempt failed, or its lease ended without a report; attempts are left, no stop was asked. Due after the backoff.",
        "the answer, or the next claim",
    ),
    (RUNNING, "die"): (
        "T7",
        "As above, but it was the last attempt (reason `exhausted`), it failed for good (`failed`), or its process died "
        "the third time (`child_died`).",
        "the answer to the worker",
    ),
    (RUNNING, "stop"): ("T8", "The attempt ended without success after a stop was requested.", "the answer to the worker"),
    (RUNNING, "release"): (
        "T9",
        "Released unstarted, or its process was replaced because of another job: the attempt does not count, the due stays.",
        "the answer to the worker",
    ),
    (DEAD, "requeue"): ("T12", "`requeue`, and its key is free: all attempts again, the fence goes on growing.", "the answer"),
    (CANCELLED, "requeue"): (
        "T12",
        "`requeue`, and its key is free: all attempts again, the fence goes on growing.",
        "the answer",
    ),
}
_BEFORE_AND_AFTER: Final = (
    ("T1", "(none)", "enq", "waiting", "`enq`, and its key is free or it has none.", "the answer"),
    (
        "T2",
        "waiting",
        "(time)",
        "ready",
        "Its due is reached. Nothing is written: a waiting job becomes ready as time passes.",
        "",
    ),
    ("T13", "done, dead, cancelled", "(time)", "(none)", "Its retention is over.", ""),
)


def transitions() -> str:
    """Return the table of states and acts."""
    rows: list[tuple[str, ...]] = list(_BEFORE_AND_AFTER[:2])
    for (state, act), after in TRANSITIONS.items():
        number, words, durable = _WORDS[state, act]
        before = "ready" if act == "claim" else "waiting, ready" if state is WAITING else str(state)
        rows.append((number, before, act, str(after), words, durable))
    rows.append(_BEFORE_AND_AFTER[2])
    return _table(("", "from", "act", "to", "when", "on disk before"), rows)


def diagram() -> str:
    """Return the diagram of states and acts."""
    arrows = ["[*] --> waiting: enq", "waiting --> ready: due"]
    for (state, act), after in TRANSITIONS.items():
        before = "ready" if act == "claim" else str(state)
        arrows.append(f"{before} --> {after}: {act}")
    return "```mermaid\nstateDiagram-v2\n" + "".join(f"    {arrow}\n" for arrow in arrows) + "```\n"


# errors.md


def error_table() -> str:
    """Return the table of error classes: code, exit code, and advice for the person on call."""
    rows = []
    for cls in errors.every():
        words = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        parent = cls.__bases__[0].__name__ if cls is not errors.GivaliaError else "Exception"
        rows.append((f"`{cls.__name__}`", f"`{cls.code}`", str(cls.exit_code), f"`{parent}`", words))
    return _table(("class", "code", "exit code", "under", "what happened, and what to do"), rows)


# settings.md


def settings_tables() -> str:
    """Return a table of settings for each program."""
    programs = {"server": "givalia-server", "worker": "givalia-worker", "client": "givalia"}
    return "\n".join(f"### {programs[name]}: the table `[{name}]`\n\n{_settings(kind)}" for name, kind in TABLES.items())


def _settings(kind: type) -> str:
    hints = get_type_hints(kind)
    rows = []
    for each in fields(kind):
        flags = common.FLAGS.get(each.name, ("--" + each.name.replace("_", "-"),))
        rows.append(
            (
                f"`{each.name}`",
                ", ".join(f"`{flag}`" for flag in flags),
                f"`{PREFIX}{each.name.upper()}`",
                setting_values.written(each, hints[each.name]) or "(empty)",
                setting_values.allowed(each, hints[each.name]),
                each.metadata["help"],
            )
        )
    return _table(("TOML", "flag", "environment", "default", "limits", ""), rows)


# command-line.md


def verbs() -> str:
    """Return a section for each verb of `givalia`: its purpose and its arguments."""
    return "\n".join(f"### {name}\n\n{_verb(name, verb)}" for name, verb in VERBS.items())


def _verb(name: str, verb: Subcommand) -> str:
    parser = argparse.ArgumentParser(prog=name, add_help=False)
    verb.arguments(parser)
    rows = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them.
        shown = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest.upper()}`"
        choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
        rows.append((shown, "; ".join(part for part in (action.help or "", choices) if part)))
    words = verb.words[0].upper() + verb.words[1:] + "."
    return f"{words}\n" + (f"\n{_table(('argument', ''), rows)}" if rows else "")


# protocol.md


def kinds() -> str:
    """Return the table of kinds of frames: code, port, sender, and the fields of their items."""
    rows = []
    for kind in Kind:
        if kind is Kind.ANSWER:
            port, sender, shape = "both", "server", "a code and what it says"
        elif kind is Kind.HELLO:
            port, sender, shape = "both", "client, worker", _fields(messages.Hello)
        elif kind is Kind.DISPATCH:
            port, sender = "worker", "server"
            shape = f"first item: {_fields(messages.Heard)}; then {_fields(messages.Dispatch)}"
        elif kind is Kind.STOP:
            port, sender, shape = "worker", "server", _fields(messages.Stop)
        elif kind is Kind.PROGRESSED:
            port, sender, shape = "client", "server", _fields(messages.Progressed)
        else:
            port = "client" if kind in CLIENT_KINDS else "worker" if kind in WORKER_KINDS else "?"
            sender, shape = port, _fields(TABLE[kind].record) or "(none)"
        rows.append((str(int(kind)), f"`{kind.name}`", port, sender, shape))
    return _table(("code", "kind", "port", "sent by", "fields of an item"), rows)


def _fields(record: type) -> str:
    return ", ".join(f"`{name}`" for name in record._fields if name != "payload")  # type: ignore[attr-defined]


def limits() -> str:
    """Return the table of limits and deadlines, from the constants that enforce them."""
    rows = (
        ("`length` of a frame to the server", _bytes(frames.FRAME_BYTES_MAX), "`TOO_LARGE`, the frame is skipped"),
        ("`length` of a frame that is still skipped", _bytes(frames.DISCARD_BYTES_MAX), "`TOO_LARGE` under request 0, closed"),
        ("`length` of a frame from the server; make room for it", _bytes(frames.ANSWER_BYTES_MAX), ""),
        ("items of a frame", f"{frames.ITEMS_MAX:,}", "`TOO_LARGE`"),
        ("`STAT` items of a frame", str(messages.STATS_PER_FRAME), "`BAD_REQUEST`"),
        ("packed fields of an item", _bytes(frames.FIELDS_BYTES_MAX), "cannot be written"),
        ("values of an array in the fields", f"{frames.VALUES_MAX:,}", "`BAD_REQUEST`"),
        ("payload of `ENQ` (params)", _bytes(frames.PARAMS_BYTES_MAX), "`TOO_LARGE`"),
        ("payload of `SUCCEED` (result)", _bytes(frames.RESULT_BYTES_MAX), "`TOO_LARGE`"),
        ("payload of anything else", "0 bytes", "`TOO_LARGE`"),
        ("`error` of `FAIL`, `broken` of `ANNOUNCE`", f"{messages.ERROR_BYTES_MAX:,} bytes of UTF-8", "`BAD_REQUEST`"),
        ("jobs of a `LIST`", str(messages.LIST_LIMIT_MAX), "`BAD_REQUEST`"),
        ("bytes before hello is over", _bytes(session.HANDSHAKE_BYTES_MAX), "closed"),
        ("time from the first byte to the end of hello", _seconds(connection.HANDSHAKE_US), "closed"),
        ("time from the first byte of a frame or line to its end", _seconds(connection.FRAME_US), "closed"),
        (
            f"pace of a frame or line, once it has lasted {_seconds(connection.SLOW_AFTER_US)}",
            f"{connection.SLOW_BYTES_PER_S} bytes/s",
            "closed",
        ),
        ("unanswered frames of a connection", str(connection.IN_FLIGHT_MAX), "the server stops reading until one is answered"),
        (
            "of those, `STAT`, `LIST`, `INFO`, `MODULES`, `WORKERS`",
            str(connection.READS_IN_FLIGHT_MAX),
            "the server stops reading until one is answered",
        ),
        ("unanswered `WAIT`", f"{connection.WAITS_MAX:,}", "the server stops reading until one is answered"),
        (
            "answers that the peer has not read",
            _bytes(connection.UNSENT_BYTES_MAX),
            "the server stops reading until they are read",
        ),
        ("time in which the peer must read them", _seconds(connection.WRITE_DEADLINE_S * SECOND_US), "closed"),
        ("a line of 2012, without its end", _bytes(lines.LINE_BYTES_MAX), "answered, closed"),
        ("depth of a line's JSON", str(lines.DEPTH_MAX), "answered"),
        ("characters of a number in it", str(lines.NUMBER_CHARS_MAX), "answered"),
        ("lines in a row that are not JSON", str(line_session.MALFORMED_LINES_MAX), "answered, closed"),
    )
    return _table(("what", "at most", "beyond it"), rows)


def _bytes(count: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count % size == 0:
            return f"{count // size} {unit}"
    return f"{count:,} bytes"


def _seconds(us: float) -> str:
    return f"{us / SECOND_US:g} s"


# All parts.


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    shown = [list(heads), ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in shown)


def alerts() -> str:
    """Return the rules for Prometheus from their file."""
    rules = (DOCS.parent / "deploy" / "givalia-alerts.yml").read_text(encoding="utf-8")
    return f"```yaml\n{rules}```\n"


def restart() -> str:
    """Return the settings of each program that a reload does not take over."""
    fixed = (("givalia-server", app._FIXED), ("givalia-worker", supervisor._FIXED))  # noqa: SLF001 - Only this page needs them.
    return _table(("program", "settings"), [(f"`{name}`", ", ".join(f"`{each}`" for each in names)) for name, names in fixed])


PARTS: Final[dict[str, Callable[[], str]]] = {
    "transitions": transitions,
    "diagram": diagram,
    "errors": error_table,
    "settings": settings_tables,
    "verbs": verbs,
    "kinds": kinds,
    "limits": limits,
    "alerts": alerts,
    "restart": restart,
}


def renewed(page: str) -> str:
    """Return the text of a page with its generated parts rebuilt."""
    return MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[4]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = []
    unused = set(PARTS)
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        unused -= {found[2] for found in MARKED.finditer(page)}
        fresh = renewed(page)
        if fresh != page:
            stale.append(path.relative_to(DOCS.parent))
            if not check:
                path.write_text(fresh, encoding="utf-8")
    for path in stale:
        print(f"{path} {'is out of date: python docs/generate.py' if check else 'written'}", file=sys.stderr)
    for name in sorted(unused):
        print(f"no page has the part {name}", file=sys.stderr)
    return 1 if (check and stale) or unused else 0


if __name__ == "__main__":
    raise SystemExit(main())
