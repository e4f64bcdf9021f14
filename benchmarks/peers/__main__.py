"""Givalia and its peers side by side, and every goal that Givalia has, on this machine and in this run.

The peers are brought to `build/peers`, started on loopback and measured in turns with Givalia, so that other load of the
machine affects all of them. Their jobs do nothing, and have params of about 30 bytes. The figures are the medians of the
rounds; for jobs lost by kill -9, the maximum. A peer that is not available here is left out, and one that lost or doubled a
job is broken; both are named with the reason. Then the benchmarks of `make bench` follow, and the goals beside the peers'
figures. The exit code is 0 if every goal is reached, 1 if one is missed, 2 if a contestant broke a promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import harness
import run
import waiting
from harness import Figure

from givalia_core import GivaliaError
from peers import bring, contest, servers, standing
from peers.contest import Contestant
from peers.contestants import CONTESTANTS

_OUR_STORE: Final = "SQLite on disk, synced before each answer: its default"
_JSON: Final = Path(__file__).resolve().parents[2] / "build" / "bench-peers.json"
_OPTIONS: Final = (
    harness.Option("repeats", 3, "rounds of the contest, each on fresh servers; the medians are shown"),
    harness.Option("scale", 1.0, "share of the contest's jobs; below 1 our own benchmarks are those of make bench's --quick"),
    harness.Option("only", "", "contestants and benchmarks, with commas between"),
    harness.Option("ten_million", False, "also measure with ten million jobs waiting; it takes a while"),
)
_WORST: Final = (contest.LOST, contest.EARLY)
_TEN_MILLION: Final = "While ten million wait"
_NO_TEN_MILLION: Final = (
    "The rows with ten million waiting (memory, ext and cancel by key, first answer after kill -9, steady, end to end) need "
    "--ten-million; those above are with fewer."
)


class Found(NamedTuple):
    """The results of the rounds."""

    figures: dict[str, list[Figure]]
    left_out: dict[str, str]
    broken: dict[str, str]


def rounds(some: Sequence[Contestant], repeats: int, scale: float, folder: str | None) -> Found:
    """Run each contestant's rounds, in turns."""
    found: dict[str, list[list[Figure]]] = {each.name: [] for each in some}
    left_out: dict[str, str] = {}
    broken: dict[str, str] = {}
    for number in range(repeats):
        for contestant in (each for each in some if each.name in found):
            name = contestant.name
            harness.say(f"{name}, round {number + 1} of {repeats}")
            try:
                found[name].append(contest.measure(contestant, scale, folder))
            except bring.Absent as absent:
                left_out[name] = str(absent)
            except (harness.Broken, GivaliaError) as error:
                broken[name] = str(error)
            if why := left_out.get(name) or broken.get(name):
                harness.say(f"{name} has no figures: {why}")
                del found[name]
    return Found({name: _together(each) for name, each in found.items()}, left_out, broken)


def _together(some: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Return the medians of the rounds; the maximum of lost and of early jobs, since one is too many."""
    worst = {name: [each.value for figures in some for each in figures if each.name == name] for name in _WORST}
    return [
        figure._replace(value=max(worst[figure.name])) if figure.name in worst else figure for figure in harness.medians(some)
    ]


def versions(some: Sequence[Contestant]) -> dict[str, str]:
    """Return the versions of the measured packages."""
    brought = [servers.KINDS[kind] for kind in sorted({each.server for each in some if each.server})]
    programs = {kind.program: kind.brought().version for kind in brought}
    return harness.versions() | programs | (bring.package_versions() if brought else {})


def settings(some: Sequence[Contestant], scale: float) -> dict[str, Any]:
    """Return the settings of each contestant, with the reasons."""
    return {
        each.name: {
            "server": servers.KINDS[each.server].words if each.server else _OUR_STORE,
            "flags": list(servers.KINDS[each.server].flags) if each.server else [],
            "settings": [setting._asdict() for setting in (*each.worker, *each.client)],
            "jobs": each.sizes.scaled(scale)._asdict(),
        }
        for each in some
    }


def beside(found: Found, some: Sequence[Contestant], repeats: int, scale: float) -> harness.Beside:
    """Return the contest, for people and as JSON."""
    at = settings(some, scale)
    rows: list[tuple[str, str, str]] = []
    for name, each in at.items():
        rows.append((name, "server", each["server"]))
        rows += [("", f"{setting['name']} = {setting['value']}", setting["why"]) for setting in each["settings"]]
    ratios = standing.ratios(found.figures)
    parts = [f"Settings\n{harness.aligned(rows)}", f"Side by side\n{standing.table(found.figures)}"]
    parts += [f"LEFT OUT: {name}: {why}" for name, why in found.left_out.items()]
    if ratios:
        parts.append(f"Givalia and the best peer\n{standing.ratios_table(ratios)}")
    data = {
        "words": (contest.__doc__ or "").strip(),
        "repeats": repeats,
        "scale": scale,
        "contestants": at,
        "left_out": found.left_out,
        **standing.recorded(found.figures),
    }
    return harness.Beside("\n\n".join(parts), data)


def own(plan: run.Plan, with_ten_million: bool, folder: str | None) -> run.Measured:
    """Run our own benchmarks; with ten million waiting jobs, one store more, since the others have its million."""
    found = run.measure(plan, folder)
    if with_ten_million:
        more = run.measure({waiting: {"levels": "0,10000000", "seconds": 15.0}}, folder, {waiting: _TEN_MILLION})
        found = run.Measured(found.sections | more.sections, found.broken | more.broken)
    return found


def main() -> int:
    """Measure all available contestants, print the results, and write them as JSON."""
    parser = harness.arguments(__doc__, _OPTIONS)
    parser.set_defaults(json=str(_JSON))
    given = parser.parse_args()
    wanted = {word.strip().lower() for word in given.only.split(",") if word.strip()}
    some = [each for each in CONTESTANTS if not wanted or wanted & {each.name.lower(), each.module}]
    usual = run.QUICK if given.scale < 1 else run.USUAL
    plan = {each: options for each, options in usual.items() if not wanted or each.__name__ in wanted}
    if not some and not plan:
        parser.error(f"nobody is called {given.only}")
    machine = harness.calibrate(given.folder)
    found = rounds(some, given.repeats, given.scale, given.folder)
    ours = own(plan, given.ten_million, given.folder)
    shown = [each for each in some if each.name in found.figures]
    flags = harness.flags(_OPTIONS, given)
    among_peers, notes = standing.goals(found.figures)
    return harness.report(
        harness.Run(
            f'make bench-peers PEERS="{flags}"' if flags else "make bench-peers",
            machine,
            versions(shown),
            ours.sections,
            [*among_peers, *harness.goals_of(ours.figures, standing.beside(found.figures))],
            found.broken | ours.broken,
            [*notes, *([] if given.ten_million else [_NO_TEN_MILLION])],
            beside(found, shown, given.repeats, given.scale) if some else None,
        ),
        given.json,
    )


if __name__ == "__main__":
    raise SystemExit(main())
