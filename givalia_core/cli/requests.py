"""Requests to a server or worker by signals: stop, stop at once, or read the settings again.

SIGTERM and SIGINT request a stop. Further ones within a second belong to the same request: Ctrl+C reaches every process of a
terminal, and the parent process often sends SIGTERM right after it. SIGUSR1 requests a reload of the settings. So does SIGHUP,
unless the terminal of this process is gone; then it requests a stop.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Final

import gevent
from gevent.event import Event

SAME_REQUEST_S: Final = 1.0
TERMINAL: Final = "/dev/tty"

log = logging.getLogger("givalia")


class Requests:
    """The requests to one program. Make it before the program starts anything, and call `note`, later `listen`.

    Args:
        force: Ends the process at once; called at a second request to stop.
        terminal: Path of the controlling terminal.
        clock: Monotonic seconds.
    """

    def __init__(
        self, force: Callable[[], None], *, terminal: str = TERMINAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._force, self._terminal, self._clock = force, terminal, clock
        self._asked_s: float | None = None
        self._noted: list[int] = []
        self.stop = Event()
        """Set once a stop was requested."""
        # `nohup` starts a program with SIGHUP ignored: the program outlives its terminal.
        is_to_last = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._had_terminal = not is_to_last and self._can_open_terminal()

    def note(self) -> None:
        """Remember requests to reload while the program starts; `listen` carries them out."""
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self._noted.append(number))

    def listen(self, reload: Callable[[str], object]) -> None:
        """Handle signals from now on. `reload` is called with the signal's name, in a greenlet of its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self.ask_to_stop, signal.Signals(number).name)
        gevent.signal_handler(signal.SIGHUP, self.hang_up, reload)
        gevent.signal_handler(signal.SIGUSR1, gevent.spawn, reload, "SIGUSR1")
        if self._noted:  # One reload for all of them. The settings may have changed since they were read.
            self.hang_up(reload)

    def ask_to_stop(self, why: str) -> None:
        """Stop; force the end if the first request came more than a second ago."""
        now_s = self._clock()
        if self._asked_s is None:
            self._asked_s = now_s
            log.info("%s: draining", why)
            self.stop.set()
        elif now_s - self._asked_s >= SAME_REQUEST_S:
            log.warning("%s while it drains: it ends at once, whatever is under way", why)
            self._force()

    def hang_up(self, reload: Callable[[str], object]) -> None:
        """Stop if the terminal of this process is gone, else reload."""
        if self._had_terminal and not self._can_open_terminal():
            if self._asked_s is None:  # Both the system and a shell may send SIGHUP when a terminal ends.
                self.ask_to_stop("SIGHUP, and the terminal is gone")
        else:
            gevent.spawn(reload, "SIGHUP")

    def _can_open_terminal(self) -> bool:
        try:
            os.close(os.open(self._terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return False
        return True
