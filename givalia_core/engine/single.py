"""One command decided outside a server, in a transaction of a program that has a connection to a shared store.

The same verbs decide as in a server, over jobs that the caller has read and locked. Nothing is written here: the caller writes
the changes, and ensures that some server makes the hook calls.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from givalia_core.clock import Now
from givalia_core.engine.answers import VERBS, answer_one
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Names, wanted
from givalia_core.engine.leases import OWN_CODE
from givalia_core.engine.records import Hook
from givalia_core.hooks import HOOKS
from givalia_core.policy import Policy
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Change, Found, Wanted
from givalia_core.store.shared import Event

NOBODY: Final = -1  # The number of a server that looks after no lease.


class SingleDecision(NamedTuple):
    """The answer to the command, the changes to store to make it true, and the hook calls that are then owed."""

    answer: Answer
    changes: list[Change]
    events: list[Event]


class Single:
    """One command, and the question to the store that it needs."""

    def __init__(self, kind: Kind, message: object, policy: Policy, durability: str) -> None:
        """Take a command of a client or a worker; `durability` is what the answer to an enq says."""
        self._asked = Asked(OWN_CODE, 0, kind, [message])
        self._policy = policy
        self._durability = durability
        names = Names()
        VERBS[kind].needs(names, self._asked, self._desk())
        self.wanted: Wanted = wanted(names)

    def _desk(self) -> Desk:
        desk = Desk(self._policy, NOBODY, 0, random.Random(), is_shared=True)
        desk.durability = self._durability
        desk.listening = frozenset(HOOKS)
        return desk

    def decide(self, found: Found, now: Now) -> SingleDecision:
        """Decide over the jobs that were read; call this again when something has changed."""
        desk = self._desk()
        desk.use_numbers(found.floor)
        batch = Batch(desk, found, now)
        answer = answer_one(VERBS[self._asked.kind], batch, self._asked, self._asked.messages[0])
        assert answer is not None, "this command is answered later, and nobody would"
        hooks = [effect for _, effect in batch.effects if isinstance(effect, Hook)]
        return SingleDecision(
            answer,
            batch.changes(),
            [Event(hook.name, hook.job, hook.extra.get("running")) for hook in hooks],
        )
