"""The constants of every run, which the judge knows, too."""

from __future__ import annotations

from typing import Final

from givalia_core.clock import SECOND_US

MODULES: Final = {"Mail": None, "Rebuild": 2, "Ghost": None}
"""Module -> the attempts that its workers announce. Until the end of a run nobody serves Ghost."""
VERSIONS: Final = ("1.4", "2.0rc1", "2.1")
"""What a worker that starts may have of its modules: its fleet is upgraded, and set back, all the time."""
SPECIFIERS: Final = (">=2", "<2", "==1.*", ">=1,<3")
"""What jobs ask for; each is satisfied by one of the versions at least."""
ATTEMPTS: Final = 3
BACKOFF_US: Final = 500_000
BACKOFF_MAX_US: Final = 4 * SECOND_US
EXCUSED_US: Final = 1  # Rounding.
CALM_US: Final = 30 * SECOND_US  # Longer than any fault lasts once faults have stopped.
PATIENCE_US: Final = 10 * SECOND_US  # How long a client waits for an answer before it connects anew.
RESENDS_FOR_US: Final = 60 * SECOND_US  # What the client library promises ("Sending again" in docs/delivery.md).
