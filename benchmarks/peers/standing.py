"""Givalia beside its peers: the table of the contest, the ratios, the figures in which a peer is better, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import harness
from harness import Figure, Goal, Peer

from peers import contest
from peers.contestants import CONTESTANTS

OURS: Final = "Givalia"
TITLE: Final = "Beside others"
_LIBRARIES: Final = [each.name for each in CONTESTANTS if each.is_library]

Standing = Mapping[str, Sequence[Figure]]
"""The figures of each contestant."""


class Column(NamedTuple):
    """A figure of the contest, and its form in the table; its unit is in the figures."""

    figure: str
    head: str
    best: Callable[..., Any] | None = None
    """`max` or `min`; None for a figure without a best value."""


COLUMNS: Final = (
    Column(contest.SINGLES, "enq 1", max),
    Column(contest.BATCHED, "enq batch", max),
    Column(contest.LOAD, "end to end", max),
    Column(contest.IDLE_P50, "idle p50", min),
    Column(contest.IDLE_P99, "idle p99", min),
    Column(contest.LATE_P50, "late p50", min),
    Column(contest.LATE_P99, "late p99", min),
    Column(contest.EARLY, "early"),
    *(Column(words, f"CPU {name}", min) for name, words in contest.CPU.items()),
    Column(contest.LOST, "kill -9 lost"),
)
_LATE: Final = (contest.LATE_P50, contest.LATE_P99)

# Our own figures that the contest has, too; the table of goals shows those of the peers beside them.
_BESIDE: Final = {
    "batches of 1,000, one client": contest.BATCHED,
    "end to end": contest.LOAD,
    "idle, enq to start, p50": contest.IDLE_P50,
    "idle, enq to start, p99": contest.IDLE_P99,
    "idle, late, p50": contest.LATE_P50,
    "idle, late, p99": contest.LATE_P99,
}


class _Aim(NamedTuple):
    """A goal as a multiple of the best figure of these peers."""

    figure: str
    of: str
    least: float
    peers: Sequence[str]


_AIMS: Final = (
    _Aim(contest.SINGLES, "beanstalkd that syncs", 1, ["beanstalkd -b -f0"]),
    _Aim(contest.LOAD, "the best Python library", 11, _LIBRARIES),
    _Aim(contest.LOAD, "beanstalkd in memory", 5, ["beanstalkd"]),
    _Aim(contest.LOAD, "the Redis queue by hand", 1, ["ZSET by hand"]),
)


def table(standing: Standing) -> str:
    """Return a table with a line for each contestant and a column for each figure, with its unit."""
    units = {figure.name: figure.unit for figures in standing.values() for figure in figures}
    heads = [("", *(column.head for column in COLUMNS)), ("", *(units.get(column.figure, "") for column in COLUMNS))]
    rows = []
    for name, figures in standing.items():
        values = {figure.name: harness.shown(figure.value) for figure in figures}
        rows.append((name, *(values.get(column.figure, "-") for column in COLUMNS)))
    return harness.aligned([*heads, *rows], right=range(1, len(COLUMNS) + 1))


def _value(standing: Standing, name: str, figure: str) -> Figure | None:
    return next((each for each in standing.get(name, ()) if each.name == figure), None)


def _others(standing: Standing, figure: str, names: Sequence[str] | None = None) -> list[Peer]:
    """Return the figures of the peers, or of those with these names; a peer that began jobs early has no lateness."""
    found = []
    for name in standing if names is None else names:
        known = _value(standing, name, figure)
        early = _value(standing, name, contest.EARLY)
        if name != OURS and known and not (figure in _LATE and early and early.value):
            found.append(Peer(name, known.value, known.unit))
    return found


def _best(column: Column, peers: Sequence[Peer]) -> Peer | None:
    assert column.best is not None
    found: Peer | None = column.best(peers, key=lambda peer: peer.value, default=None)
    return found


def _ranked(standing: Standing) -> Iterator[tuple[Column, Figure]]:
    """Yield the columns that have a best value, and our figure of each."""
    for column in COLUMNS:
        own = _value(standing, OURS, column.figure)
        if column.best and own:
            yield column, own


def forgetful(standing: Standing) -> list[str]:
    """Return the contestants whose servers lost answered jobs when they were killed."""
    losses = {name: _value(standing, name, contest.LOST) for name in standing}
    return [name for name, lost in losses.items() if lost is None or lost.value]


def ratios(standing: Standing) -> list[dict[str, Any]]:
    """Return Givalia's ratios to the best peer, and to the best of those that lost nothing by kill -9."""
    durable = {
        name: some for name, some in standing.items() if (lost := _value(standing, name, contest.LOST)) and not lost.value
    }
    found = []
    for column, own in _ranked(standing):
        row: dict[str, Any] = {"figure": column.figure, "unit": own.unit, "givalia": own.value}
        for field, some in (("best", standing), ("best_durable", durable)):
            peer = _best(column, _others(some, column.figure))
            row[field] = peer and {
                "name": peer.name,
                "value": peer.value,
                "ratio": own.value / peer.value if peer.value else None,
            }
        found.append(row)
    return found


