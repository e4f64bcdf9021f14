"""A message of the supervisor to one of its processes arrives, whatever came before it."""

from __future__ import annotations

import os
import signal
from typing import Any

import gevent
from gevent import socket
from gevent.event import AsyncResult
from waits import yield_until

from givalia_core.worker import notes
from givalia_core.worker.notes import Logged, PluginsTold, Start
from givalia_core.worker.processes.family import Member, NurseryHandle

DEPTH = 2_000  # More than can be packed.


def test_a_note_that_cannot_be_packed_costs_those_said_with_it_and_behind_it_nothing() -> None:
    member = Member("job", lambda heard: None, lambda status: None)
    (channel, page, _), member.given = member.given, []  # As when the nursery has them.
    os.close(page)
    theirs = socket.socket(fileno=channel)
    deep: list[Any] = []
    for _ in range(DEPTH):
        deep = [deep]

    member.tell(PluginsTold(b"i" * 16, 6), Logged({"msg": deep}), PluginsTold(b"j" * 16, 7))
    gevent.sleep(0)
    member.tell(Start())
    reader = notes.NoteReader()
    heard: list[Any] = []
    with gevent.Timeout(5):
        while Start() not in heard:
            heard += reader.feed(theirs.recv(1_000))

    theirs.close()
    member.end(0)
    assert heard == [PluginsTold(b"i" * 16, 6), PluginsTold(b"j" * 16, 7), Start()]


def test_nobody_is_to_blame_for_a_process_that_ends_with_its_nursery() -> None:
    ended: AsyncResult[int] = AsyncResult()
    member = Member("job", lambda heard: None, ended.set)
    nursery = NurseryHandle(lambda: None)
    nursery.fork(member)
    yield_until(lambda: member.pid, "the process", 20)
    member.page.current = 7  # It is just in the code of this one.

    os.kill(nursery.pid, signal.SIGKILL)

    status = ended.get(timeout=20)
    assert member.last_current == 0
    assert member.words_for(status) == "the process that had made it is gone"
