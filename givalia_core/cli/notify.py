"""What a program tells the service manager that started it, by the protocol of sd_notify: ready, reloading, stopping, alive.

A message is one datagram of `NAME=value` lines to the socket that the manager names in the environment. Without that name
nothing is said, and a manager that does not listen never stops or delays a program for long: it looks on, it takes no part.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, MutableMapping
from typing import Final

import gevent
from gevent import socket

from givalia_core.clock import SECOND_US, SystemClock

SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG_US: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"
SEND_S: Final = 2.0  # How long a message may wait for room; the manager reads all day, so this is long.
DOUBTS: Final = 10  # How often, in a period, to look again at what does not seem to be alive.

log = logging.getLogger("givalia")


class Notifier:
    """Speaks to one service manager, from any greenlet or thread; says nothing if there is none.

    Args:
        address: The path of its socket, or with `@` before it the name of an abstract one; empty: there is no manager.
        watchdog_us: After how long without a sign of life it ends this process; 0: it does not watch.
    """

    def __init__(self, address: str = "", watchdog_us: int = 0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._is_ready = False
        self._is_unheard = False
        self.period_s = watchdog_us / SECOND_US / 2 if address else 0.0
        """How often the manager wants a sign of life, in seconds; 0: it does not watch."""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """For the manager that the environment names, which is taken out of it: what this process starts is not the service."""
        address, length, pid = (environ.pop(name, "") for name in (SOCKET, WATCHDOG_US, WATCHDOG_PID))
        is_watched = length.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(length) if is_watched else 0)

    def ready(self, words: str = "") -> None:
        """What this program is for, it does now."""
        self._is_ready = True
        self._say("READY=1", words)

    def reloading(self, words: str = "") -> None:
        """The settings are being read again; `reloaded` ends it. The instant lets the manager tell this reload from others."""
        if self._is_ready:
            self._say("RELOADING=1", f"MONOTONIC_USEC={SystemClock().read().mono_us}", words)

    def reloaded(self, words: str = "") -> None:
        """They are read, or left as they were. Says nothing before `ready`: for the manager both are one word."""
        if self._is_ready:
            self._say("READY=1", words)

    def stopping(self, words: str = "") -> None:
        """The end has begun."""
        self._say("STOPPING=1", words)

    def status(self, words: str) -> None:
        """A few words for people who ask the manager what this program does."""
        self._say("", words)

    def alive(self) -> None:
        """A sign of life; at least every `period_s`."""
        self._say("WATCHDOG=1", "")

    def watch_forever(self, is_alive: Callable[[], bool] = lambda: True) -> None:
        """Give a sign of life every period, as long as there is one; returns at once if nobody watches.

        It is given by the hub of the thread that calls this, so one that hangs gives none. What does not seem to be alive is
        looked at again soon: after a pause of the whole process this may run before what it looks at.
        """
        while self.period_s:
            if is_alive():
                self.alive()
                gevent.sleep(self.period_s)
            else:
                gevent.sleep(self.period_s / DOUBTS)

    def _say(self, *lines: str) -> None:
        """Send the lines, of which the last one is words for people; empty ones are left out."""
        if not self._address:
            return
        *facts, words = lines
        if words:
            facts.append("STATUS=" + " ".join(words.split()))  # A line break would begin another fact.
        message = "\n".join(fact for fact in facts if fact).encode(errors="replace")
        try:
            # Connected, for only so the system says when a full queue has room again.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_S)
                sock.connect(self._address)
                sock.send(message)
        except OSError as error:
            if not self._is_unheard:
                log.warning("the service manager does not hear what it asked for: %s", error)
            self._is_unheard = True
