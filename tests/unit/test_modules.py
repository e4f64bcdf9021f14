"""WorkModules: their discovery, their settings, and that a name is never more than a name."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, ClassVar

import importlib_metadata
import pytest

from givalia_core import modules
from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest
from givalia_core.modules import Fail, Retry, Run, WorkModule
from givalia_core.times import to_datetime
from givalia_core.views import RunningJobView


class Distribution:
    def __init__(self, name: str = "example", version: str = "1.0") -> None:
        self.name, self.version = name, version


class Entry:
    def __init__(self, name: str, loads: Any, distribution: str = "example") -> None:
        self.name, self._loads, self.dist = name, loads, Distribution(distribution)
        self.loaded = 0

    def load(self) -> Any:
        self.loaded += 1
        if isinstance(self._loads, BaseException):
            raise self._loads
        return self._loads


class Sample(WorkModule):
    def process(self) -> Any:
        return self.params


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Any:
    def discover(*entries: Entry) -> dict[str, modules.FoundModule]:
        monkeypatch.setattr(importlib_metadata, "entry_points", lambda group: entries if group == modules.GROUP else ())
        return modules.discover()

    return discover


def test_an_installed_module_is_found_with_its_origin(found: Any) -> None:
    assert found(Entry("Sample", Sample)) == {
        "Sample": modules.FoundModule("Sample", "example", "1.0", Sample, None, f"{__name__}:Sample")
    }


def test_two_packages_that_claim_one_name_are_named_and_neither_is_served_or_even_imported(found: Any) -> None:
    one, two, other = Entry("Sample", Sample, "one"), Entry("Sample", Sample, "two"), Entry("Other", Sample)

    table = found(one, two, other)

    clash = table["Sample"]
    assert clash.work is None
    assert "one 1.0" in clash.broken
    assert "two 1.0" in clash.broken
    assert clash.broken.startswith("MODULE_CLASH")
    assert (one.loaded, two.loaded) == (0, 0)
    assert table["Other"].work is Sample


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even this")


@pytest.mark.parametrize(
    "error",
    [ImportError("no module named x"), SystemExit(0), KeyboardInterrupt(), GeneratorExit(), Unprintable(), SyntaxError("?")],
)
def test_a_package_that_fails_to_import_is_announced_as_broken_and_the_others_are_served(
    found: Any, error: BaseException
) -> None:
    table = found(Entry("Broken", error), Entry("Sample", Sample))

    assert table["Broken"].work is None
    assert type(error).__name__ in table["Broken"].broken
    assert table["Sample"].work is Sample


@pytest.mark.parametrize("thing", [int, Sample.process, object(), None, "Sample", modules])
def test_what_is_no_work_module_is_broken(found: Any, thing: Any) -> None:
    module = found(Entry("Thing", thing))["Thing"]

    assert module.work is None
    assert "WorkModule" in module.broken


@pytest.mark.parametrize("name", ["", "1st", "a b", "ü", "a/b", "x" * 129, "a\n", "-a"])
def test_a_name_that_no_job_could_ask_for_is_broken(found: Any, name: str) -> None:
    assert found(Entry(name, Sample))[name].work is None


def _with(**attributes: Any) -> type[WorkModule]:
    return type("Made", (Sample,), attributes)


def test_the_defaults_of_a_class_are_read_in_microseconds(found: Any) -> None:
    work = _with(max_attempts=7, backoff=(2, 60), timeout=1.5)

    module = found(Entry("Made", work))["Made"]

    assert (module.max_attempts, module.timeout_us) == (7, 1_500_000)
    assert (module.backoff_us, module.backoff_max_us) == (2 * SECOND_US, 60 * SECOND_US)


def test_the_lengths_of_a_class_may_be_timedeltas(found: Any) -> None:
    work = _with(backoff=(timedelta(seconds=2), timedelta(minutes=1)), timeout=timedelta(hours=1))

    module = found(Entry("Made", work))["Made"]

    assert module.timeout_us == 3_600 * SECOND_US
    assert (module.backoff_us, module.backoff_max_us) == (2 * SECOND_US, 60 * SECOND_US)


def test_a_single_backoff_leaves_the_longest_to_the_server(found: Any) -> None:
    module = found(Entry("Made", _with(backoff=0.5)))["Made"]

    assert (module.backoff_us, module.backoff_max_us) == (500_000, None)


@pytest.mark.parametrize(
    "attributes",
    [
        {"max_attempts": 0}, {"max_attempts": 101}, {"max_attempts": True}, {"max_attempts": "5"}, {"max_attempts": 2.0},
        {"timeout": 0.5}, {"timeout": 86_401}, {"timeout": float("nan")}, {"timeout": "9"}, {"timeout": True},
        {"backoff": -1}, {"backoff": float("inf")}, {"backoff": (1, 2, 3)}, {"backoff": ()}, {"backoff": (1, "x")},
        {"backoff": "1"}, {"isolation": "thread"}, {"isolation": None}, {"isolation": []},
    ],
)  # fmt: skip
def test_a_mistake_in_a_class_shows_when_the_worker_starts(found: Any, attributes: dict[str, Any]) -> None:
    module = found(Entry("Made", _with(**attributes)))["Made"]

    assert module.work is None
    assert module.broken


def test_a_module_says_where_it_runs_and_from_where_it_is_imported(found: Any) -> None:
    class Apart(Sample):
        isolation = "process"

    module = found(Entry("Made", Apart))["Made"]

    assert (module.work, module.isolation, module.broken) == (Apart, "process", None)
    assert module.source == f"{__name__}:{Apart.__qualname__}"
    assert modules.announcement(module).isolation == "process"


def test_a_module_whose_import_is_deadly_is_not_imported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    deadly, harmless = Entry("Deadly", Sample), Entry("Harmless", Sample)
    monkeypatch.setattr(importlib_metadata, "entry_points", lambda group: (deadly, harmless))
    imported: list[str] = []

    table = modules.discover(imported.append, {"Deadly": "its import ended the process"})

    assert (deadly.loaded, harmless.loaded, imported) == (0, 1, ["Harmless"])
    assert (table["Deadly"].work, table["Deadly"].broken) == (None, "its import ended the process")


def _run(told: list[Any] | None = None, *, cancelled: bool = False) -> Run:
    job = RunningJobView("id", "k", "Sample", "any", 0, 1, to_datetime(0), fence=1, params={"a": 1})
    told = [] if told is None else told
    return Run(job, logging.LoggerAdapter(logging.getLogger("x"), {}), lambda *words: told.append(words), lambda: cancelled)


def test_an_instance_knows_its_attempt() -> None:
    run = _run()

    work = Sample(run)

    assert work.params == {"a": 1}
    assert work.job.idempotency_key == "id"
    assert work.log is run.log
    assert work.process() == {"a": 1}


def test_a_module_without_process_says_so() -> None:
    class Empty(WorkModule):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no process"):
        Empty(_run()).process()


def test_a_module_without_process_is_broken_from_the_start(found: Any) -> None:
    made = found(Entry("Made", type("Made", (WorkModule,), {})))["Made"]

    assert "Made has no process, which is what runs" in (made.broken or "")


def test_a_stop_that_was_asked_is_seen() -> None:
    assert not Sample(_run()).cancelled
    assert Sample(_run(cancelled=True)).cancelled


@pytest.mark.parametrize(
    ("given", "expected"), [(0, 0.0), (0.5, 0.5), (1, 1.0), (-3, 0.0), (7, 1.0), (float("inf"), 1.0), (float("-inf"), 0.0)]
)
def test_progress_is_kept_between_nothing_and_all(given: float, expected: float) -> None:
    told: list[Any] = []

    Sample(_run(told)).progress(given, "half")

    assert told == [(expected, "half")]


def test_progress_that_is_no_number_is_still_a_fraction() -> None:
    told: list[Any] = []

    Sample(_run(told)).progress(float("nan"))

    assert 0 <= told[0][0] <= 1


def test_progress_words_are_cut_to_what_the_wire_takes() -> None:
    told: list[Any] = []

    Sample(_run(told)).progress(1, "x" * 1_000)

    assert len(told[0][1]) == 255


def test_a_retry_says_after_how_long_and_a_fail_says_why() -> None:
    assert Retry().after_us is None
    assert Retry(after=1.5).after_us == 1_500_000
    assert Retry("busy", after=0).after_us == 0
    assert str(Fail("no such user")) == "no such user"


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), "1", True])
def test_a_retry_after_no_time_is_a_mistake(after: Any) -> None:
    with pytest.raises(BadRequest):
        Retry(after=after)


def test_defaults_are_left_open_by_the_base_class() -> None:
    defaults: ClassVar[Any] = (WorkModule.max_attempts, WorkModule.backoff, WorkModule.timeout, WorkModule.isolation)

    assert defaults == (None, None, None, "greenlet")
