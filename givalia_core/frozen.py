"""Builtins and the clock as they were when Givalia was imported; a job may replace them for all code in its process.

A module keeps the builtins by `__builtins__ = BUILTINS`, because functions take them from their globals. It also imports
functions by name: `from os import getpid` keeps the function, while `os.getpid` looks it up at each call.
"""

from __future__ import annotations

import builtins
import time
from typing import Any

BUILTINS: Any = dict(vars(builtins))
"""Never changed; a copy, because `vars(builtins)` is what a job changes."""


class OwnClock:
    """The clock, as an attribute of a class: libraries that fake the time replace the function in all modules."""

    monotonic = staticmethod(time.monotonic)
    monotonic_ns = staticmethod(time.monotonic_ns)
