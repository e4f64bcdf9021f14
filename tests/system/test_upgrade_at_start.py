"""An upgrade is a new version and a restart; the commands that the log and the refusal print work as printed."""

from __future__ import annotations

import re
import sqlite3
import subprocess
from contextlib import closing

from system_rig import Rig

from givalia_core.store.sqlite import disk


def test_store_of_the_format_before_is_upgraded_by_a_start_and_goes_back(rig: Rig) -> None:
    # given a store as the version before left it
    server = rig.start_server()
    rig.client().enq("Echo", time=600, key="kept", params="secret")
    assert server.stop() == 0
    with closing(sqlite3.connect(rig.store)) as database:
        database.execute("PRAGMA user_version = 2")

    # when it may not be upgraded, then the command that is named does it
    url = f"sqlite://{rig.store}"
    refused = rig.run("givalia-server", "-p", 0, "-w", 0, "--store", url, "--upgrade", "manual")
    assert (refused.returncode, disk.format_of(rig.store)) == (78, 2)
    words = re.search(r"run (/\S+/givalia store upgrade --store \S+)", refused.stderr)
    assert words is not None
    ran = subprocess.run(words[1], shell=True, env={"PATH": "/bin"}, capture_output=True, text=True, check=True)
    assert ran.stdout == f"format 2 to {disk.FORMAT}\n"

    # when the way back is gone, and a server starts that may upgrade
    name = rig.store.name
    way_back = f"cd {rig.store.parent} && rm -rf {name}-wal {name}.index && mv {name}.format-2 {name}"
    subprocess.run(way_back, shell=True, check=True)
    assert disk.format_of(rig.store) == 2
    server = rig.start_server()

    # then
    assert server.await_log(r"The way back, with the server stopped: (.+), and start")[1] == way_back
    assert rig.client().stat("kept").state == "waiting"
    assert server.stop() == 0
    assert disk.format_of(rig.store) == disk.FORMAT
    assert rig.run("givalia", "store", "check", "--store", url).returncode == 0
