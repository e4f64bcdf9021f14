"""Native threads, whether or not gevent has patched the standard library of the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gevent import monkey

thread_now: Final[Callable[[], int]] = monkey.get_original("_thread", "get_ident")
"""Return the id of the calling native thread; in a patched process `threading.get_ident` returns one for each greenlet."""
