"""What the supervisor says to one of its processes arrives, whatever came before it."""

from __future__ import annotations

import os
from typing import Any

import gevent
from gevent import socket

from givalia_core.worker import notes
from givalia_core.worker.family import Member
from givalia_core.worker.notes import Logged, Start, Told

DEPTH = 2_000  # More than can be packed.


def test_a_note_that_cannot_be_packed_does_not_hold_up_those_behind_it() -> None:
    member = Member("job", lambda heard: None, lambda status: None)
    (channel, page, _), member.given = member.given, []  # As when the nursery has them.
    os.close(page)
    theirs = socket.socket(fileno=channel)
    deep: list[Any] = []
    for _ in range(DEPTH):
        deep = [deep]

    member.tell(Logged({"msg": deep}))
    gevent.sleep(0)
    member.tell(Start(), Told(b"j" * 16, 7))
    with gevent.Timeout(5):
        heard = notes.Reader().feed(theirs.recv(1_000))

    theirs.close()
    member.end(0)
    assert heard == [Start(), Told(b"j" * 16, 7)]
