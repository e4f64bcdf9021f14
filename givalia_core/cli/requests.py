"""What signals ask of a server or worker: stop, stop at once, or read the settings again.

SIGTERM and SIGINT ask to stop. Others of them within a second are the same request: Ctrl+C reaches every process of a terminal,
and who started this one often sends SIGTERM right behind it. SIGUSR1 asks to read the settings again. So does SIGHUP, unless
it says that the terminal of this process is gone; then it asks to stop.
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
    """The requests of one program. Make it before the program starts anything, and let it `note` what comes before `listen`.

    Args:
        force: Ends the process at once; called for a second request to stop.
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
        """Set once it was asked to stop."""
        # `nohup` starts a program with SIGHUP ignored: it outlives its terminal.
        is_to_last = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._had_terminal = not is_to_last and self._can_open_terminal()

    def note(self) -> None:
        """Let no reload end the program while it starts; `listen` sees to what was asked for meanwhile."""
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: self._noted.append(number))

    def listen(self, reload: Callable[[str], object]) -> None:
        """Take signals from now on. `reload` is called with the signal's name, in a greenlet of its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self.ask_to_stop, signal.Signals(number).name)
        gevent.signal_handler(signal.SIGHUP, self.hang_up, reload)
        gevent.signal_handler(signal.SIGUSR1, gevent.spawn, reload, "SIGUSR1")
        if self._noted:  # One is as good as several. What is read again may have changed since it was read.
            self.hang_up(reload)

    def ask_to_stop(self, why: str) -> None:
        """Stop, or force the end if that was asked more than a second ago."""
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
            if self._asked_s is None:  # The end of a terminal may be said twice, by the system and by a shell.
                self.ask_to_stop("SIGHUP, and the terminal is gone")
        else:
            gevent.spawn(reload, "SIGHUP")

    def _can_open_terminal(self) -> bool:
        try:
            os.close(os.open(self._terminal, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return False
        return True
