"""The settings that the engine's decisions depend on."""

from __future__ import annotations

from typing import NamedTuple

from givalia_core.clock import SECOND_US


class Policy(NamedTuple):
    """The settings that decisions depend on; times in microseconds."""

    lease_us: int = 30 * SECOND_US
    max_attempts: int = 5
    backoff_us: int = SECOND_US
    backoff_max_us: int = 600 * SECOND_US
    retain_us: int = 3_600 * SECOND_US
    retain_max: int = 1_000_000
    retain_dead_us: int = 30 * 86_400 * SECOND_US
    retain_dead_max: int = 100_000
    live_max: int = 100_000_000
