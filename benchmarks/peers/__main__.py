"""Givalia and its peers side by side, on this machine and in this run: no-op jobs with params of about 30 bytes.

The peers are brought to `build/peers`, started on loopback and measured in turns with Givalia: whatever else the machine does
meets all of them. The figures are the medians of the rounds; of jobs lost by kill -9, the most. A peer that cannot be had
here is left out, and one that lost or doubled a job is broken; both are named with the reason.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import harness

from givalia_core import GivaliaError
from peers import bring, contest, servers
from peers.contest import Round
from peers.contestants import CONTESTANTS

_OURS: Final = "Givalia"
_OUR_STORE: Final = "SQLite on disk, synced before each answer: its default"
_JSON: Final = Path(__file__).resolve().parents[2] / "build" / "bench-peers.json"


class Column(NamedTuple):
    """A figure of a round, and how it is shown."""

    field: str
    head: tuple[str, str]
    words: str
    best: Callable[..., Any] | None = None
    """`max` or `min`; nothing where a ratio says nothing."""


COLUMNS: Final = (
    Column("singles", ("enq 1", "jobs/s"), "enqueued one at a time, jobs/s", max),
    Column("batched", ("enq batch", "jobs/s"), "enqueued in batches of 1,000, jobs/s", max),
    Column("load", ("end to end", "jobs/s"), "end to end, jobs/s", max),
    Column("idle_p50", ("idle", "p50 ms"), "idle, enq to start, p50 ms", min),
    Column("idle_p99", ("idle", "p99 ms"), "idle, enq to start, p99 ms", min),
    Column("late_p50", ("late", "p50 ms"), "delayed job's start after its due, p50 ms"),
    Column("late_p99", ("late", "p99 ms"), "delayed job's start after its due, p99 ms", min),
    Column("early", ("early", "of 300"), "delayed jobs that started before their due"),
    Column("cpu_client", ("client", "us/job"), "CPU of the client, end to end, us a job", min),
    Column("cpu_worker", ("worker", "us/job"), "CPU of the worker, end to end, us a job", min),
    Column("cpu_server", ("server", "us/job"), "CPU of the server, end to end, us a job", min),
    Column("lost", ("lost by", "kill -9"), "of 2,000 answered jobs, lost by kill -9 of the server"),
)


class Section(NamedTuple):
    """A part of what is reported: for people, and as JSON."""

    text: str
    data: Any


class Found(NamedTuple):
    """What the rounds found."""

    figures: dict[str, dict[str, float | None]]
    missing: dict[str, str]
    """Who has no figures, and why."""


def rounds(names: Sequence[str], repeats: int, scale: float, folder: str | None) -> Found:
    """Each contestant's rounds, in turns."""
    found: dict[str, list[Round]] = {}
    missing: dict[str, str] = {}
    for number in range(repeats):
        for contestant in (each for each in CONTESTANTS if each.name in names and each.name not in missing):
            harness.say(f"{contestant.name}, round {number + 1} of {repeats}")
            try:
                found.setdefault(contestant.name, []).append(contest.measure(contestant, scale, folder))
            except bring.Absent as absent:
                missing[contestant.name] = f"LEFT OUT: {absent}"
            except (harness.Broken, GivaliaError) as broken:
                missing[contestant.name] = f"BROKEN: {broken}"
            if contestant.name in missing:
                harness.say(f"{contestant.name} {missing[contestant.name]}")
    return Found({name: _medians(some) for name, some in found.items() if name not in missing}, missing)


def _medians(some: Sequence[Round]) -> dict[str, float | None]:
    medians = {field: _median([getattr(each, field) for each in some]) for field in Round._fields}
    # A single loss is one too many.
    return medians | {"lost": max(each.lost for each in some)}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# The sections.


def machine_section(folder: str | None) -> Section:
    """What the machine does without any of them."""
    figures = harness.calibrate(folder)
    return Section(harness.table(figures), [figure._asdict() for figure in figures])


def versions_section(found: Found) -> Section:
    """What was measured."""
    known = harness.versions()
    kinds = {each.server for each in CONTESTANTS if each.name in found.figures and each.server}
    if kinds:
        brought = (servers.KINDS[kind] for kind in sorted(kinds))
        known |= {kind.program: kind.brought().version for kind in brought} | bring.package_versions()
    words = [f"{name} {version}" for name, version in known.items()]
    return Section("\n".join(" · ".join(words[start : start + 7]) for start in range(0, len(words), 7)), known)


