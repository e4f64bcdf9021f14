"""A copy of a running server's store replaces the original: jobs that were acknowledged before the copy are there and go on."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest
from system_rig import Rig


def test_server_that_is_lost_goes_on_from_its_backup(rig: Rig) -> None:
    # given a server that takes jobs all the time
    server = rig.start_server()
    rig.start_worker()
    client = rig.client()
    client.enq_many([{"module": "Echo", "time": 600, "key": f"waits-{number}", "params": number} for number in range(500)])
    assert client.enq("Echo", params="before", key="ended").wait(10) == "before"
    enough = threading.Event()

    def go_on() -> None:
        with rig.client() as other:
            number = 0
            while not enough.is_set():
                number += 1
                other.enq("Echo", params=number)

    busy = threading.Thread(target=go_on)
    busy.start()

    # when
    copy = rig.folder / "copy.db"
    try:
        told = rig.cli_json("backup", copy)
    finally:
        enough.set()
        busy.join(20)
    client.enq("Echo", time=600, key="after the copy")
    server.kill()
    copy.rename(rig.store)
    server = rig.start_server()

    # then
    server.await_log("this is a copy of another store, made at .* Fences begin at epoch")
    assert told["jobs"] > 500
    assert {client.stat(f"waits-{number}").state for number in range(500)} == {"waiting"}
    assert client.stat("ended").result == "before"
    assert rig.cli("stat", "after the copy").returncode == 66
    client.ext("waits-7", at=0)
    assert client.wait(client.stat("waits-7").id, 20) == 7
    assert server.stop() == 0
    assert rig.run("givalia", "store", "check", "--store", f"sqlite://{rig.store}").returncode == 0


def test_foreign_tool_of_sqlite_hangs_neither_the_server_nor_itself(rig: Rig) -> None:
    # given
    server = rig.start_server()
    client = rig.client()
    client.enq("Echo", time=600, key="kept")

    # when, then
    for words in ("SELECT count(*) FROM jobs", "BEGIN IMMEDIATE"):
        with (
            closing(sqlite3.connect(rig.store, timeout=0.1)) as foreign,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            foreign.execute(words)
        assert client.ext("kept", time=1)
    assert server.stop() == 0

    # when the tool has the file open before the server, then that start is refused at once, and the next one is not
    with closing(sqlite3.connect(rig.store, isolation_level=None)) as foreign:
        foreign.execute("BEGIN")
        foreign.execute("SELECT count(*) FROM jobs").fetchone()
        refused = rig.run("givalia-server", "-p", 0, "-w", 0, "--store", f"sqlite://{rig.store}")
        assert (refused.returncode, "STORE_LOCKED" in refused.stderr) == (75, True)
    rig.start_server()
    assert rig.client().stat("kept").state == "waiting"
