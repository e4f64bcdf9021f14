"""One store has one server: a second server is refused at once, learns which one holds the store, and writes nothing."""

from __future__ import annotations

import hashlib
import time

from system_rig import Rig


def _bytes(rig: Rig) -> dict[str, str]:
    files = [file for file in sorted(rig.store.parent.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_second_server_on_a_store_is_refused_naming_the_first(rig: Rig) -> None:
    first = rig.start_server()
    job = rig.client().enq("Echo", time=60, key="kept")
    before = _bytes(rig)
    started = time.monotonic()

    second = rig.run("givalia-server", "-p", 0, "-w", 0, "--store", f"sqlite://{rig.store}")

    assert second.returncode == 75
    assert time.monotonic() - started < 3  # Most of it is Python starting.
    assert "STORE_LOCKED" in second.stderr
    assert str(first.pid) in second.stderr
    assert second.stdout == ""
    assert _bytes(rig) == before
    assert rig.client().stat("kept").id == job.id


def test_looking_at_a_store_that_a_server_has_is_refused_too(rig: Rig) -> None:
    first = rig.start_server()

    done = rig.run("givalia", "store", "check", "--store", f"sqlite://{rig.store}")

    assert done.returncode == 75
    assert str(first.pid) in done.stderr


def test_a_store_is_free_as_soon_as_its_server_is_gone(rig: Rig) -> None:
    for end in ("stop", "kill"):
        server = rig.start_server()
        getattr(server, end)()

    assert rig.run("givalia", "store", "check", "--store", f"sqlite://{rig.store}").returncode == 0
