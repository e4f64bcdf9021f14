"""The seam below a blocking client: whatever takes its calls to a server and brings the answers back.

A client in a program has an `Exchange`, with sockets; the queue of the test kit carries calls to an engine in its own process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias, TypeVar

from givalia_core.client.talk import Call
from givalia_core.times import Length

T = TypeVar("T")
OnProgress: TypeAlias = Callable[[float, str], object]


class Carrier(Protocol):
    """Carries the calls of a blocking client."""

    def ask(self, call: Call[T], timeout: Length | None = None, on_progress: OnProgress | None = None) -> T:
        """Return the answer to one command; of a wait within `timeout`, None is for ever.

        Raises:
            GivaliaError: The command was refused, its outcome is unknown, or the job ended without a result.
        """

    def several(self, calls: Iterable[Call[Any]]) -> list[Any]:
        """Return the answers to many calls, in order; refusals are among them."""

    def close(self) -> None:
        """Carry nothing more."""
