"""The goals of a run: every figure with an aim, beside the peers' figures if peers are in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.figures import Figure, aligned, mapped, shown, verdict


class Peer(NamedTuple):
    """A peer's figure in the same run."""

    name: str
    value: float
    unit: str

    @property
    def words(self) -> str:
        """Return the figure in words for people."""
        return f"{self.name}: {shown(self.value)} {self.unit}"


class Goal(NamedTuple):
    """A figure with an aim, of the benchmark with that title; and the peer's figure, if there is one."""

    of: str
    figure: Figure
    peer: Peer | None = None


def goals_of(figures: Mapping[str, Sequence[Figure]], beside: Mapping[str, Peer] | None = None) -> list[Goal]:
    """Return the goals among the figures of these benchmarks; `beside` has the peers' figures by the names of ours."""
    return [
        Goal(title, figure, (beside or {}).get(figure.name))
        for title, some in figures.items()
        for figure in some
        if figure.is_reached is not None
    ]


def goals_table(goals: Sequence[Goal]) -> str:
    """Return a table for people: our figure, the goal, whether it is reached, and the peer's figure of the same run."""
    rows = [("", "", "Givalia", "", "goal", "", "best peer, or the one that is meant")] if any(g.peer for g in goals) else []
    rows += [
        (
            of,
            figure.name,
            shown(figure.value),
            figure.unit,
            figure.aim,
            verdict(figure.is_reached),
            peer.words if peer else "",
        )
        for of, figure, peer in goals
    ]
    reached = sum(bool(each.figure.is_reached) for each in goals)
    return aligned(rows, right={2}) + f"\n{reached} of {len(goals)} reached"


def mapped_goal(goal: Goal) -> dict[str, Any]:
    """Return the goal as JSON has it: our figure, and the peer's."""
    return {"of": goal.of, **mapped(goal.figure), "peer": goal.peer and goal.peer._asdict()}
