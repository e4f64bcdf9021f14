"""Builtins and the clock as they were when Givalia was imported: a job may replace them for all code in its process.

A module keeps the builtins with `__builtins__ = BUILTINS`, since functions take them from the globals they are made with. And
it imports functions by name, for `from os import getpid` keeps the function, while `os.getpid` is looked up at each call.
"""

from __future__ import annotations

import builtins
import time
from typing import Any

BUILTINS: Any = dict(vars(builtins))
"""Never changed; a copy, because `vars(builtins)` is what a job changes."""


class Clock:
    """The clock. It is the attribute of a class because libraries that fake the time replace it in all modules."""

    monotonic = staticmethod(time.monotonic)
    monotonic_ns = staticmethod(time.monotonic_ns)
