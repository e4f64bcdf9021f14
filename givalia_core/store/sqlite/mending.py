"""Mends a SQLite store: rebuilds the index from the records, and sets jobs with bad records aside."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from givalia_core.clock import boot_id
from givalia_core.model import JobState
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index import Rebuild, Scrub, Sweeper, begin, drop_bad, remake, take_bad
from givalia_core.store.sqlite.places import Damaged, Place

_DAMAGES_KEPT: Final = 100

T = TypeVar("T")
log = logging.getLogger("givalia.store")


def mend(core: Core, error: Exception) -> None:
    """Rebuild the damaged index, and note the damage unless a kill may have caused it."""
    del core.damages[_DAMAGES_KEPT:]
    why = str(error) or type(error).__name__
    if core.index.is_sure:
        core.damages.append(f"the index was damaged, and has been rebuilt: {why}")
    rebuild(core, why)


def mending(core: Core, work: Callable[[], T]) -> T:
    """Call `work`; if it meets damage in the index, rebuild the index and call `work` once more."""
    try:
        return work()
    except (Damaged, IndexError) as error:
        mend(core, error)
    return work()


def settle_in(core: Core) -> None:
    """Begin the upkeep of an index that is in step with the records."""
    core.sweeper = Sweeper(core.index, core.records, core.last_number, core.last_seq)
    core.scrub = Scrub(core.index)


def rebuild(core: Core, why: str) -> None:
    """Replace the index by one made from the records, which are read from the first to the last."""
    core.refuse_disorder()
    index, jobs = core.index, sum(core.counted.values())
    if jobs:
        log.warning("the index of %s is rebuilt from the records, %d jobs: %s", core.path, jobs, why)
    bad: list[tuple[Place, str]] = []

    def make_empty() -> None:
        remake(index, boot_id())
        begin(index, core.epoch, boot_id())

    with core.transaction():
        counts = Rebuild(index, core.records, lambda place, why: bad.append((place, why))).run(make_empty)
        for place, reason in bad:
            if place.seq:
                core.quarantine.add(place, reason)
        _correct_counts(core, counts)
        core.keep_fact("index", index.name)
    for place, reason in bad:
        log.error("job %s of %s is set aside: %s", place.seq or "?", core.path, reason)
    index.conclude(core.commits, core.last_number, core.last_seq)
    core.rebuilds += 1
    settle_in(core)


def _correct_counts(core: Core, counts: Counter[tuple[str, JobState]]) -> None:
    before = {name: count for name, count in core.counted.items() if count}
    if before != dict(counts):
        log.error(
            "%s: the records have %d jobs, the stored counts had %d: the counts are corrected",
            core.path, counts.total(), sum(core.counted.values()),
        )  # fmt: skip
        core.connection().execute("DELETE FROM counts")
        core.write_counts(counts)
        core.uncounted = {}
        core.keep_fact("commit", (core.commits, core.last_number, core.last_seq, core.mark))
        core.count_from(counts)


def set_bad_aside(core: Core) -> None:
    """Move the jobs with bad records into quarantine, so that the others go on."""
    for bad in take_bad(core.index):
        with core.transaction():
            core.quarantine.add(bad.place, bad.why)
            core.keep_fact("index", 0)  # The next start reads every record, and corrects the counts.
        drop_bad(core.index, bad)
        log.error(
            "job %d of %s (%s) is set aside: %s; givalia store check lists what is in quarantine",
            bad.place.seq, core.path, bad.lane, bad.why,
        )  # fmt: skip
