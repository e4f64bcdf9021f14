"""What each of our processes does to itself when it starts: its log, and the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
from typing import Any, Final

from givalia_core.errors import SettingsInvalid
from givalia_core.printable import Formatter

LOG_HANDLER: Final = "givalia"  # Plugins look for the handler by this name, to change its form rather than add to it.


def start_log(level: str, file: str) -> None:
    """One handler for the whole program."""
    try:
        handler: logging.Handler = (
            logging.FileHandler(file, encoding="utf-8", errors="backslashreplace") if file else logging.StreamHandler()
        )
    except OSError as error:
        raise SettingsInvalid(f"log file {file}: {error}") from None
    handler.set_name(LOG_HANDLER)
    handler.setFormatter(Formatter())
    root = logging.getLogger("givalia")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


_malloc_trim: Final[Any] = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Give freed memory back to the system where the allocator of C does not do so by itself: between large pieces it keeps it.

    Takes about a millisecond for each ten MiB that are given back; does nothing where there is no such call.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def spare_the_collector() -> None:
    """A job leaves no cycles behind; looking for some after every few hundred records would only cost time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