def settings_section(found: Found) -> Section:
    """At which settings, and why."""
    shown = [each for each in CONTESTANTS if each.name in found.figures]
    rows = []
    for each in shown:
        rows.append((each.name, "server", servers.KINDS[each.server].words if each.server else _OUR_STORE))
        rows += [("", f"{setting.name} = {setting.value}", setting.why) for setting in (*each.worker, *each.client)]
    data = {
        each.name: {
            "server": list(servers.KINDS[each.server].flags) if each.server else [],
            "settings": [setting._asdict() for setting in (*each.worker, *each.client)],
            "jobs": each.sizes._asdict(),
        }
        for each in shown
    }
    return Section(_aligned(rows), data)


def table_section(found: Found) -> Section:
    """A line for each contestant, a column for each figure; whoever has none is named below."""
    heads = [("", *(column.head[line] for column in COLUMNS)) for line in (0, 1)]
    rows = [(name, *(_shown(row[column.field]) for column in COLUMNS)) for name, row in found.figures.items()]
    words = "\n".join(f"{name} {why}" for name, why in found.missing.items())
    return Section(_aligned([*heads, *rows], to_right=True) + (f"\n\n{words}" if words else ""), found._asdict())


def ratios_section(found: Found) -> Section:
    """Givalia beside the best peer, and beside the best of those that lost nothing by kill -9."""
    figures = dict(found.figures)
    ours = figures.pop(_OURS, None)
    if ours is None or not figures:
        return Section("", {})
    durable = {name: row for name, row in figures.items() if not row["lost"]}
    rows = [("", _OURS, "best peer", "", "ratio", "best that lost nothing", "", "ratio")]
    data: dict[str, Any] = {}
    for column in (each for each in COLUMNS if each.best):
        own = ours[column.field]
        pairs = [_best(column, some) for some in (figures, durable)]
        ratios = [own / value if own is not None and value else None for _, value in pairs]
        words = [(name, _shown(value), _shown(ratio)) for (name, value), ratio in zip(pairs, ratios, strict=True)]
        rows.append((column.words, _shown(own), *words[0], *words[1]))
        data[column.field] = {
            "givalia": own,
            "best": {"name": pairs[0][0], "value": pairs[0][1], "ratio": ratios[0]},
            "best_durable": {"name": pairs[1][0], "value": pairs[1][1], "ratio": ratios[1]},
        }
    return Section(_aligned(rows) + "\n(of jobs/s, more than 1 is better; of ms and us, less than 1)", data)


def _best(column: Column, figures: Mapping[str, Mapping[str, float | None]]) -> tuple[str, float | None]:
    known = {name: value for name, row in figures.items() if (value := row[column.field]) is not None}
    if not known:
        return "", None
    assert column.best is not None
    name = column.best(known, key=known.__getitem__)
    return name, known[name]


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]], to_right: bool = False) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []

    def line(row: Sequence[str]) -> str:
        first, *others = (f"{word:<{width}}" for word, width in zip(row, widths, strict=True))
        if to_right:
            others = [f"{word:>{width}}" for word, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([first, *others]).rstrip()

    return "\n".join(map(line, rows))


def main() -> int:
    """Measure all that are there, print what was found, and write it as JSON; returns 2 if a contestant broke."""
    options = (
        harness.Option("repeats", 3, "rounds, each on fresh servers; the medians are shown"),
        harness.Option("scale", 1.0, "share of the jobs"),
        harness.Option("only", "", "contestants, with commas between: " + ", ".join(each.module for each in CONTESTANTS)),
    )
    parser = harness.arguments(__doc__, options)
    parser.set_defaults(json=str(_JSON))
    given = parser.parse_args()
    wanted = {word.strip().lower() for word in given.only.split(",") if word.strip()}
    names = [each.name for each in CONTESTANTS if not wanted or wanted & {each.name.lower(), each.module}]
    if not names:
        parser.error(f"nobody is called {given.only}")
    machine = machine_section(given.folder)
    found = rounds(names, given.repeats, given.scale, given.folder)
    sections = {
        "Versions": versions_section(found),
        "This machine": machine,
        "Settings": settings_section(found),
        "Side by side": table_section(found),
        "Givalia and the best peer": ratios_section(found),
    }
    report(sections, given.json)
    return 2 if any(why.startswith("BROKEN") for why in found.missing.values()) else 0


def report(sections: Mapping[str, Section], file: str) -> None:
    """Print the sections, and write them to the file; as `-`, it is standard output, without what is for people."""
    text = json.dumps({title: section.data for title, section in sections.items()}, indent=2)
    if file == "-":
        print(text)
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(text + "\n", encoding="utf-8")
    print("\n\n".join(f"{title}\n{section.text}" for title, section in sections.items() if section.text))


if __name__ == "__main__":
    raise SystemExit(main())