def ratios_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the ratios for people."""

    def words(peer: Mapping[str, Any] | None) -> tuple[str, str, str]:
        if peer is None:
            return "-", "", ""
        return peer["name"], harness.shown(peer["value"]), harness.shown(peer["ratio"]) if peer["ratio"] else "-"

    lines = [("", "Givalia", "", "best peer", "", "ratio", "best that lost nothing", "", "ratio")]
    for row in rows:
        own = harness.shown(row["givalia"])
        lines.append((row["figure"], own, row["unit"], *words(row["best"]), *words(row["best_durable"])))
    return harness.aligned(lines, right={1, 4, 5, 7, 8})


def better(standing: Standing) -> list[dict[str, Any]]:
    """Return each figure in which a peer is better than Givalia: by figure, the best peer first."""
    found = []
    for column, own in _ranked(standing):
        peers = sorted(_others(standing, column.figure), key=lambda peer: peer.value, reverse=column.best is max)
        found += [
            {"figure": column.figure, "unit": own.unit, "givalia": own.value, "peer": peer.name, "value": peer.value}
            for peer in peers
            if peer.value != own.value and _best(column, [peer, Peer(OURS, own.value, own.unit)]) is peer
        ]
    return found


def beside(standing: Standing) -> dict[str, Peer]:
    """Return the best peer's figure for each of ours that the contest has, too."""
    columns = {column.figure: column for column in COLUMNS}
    found = {own: _best(columns[figure], _others(standing, figure)) for own, figure in _BESIDE.items()}
    return {own: peer for own, peer in found.items() if peer}


def goals(standing: Standing) -> tuple[list[Goal], list[str]]:
    """Return the goals in relation to peers, and notes about those that could not be measured."""
    found: list[Goal] = []
    notes: list[str] = []
    for figure, of, least, names in _AIMS:
        own, peers = _value(standing, OURS, figure), _others(standing, figure, names)
        words = f"{figure}, of {of}"
        if own is None or not peers:
            missing = OURS if own is None else " and ".join(names)
            notes.append(f"Not measured: {words}, as {missing} took no part or has no figures.")
            continue
        if away := sorted(set(names) - {each.name for each in peers}):
            notes.append(f"Of a part of them only: {words}, as {', '.join(away)} took no part or has no figures.")
        peer = max(peers, key=lambda each: each.value)
        found.append(Goal(TITLE, Figure(words, own.value / peer.value, "times", least=least), peer))
    return found, notes


def recorded(standing: Standing) -> dict[str, Any]:
    """Return the standing as JSON has it."""
    return {
        "columns": [column.figure for column in COLUMNS],
        "figures": {name: [harness.mapped(figure) for figure in figures] for name, figures in standing.items()},
        "ratios": ratios(standing),
        "better": better(standing),
        "forgetful": forgetful(standing),
    }
