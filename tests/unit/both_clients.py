"""An `AsyncClient` with the interface of `Client`, so that one suite runs with both.

Its event loop has its own thread; each verb is a coroutine that runs there while the caller waits.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from givalia_core import AsyncClient, PartlyRefused
from givalia_core.client.handles import AsyncJobHandle

PATIENCE_S = 10.0


class LoopThread:
    """An event loop in a thread, from `with` to its end; then no task may be left."""

    def __enter__(self) -> LoopThread:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        left = asyncio.all_tasks(self.loop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()
        assert not left

    def run(self, coroutine: Any) -> Any:
        """What a coroutine returns or raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def client(self, *arguments: Any, **options: Any) -> Any:
        """A client in this loop."""
        return _Face(self, AsyncClient(*arguments, **options))


def _inner(given: Any) -> Any:
    """Arguments with the handles themselves in the place of their faces."""
    if isinstance(given, dict):
        return {_inner(name): _inner(value) for name, value in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(_inner(each) for each in given)
    return given._inner if isinstance(given, _Face) else given


class _Face:
    """Something of the asyncio client, with its coroutines made into calls."""

    def __init__(self, thread: LoopThread, inner: Any) -> None:
        self.__dict__.update(_thread=thread, _inner=inner)

    def __enter__(self) -> _Face:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return (lambda *args, **kwargs: self._call(value, args, kwargs)) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def _call(self, verb: Any, args: Any, kwargs: Any) -> Any:
        answer = verb(*_inner(args), **_inner(kwargs))
        if inspect.isasyncgen(answer):
            return self._each(answer)
        try:
            return self._shown(self._thread.run(answer))
        except PartlyRefused as error:
            error.details["answers"] = self._shown(error.answers)
            raise

    def _each(self, several: Any) -> Iterator[Any]:
        end = object()
        try:
            while (each := self._thread.run(anext(several, end))) is not end:
                yield each
        finally:
            self._thread.run(several.aclose())

    def _shown(self, answer: Any) -> Any:
        if isinstance(answer, list):
            return [self._shown(each) for each in answer]
        return _Face(self._thread, answer) if isinstance(answer, AsyncJobHandle) else answer
