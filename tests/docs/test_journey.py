"""The traced way of one job, which the architecture page must match."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from docs_pages import DOCS, ROOT


@pytest.fixture(scope="module")
def way() -> Any:
    done = subprocess.run(
        [sys.executable, str(DOCS / "journey.py"), "--json"], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("leg", "landmarks"),
    [
        ("enq", ["client/commands.py enq", "server/connection.py Connection._receive", "engine/verbs.py enq",
                 "store/sqlite/store.py SQLite.commit"]),
        ("claim", ["engine/leases.py claim", "worker/attempt/runner.py Runner.take"]),
        ("attempt", [f"worker/attempt/pipeline.py {step}" for step in ("execute", "process", "report")]),
        ("settle", ["engine/leases.py succeed", "client/commands.py _ended"]),
    ],
)  # fmt: skip
def test_each_leg_of_the_way_passes_its_landmarks_in_order(way: Any, leg: str, landmarks: list[str]) -> None:
    passed = [f"{file.removeprefix('givalia_core/')} {name}" for file, name, _ in way["legs"][leg]]

    places = [passed.index(landmark) for landmark in landmarks]

    assert places == sorted(places)


def test_a_function_is_where_and_as_long_as_the_trace_says(way: Any) -> None:
    assert way["sizes"]["functions"] == len({tuple(each) for leg in (way["idle"], *way["legs"].values()) for each in leg})
    for file, name, lines in way["legs"]["settle"]:
        assert f"def {name.rpartition('.')[2]}(" in (ROOT / file).read_text()
        assert 1 < lines < 200


LEGS = ("enq", "claim", "attempt", "settle")


def named_on_page(leg: str) -> list[str]:
    section = (DOCS / "architecture.md").read_text().partition("### Its files, leg by leg")[2].partition("\n#")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"- **{leg}**")]
    return re.findall(r"\(\.\./givalia_core/([a-z_/]+\.py)\)", line)


def test_the_architecture_page_names_the_files_of_the_way_and_no_others(way: Any) -> None:
    named = {file for leg in LEGS for file in named_on_page(leg)}
    passed = {file for leg in LEGS for file in way["rooms"][leg]}
    idle = set(way["rooms"]["without a job"])

    assert passed <= named <= passed | idle, "docs/journey.py --page prints the list"
    assert idle <= set(named_on_page("without a job")), "docs/journey.py --page prints the list"


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("house", ["client", "server", "engine", "store", "worker"])
def test_the_architecture_page_names_the_files_of_a_house_in_the_order_of_their_first_visit(
    way: Any, leg: str, house: str
) -> None:
    """House by house: server and worker run at once, and which of them is first differs with the load."""
    named = [file for file in named_on_page(leg) if file.startswith(f"{house}/")]
    passed = [file for file in way["rooms"][leg] if file.startswith(f"{house}/")]

    both = set(named) & set(passed)  # The last files of a leg may fall into the next.
    assert [file for file in named if file in both] == [file for file in passed if file in both]
