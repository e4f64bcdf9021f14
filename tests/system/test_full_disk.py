"""A disk that is really full for `GIVALIA_FULL_S` seconds, under mixed load. Mounting needs root: `make test-all`."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import time
from pathlib import Path

import pytest
from system_disks import Filler, mounted
from system_rig import Rig
from waits import await_true

from givalia_core import Client
from givalia_core.errors import Busy, GivaliaError, NotFound, StoreFull, WaitTimeout, WrongState

FULL_S = float(os.environ.get("GIVALIA_FULL_S", "0"))
SEED = int(os.environ.get("GIVALIA_SEED", random.randrange(1 << 30)))


class Load:
    """Asks for everything there is, one after the other, and remembers what was answered."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        self.client = client
        self.chance = chance
        self.live: set[str] = set()
        self.cancelled: set[str] = set()
        self.refused = self.questions = self.changed = 0

    def enq(self) -> None:
        try:
            job = self.client.enq("Echo", time=3_600, key=f"k{self.chance.getrandbits(60)}", params=bytes(20_000))
        except StoreFull:
            self.refused += 1
        else:
            self.live.add(job.id)

    def stat(self) -> None:
        self.client.stat(id=self.chance.choice(sorted(self.live)))
        list(itertools.islice(self.client.list("waiting"), 20))
        self.questions += 1

    def cancel(self) -> None:
        job = self.chance.choice(sorted(self.live))
        with contextlib.suppress(StoreFull, Busy):
            self.client.cancel(id=job)
            self.live.discard(job)
            self.cancelled.add(job)
            self.changed += 1

    def ext(self) -> None:
        with contextlib.suppress(StoreFull, Busy):
            self.client.ext(id=self.chance.choice(sorted(self.live)), time=1)
            self.changed += 1

    def run(self) -> None:
        """Once each of these."""
        for ask in (self.enq, self.stat, self.ext, self.stat, self.ext, self.cancel):
            if len(self.live) > 20 or ask is self.enq:
                began = time.monotonic()
                ask()
                assert time.monotonic() - began < 10, ask


@pytest.mark.parametrize("others", ["stand still", "take every byte"])
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_full_disk_ends_nothing_and_loses_nothing(rig: Rig, tmp_path: Path, kind: str, others: str) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    with mounted(kind, tmp_path) as place:
        rig.store = place / "store" / "queue.db"
        server = rig.start_server("--log-level", "info")
        worker = rig.start_worker()
        client = rig.client()
        load, filler = Load(client, random.Random(SEED)), Filler(place)
        for _ in range(200):
            load.enq()
        soon = [client.enq("Echo", params=n, time=2 + n * FULL_S / 2_000) for n in range(1_000)]  # Settled while it is full.
        filler.fill()
        until = time.monotonic() + FULL_S
        while time.monotonic() < until:
            load.run()
            if others == "take every byte":
                filler.fill()
        assert server.is_alive
        assert load.refused
        assert "the disk of the store is full" in client.info()["troubles"]["store_full"]["words"]
        assert load.questions
        print(f"{kind}, others {others}: {load.refused} refused, {load.questions} questions, {load.changed} changes while full")

        filler.remove()

        freed = time.monotonic()
        before = len(load.live)
        await_true(lambda: (load.enq(), len(load.live) > before)[1], "new jobs are taken", 5)
        print(f"new jobs after {time.monotonic() - freed:.1f} s")
        for handle in soon:
            try:
                handle.wait(timeout=60)
            except WaitTimeout:
                pytest.fail(f"{client.stat(id=handle.id)}\n{server.log[-3000:]}\n{worker.log[-3000:]}")
        for job in load.live:
            assert client.stat(id=job).state == "waiting"
        for job in load.cancelled:
            with contextlib.suppress(NotFound):
                assert client.stat(id=job).state == "cancelled"
        with pytest.raises((WrongState, GivaliaError)):
            client.ext(id=next(iter(load.cancelled)), time=1)
        server.await_log(r"store_full is over after \d+ s: the store has room again", 30)
        said = re.findall(r"WARNING givalia\.server: (store_full): |store_full (is over)", server.log)
        assert said == [("store_full", ""), ("", "is over")]
        assert client.info()["troubles"]["store_full"] is None
        assert server.is_alive
        assert worker.stop() == 0
        assert server.stop() == 0
        done = rig.run("givalia", "store", "check", "--store", f"sqlite://{rig.store}")
        assert done.returncode == 0, done.stderr
