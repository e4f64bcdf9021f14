"""Puts this folder on the path, so that tests find the simulation's own modules (`sim_*`)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
