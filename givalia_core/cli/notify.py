"""Messages to the service manager that started the program, by the sd_notify protocol: ready, reloading, stopping, alive.

A message is one datagram of `NAME=value` lines to the socket that the manager names in the environment. Without a socket
nothing is sent. A manager that does not read never stops the program, and never delays it for long.
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
SEND_S: Final = 2.0  # How long a message may wait for room; the manager reads all the time, so this is long.
DOUBTS: Final = 10  # Polls per period while the program does not seem to be alive.

log = logging.getLogger("givalia")


class Notifier:
    """Sends messages to one service manager, from any greenlet or thread; does nothing if there is no manager.

    Args:
        address: The path of the manager's socket, or `@` and the name of an abstract one; empty: there is no manager.
        watchdog_us: The manager ends this process after this time without a sign of life; 0: it does not watch.
    """

    def __init__(self, address: str = "", watchdog_us: int = 0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._is_ready = False
        self._is_unheard = False
        self.period_s = watchdog_us / SECOND_US / 2 if address else 0.0
        """The interval of signs of life, in seconds; 0: the manager does not watch."""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Make one for the manager named in the environment, and remove the name: child processes are not the service."""
        address, length, pid = (environ.pop(name, "") for name in (SOCKET, WATCHDOG_US, WATCHDOG_PID))
        is_watched = length.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(length) if is_watched else 0)

    def ready(self, words: str = "") -> None:
        """Say that the program does its work now."""
        self._is_ready = True
        self._say("READY=1", words)

    def reloading(self, words: str = "") -> None:
        """Say that a reload has begun; `reloaded` ends it. The instant identifies the reload."""
        if self._is_ready:
            self._say("RELOADING=1", f"MONOTONIC_USEC={SystemClock().read().mono_us}", words)

    def reloaded(self, words: str = "") -> None:
        """Say that the reload is over. Says nothing before `ready`, because the manager has the same word for both."""
        if self._is_ready:
            self._say("READY=1", words)

    def stopping(self, words: str = "") -> None:
        """Say that the program is stopping."""
        self._say("STOPPING=1", words)

    def status(self, words: str) -> None:
        """Set the few words by which the manager describes the program to people."""
        self._say("", words)

    def alive(self) -> None:
        """Give a sign of life; due at least every `period_s`."""
        self._say("WATCHDOG=1", "")

    def watch_forever(self, is_alive: Callable[[], bool] = lambda: True) -> None:
        """Give a sign of life every period while `is_alive`; return at once if the manager does not watch.

        The hub of the calling thread gives the sign, so a hub that hangs gives none. If the program does not seem alive, it is
        polled again soon: after a pause of the whole process, this may run before the code that it polls.
        """
        while self.period_s:
            if is_alive():
                self.alive()
                gevent.sleep(self.period_s)
            else:
                gevent.sleep(self.period_s / DOUBTS)

    def _say(self, *lines: str) -> None:
        """Send the lines, the last of which is text for people; empty ones are left out."""
        if not self._address:
            return
        *facts, words = lines
        if words:
            facts.append("STATUS=" + " ".join(words.split()))  # A line break would begin another fact.
        message = "\n".join(fact for fact in facts if fact).encode(errors="replace")
        try:
            # Connected, because otherwise the system does not tell when a full queue has room again.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_S)
                sock.connect(self._address)
                sock.send(message)
        except OSError as error:
            if not self._is_unheard:
                log.warning("the service manager cannot be reached: %s", error)
            self._is_unheard = True
