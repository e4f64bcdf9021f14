"""The builtins as they were when Givalia was imported.

A job may replace those of the module `builtins`, for itself and for all who share its process. Functions that are made behind
`__builtins__ = BUILTINS` in their module keep these instead: a function takes the builtins from the globals it is made with.
"""

from __future__ import annotations

import builtins
from typing import Any

BUILTINS: Any = dict(vars(builtins))
