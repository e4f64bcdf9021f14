"""Calls a function before each bytecode instruction of chosen code, so that tests can cut that code short anywhere.

From Python 3.12 this uses `sys.monitoring`. There `sys.settrace` reports the instructions of a frame only if they were
requested before its call, so it would miss the first function that a process traces.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

_TOOL = 4  # Neither a debugger, nor coverage, nor a profiler: those have ids of their own.


@contextmanager
def before_each_instruction(of: Callable[[CodeType], bool], act: Callable[[], object]) -> Iterator[None]:
    """While the block lasts, call `act` before each instruction that this thread runs in calls of functions chosen by `of`.

    Calls that began before the block may pass unseen. An exception of `act` is raised at that instruction, and `act` is not
    called again. Blocks must not be nested.
    """
    is_over = False

    def once_more() -> None:
        nonlocal is_over
        if is_over:
            return
        try:
            act()
        except BaseException:
            is_over = True
            raise

    with (_monitored if sys.version_info >= (3, 12) else _traced)(of, once_more):
        yield


@contextmanager
def _traced(of: Callable[[CodeType], bool], act: Callable[[], object]) -> Iterator[None]:
    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not of(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            act()
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


@contextmanager
def _monitored(of: Callable[[CodeType], bool], act: Callable[[], object]) -> Iterator[None]:
    monitoring = sys.monitoring
    events = monitoring.events
    thread = threading.get_ident()
    chosen: list[CodeType] = []

    def started(code: CodeType, _: int) -> object:
        if of(code):
            chosen.append(code)
            monitoring.set_local_events(_TOOL, code, events.INSTRUCTION)
        return monitoring.DISABLE  # Once is enough for each code.

    def instruction(_: CodeType, __: int) -> None:
        if threading.get_ident() == thread:
            act()

    monitoring.use_tool_id(_TOOL, "instructions")
    monitoring.register_callback(_TOOL, events.PY_START, started)
    monitoring.register_callback(_TOOL, events.INSTRUCTION, instruction)
    monitoring.restart_events()  # A block before this one has disabled the starts that it saw.
    monitoring.set_events(_TOOL, events.PY_START)
    try:
        yield
    finally:
        monitoring.set_events(_TOOL, events.NO_EVENTS)
        for code in chosen:
            monitoring.set_local_events(_TOOL, code, events.NO_EVENTS)
        for event in (events.PY_START, events.INSTRUCTION):
            monitoring.register_callback(_TOOL, event, None)
        monitoring.free_tool_id(_TOOL)
