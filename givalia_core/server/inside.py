"""Questions of code in the server's own process, from any thread or greenlet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import gevent
import msgpack

from givalia_core.engine.records import Reply
from givalia_core.errors import GivaliaError, ShuttingDown
from givalia_core.protocol.answers import Answer, Described
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Info, Kind
from givalia_core.server.connections import INSIDE
from givalia_core.server.inbox import Inbox
from givalia_core.threads import thread_now

WAIT_S = 10.0


class Inside:
    """Asks the engine without a connection. Make it in the thread whose event loop the server uses.

    Args:
        inbox: Takes the questions.
        wake: Called when there is a question.
        check: Raises an error in a fork of the server's process.
    """

    def __init__(self, inbox: Inbox, wake: Callable[[], object], check: Callable[[], object]) -> None:
        self.thread = thread_now()
        self._inbox, self._wake, self._check = inbox, wake, check
        self._last = 0
        self._pending: dict[int, Future[Answer]] = {}
        self._other_threads: deque[Future[Answer]] = deque()
        self._from_threads = gevent.get_hub().loop.async_()
        self._from_threads.start(self._take_from_threads)

    def info(self) -> dict[str, Any]:
        """Return what `givalia info` shows.

        Raises:
            ShuttingDown: The server has stopped.
            Busy: A shared store does not answer for now.
            WrongProcess: This is a fork.
        """
        future: Future[Answer] = Future()
        if thread_now() == self.thread:
            self._ask(future)
            while not future.done():
                gevent.sleep(0.001)
                self._check()
        else:
            self._other_threads.append(future)
            self._from_threads.send()
        answer = future.result(timeout=WAIT_S)
        if isinstance(answer, GivaliaError):
            raise answer
        assert isinstance(answer, Described)
        known: dict[str, Any] = msgpack.unpackb(answer.payload)
        return known

    def _take_from_threads(self) -> None:
        while self._other_threads:
            self._ask(self._other_threads.popleft())

    def _ask(self, future: Future[Answer]) -> None:
        self._last += 1
        self._pending[self._last] = future
        self._inbox.put(Asked(INSIDE, self._last, Kind.INFO, [Info()]))
        self._wake()

    def answer(self, reply: Reply) -> None:
        """Hand an answer to the code that waits for it."""
        self._pending.pop(reply.request).set_result(reply.answers[0])

    def close(self) -> None:
        """End the pending questions with `ShuttingDown`."""
        self._take_from_threads()
        for future in self._pending.values():
            future.set_exception(ShuttingDown("the server has stopped"))
        self._from_threads.close()
