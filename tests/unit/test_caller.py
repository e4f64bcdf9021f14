"""The connecting side: what it makes of what a server says."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core import Busy
from givalia_core.protocol.caller import retry_after_s


@pytest.mark.parametrize(
    ("said", "expected"),
    [(2, 2.0), (0.5, 0.5), (0, 1.0), (-3, 1.0), (1e-9, 0.05), (1e9, 60.0), (float("nan"), 1.0), (True, 1.0), ("5", 1.0)],
)
def test_a_busy_server_is_asked_again_when_it_says_within_reason(said: Any, expected: float) -> None:
    assert retry_after_s(Busy("later", retry_after=said)) == expected


def test_a_busy_server_that_does_not_say_when_is_asked_again_in_a_second() -> None:
    assert retry_after_s(Busy("later")) == 1.0
