"""What each of our processes does to itself when it starts: its log, and the garbage collector."""

from __future__ import annotations

import gc
import logging
from typing import Final

from givalia_core.errors import SettingsInvalid

LOG_HANDLER: Final = "givalia"  # Plugins look for the handler by this name, to change its form rather than add to it.


def start_log(level: str, file: str) -> None:
    """One handler for the whole program."""
    try:
        handler: logging.Handler = logging.FileHandler(file) if file else logging.StreamHandler()
    except OSError as error:
        raise SettingsInvalid(f"log file {file}: {error}") from None
    handler.set_name(LOG_HANDLER)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("givalia")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def spare_the_collector() -> None:
    """A job leaves no cycles behind; looking for some after every few hundred records would only cost time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
