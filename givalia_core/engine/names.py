"""What the commands of a batch name, gathered so that it is read from the store at once."""

from __future__ import annotations

from typing import Any

from givalia_core.engine import verbs
from givalia_core.engine.desk import Desk
from givalia_core.engine.lending import LENT_TOGETHER_BYTES
from givalia_core.errors import GivaliaError
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Claim, Route, Wanted
from givalia_core.views import id_in


class Names:
    """Jobs by id, key and request, and who reports how many."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()
        self.keys: set[str] = set()
        self.past_keys: set[str] = set()
        self.requests: set[bytes] = set()
        self.requeued: set[bytes] = set()
        self.reporting: dict[int, int] = {}  # By connection, how many jobs it says have ended.
        self.has_enq = False
        self.resumed: set[bytes] = set()
        self.variants: set[Route] = set()

    def wanted(self, claims: tuple[Claim, ...], *, may_lend: bool = False) -> Wanted:
        """All of it as one question to the store, with jobs to lend besides."""
        return Wanted(
            frozenset(self.ids),
            frozenset(self.keys),
            frozenset(self.past_keys),
            frozenset(self.requests),
            claims,
            numbers=self.has_enq or may_lend or bool(claims),
            variants=frozenset(self.variants),
            claimed_bytes=LENT_TOGETHER_BYTES,
        )

    def add(self, asked: Asked, desk: Desk) -> None:
        """Note what the commands of one frame name."""
        kind = asked.kind
        if kind in (Kind.SUCCEED, Kind.FAIL, Kind.RELEASE, Kind.PROGRESS, Kind.BEAT, Kind.RESUME):
            named = {message.id for message in asked.messages if not isinstance(message, GivaliaError)}
            self.ids.update(named - desk.leases.keys())
            if kind is Kind.RESUME and desk.is_shared:
                # The worker comes from another server, perhaps, which may have taken over what this one believes to have.
                self.resumed |= named & desk.leases.keys()
            if kind in (Kind.SUCCEED, Kind.FAIL, Kind.RELEASE):
                self.reporting[asked.conn] = self.reporting.get(asked.conn, 0) + len(asked.messages)
        elif kind is Kind.ENQ:
            self.has_enq = True
            self._add_enq(asked.messages, desk)
        elif kind is Kind.RESUME_LENDING:
            self.requests.update(message.request for message in asked.messages if not isinstance(message, GivaliaError))
        elif kind in (Kind.STAT, Kind.WAIT, Kind.CANCEL, Kind.EXT, Kind.REQUEUE):
            for message in asked.messages:
                if not isinstance(message, GivaliaError):
                    self._add_named(message, is_requeue=kind is Kind.REQUEUE)

    def _add_enq(self, messages: list[Any], desk: Desk) -> None:
        for message in messages:
            if isinstance(message, GivaliaError):
                continue
            self.ids.add(message.id)
            if desk.is_shared:
                self.requests.add(message.id)  # Another server may have refused it.
            if message.key is not None:
                self.keys.add(message.key)
                if message.if_exists in ("replace", "reschedule"):
                    self.requests.add(message.id)
            if message.version is not None and (route := verbs.route_of(message)) not in desk.routing.windows:
                self.variants.add(route.plain)

    def _add_named(self, message: Any, *, is_requeue: bool) -> None:
        job_id = message.id
        if message.key is not None:
            self.keys.add(message.key)
            self.past_keys.add(message.key)
            job_id = job_id or id_in(message.key)
        if job_id is not None:
            self.ids.add(job_id)
            if is_requeue:
                self.requeued.add(job_id)
        request = getattr(message, "request", None)
        if request is not None:
            self.requests.add(request)
