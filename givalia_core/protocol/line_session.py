"""A connection of the line protocol of 2012, from bytes to commands and from answers to lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from givalia_core.clock import new_id
from givalia_core.errors import GivaliaError, TooLarge
from givalia_core.protocol import lines
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind

MALFORMED_LINES_MAX: Final = 3  # In a row.
AGENT: Final = "lines"


class LineSession:
    """The 2012 protocol: one object a line, answered in order; a batch keeps that order."""

    def __init__(self, conn: int, make_id: Callable[[], bytes] = new_id) -> None:
        self._conn = conn
        self._make_id = make_id
        self._reader = lines.LineReader()
        self._asked: dict[int, tuple[Kind, bool]] = {}  # The kind, and whether it is of a live key.
        self._count = 0
        self._malformed = 0
        self._out = b""
        self.refusal = ""
        self.is_over = False

    @property
    def is_mid_frame(self) -> bool:
        return self._reader.is_mid_line

    def feed(self, data: bytes) -> list[Asked]:
        try:
            arrived = self._reader.feed(data)
        except TooLarge as error:
            self._out = lines.fail(error)
            self.is_over, self.refusal = True, str(error)
            return []
        asks: list[Asked] = []
        for line in arrived:
            asks.append(self._ask(line))
            if self._malformed >= MALFORMED_LINES_MAX:
                self.is_over, self.refusal = True, f"{MALFORMED_LINES_MAX} lines in a row could not be read"
                return asks
        if self._reader.is_overlong:
            overlong = TooLarge(f"a line is longer than {lines.LINE_BYTES_MAX} bytes")
            asks.append(self._refused(overlong))
            self.is_over, self.refusal = True, str(overlong)
        return asks

    def _ask(self, line: bytes) -> Asked:
        try:
            asked = lines.decode(line, self._make_id)
        except GivaliaError as error:
            self._malformed = self._malformed + 1 if lines.is_malformed(error) else 0
            return self._refused(error)
        self._malformed = 0
        return self._numbered(asked)

    def _refused(self, error: GivaliaError) -> Asked:
        """Return a line that cannot be read as an `Asked` too, so that its answer comes in its turn."""
        return self._numbered(lines.Request(Kind.ENQ, error))

    def _numbered(self, asked: lines.Request) -> Asked:
        self._count += 1
        self._asked[self._count] = asked.kind, asked.is_of_live_key
        return Asked(self._conn, self._count, asked.kind, [asked.message], is_once=True)

    def answer(self, request: int, answers: list[Answer]) -> bytes:
        kind, is_of_live_key = self._asked.pop(request)
        return lines.encode(kind, answers[0], is_of_live_key=is_of_live_key)

    def take_out(self) -> bytes:
        out, self._out = self._out, b""
        return out
