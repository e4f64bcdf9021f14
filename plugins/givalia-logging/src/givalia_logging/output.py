"""The output: a standard handler whose formatter turns hook events and log records into the same lines.

`attach` adds it to the logger `givalia` once per process and changes no other handler. Hook events go directly to the
handler, never through a logger, so that they appear once, whatever the program does with its loggers.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from givalia_core.printable import Formatter, message_of
from structlog.typing import EventDict, Processor, WrappedLogger

from givalia_logging import fields

LOGGER: Final = "givalia"
OWN_HANDLER: Final = "givalia-logging"
HOST_HANDLER: Final = "givalia"
"""The name of Givalia's own handler: it gets this format, as a second handler would write every line twice."""

BLOCK_CHARACTERS_MAX: Final = 16_384
"""Limit of a traceback or stack; the beginning of a longer one is left out, because the error is at the end."""
_FIRST: Final = ("timestamp", "level", "event", "act", "job", "key", "module", "attempt")
_RENAMED: Final = {"job_id": "job", "job_module": "module"}
_BLOCKS: Final = ("exception", "stack")
_OWN: Final = {"exception": ("exc_text", "traceback"), "stack": ("stack_info", "block")}
"""Record attributes that hold a block of text, by the name of the block in a line."""


class StandardError(logging.StreamHandler[TextIO]):
    """A handler that writes to the present `sys.stderr`, so it follows a process into the background."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.set_name(OWN_HANDLER)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class Lines(structlog.stdlib.ProcessorFormatter):
    """A formatter of hook events and log records alike, as JSON or for people."""

    def __init__(self, form: str | None, handler: logging.Handler) -> None:
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        # The record's own fields come first, so that they cannot replace those that the plugin sets.
        known: list[Processor] = [
            structlog.stdlib.ExtraAdder(),
            _same_names,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            stamp,
        ]
        last: list[Processor] = [self.remove_processors_meta, _blocks, _tidy, Render(form, handler)]
        super().__init__(foreign_pre_chain=known, processors=last)
        self._simple = Formatter()

    def format(self, record: logging.LogRecord) -> str:
        # A hook event is a dict; another object that is not text may raise when it is converted.
        if record.args or record.exc_text or type(record.msg) not in (str, dict):
            record = copy.copy(record)
            record.msg, record.args = message_of(record), None
            if record.exc_text and not record.exc_info:  # From a job in a process of its own; structlog leaves it out.
                record.traceback = record.exc_text
        try:
            return super().format(record)
        except Exception:  # A value in the record may raise; the line is written anyway.
            return self._simple.format(record)


class Render:
    """The last step: JSON, or a line for people; by default people's lines on a terminal, JSON elsewhere."""

    def __init__(self, form: str | None, handler: logging.Handler) -> None:
        self._form = form
        self._handler = handler
        self._json = structlog.processors.JSONRenderer()
        self._plain = structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)
        self._coloured = structlog.dev.ConsoleRenderer(colors=True, sort_keys=False)

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str | bytes:
        # Checked for each line, because a process that goes to the background loses its terminal.
        on_terminal = _is_terminal(getattr(self._handler, "stream", None))
        if (self._form or ("readable" if on_terminal else "json")) == "json":
            return self._json(logger, name, event)
        for block in _BLOCKS:
            if block in event:
                # The margin keeps a line of an error's message from looking like a log line.
                event[block] = "\n".join("    | " + line for line in event[block])
        render = self._coloured if on_terminal and "NO_COLOR" not in os.environ else self._plain
        return render(logger, name, event)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # No stream, not a stream, or closed.
        return False


def _same_names(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Rename a job's fields in `self.log` to those of hook events; log records use some of these names otherwise."""
    for theirs, ours in _RENAMED.items():
        if theirs in event:
            event[ours] = event.pop(theirs)
    return event


def _blocks(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Turn tracebacks into lists of harmless lines; the limit applies to the whole block."""
    raised = event.pop("exc_info", None)
    given = {name: [event.pop(attribute, None) for attribute in attributes] for name, attributes in _OWN.items()}
    if isinstance(raised, tuple) and raised[1] is not None:
        given["exception"].insert(0, "".join(traceback.format_exception(*raised)))
    for name, texts in given.items():
        if block := next((text for text in texts if text), None):
            event[name] = [fields.text(line, BLOCK_CHARACTERS_MAX) for line in _end_of(str(block)).splitlines()]
    return event


def _end_of(block: str) -> str:
    """Return the last lines of a block, within the limit."""
    if len(block) <= BLOCK_CHARACTERS_MAX:
        return block
    cut = block[-BLOCK_CHARACTERS_MAX:]
    return cut[cut.find("\n", 0, -1) + 1 :]


def _tidy(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make every field harmless and short, drop empty ones, and put the most important ones first."""
    names = [*(name for name in _FIRST if name in event), *(name for name in event if name not in _FIRST)]
    return {
        fields.text(name): event[name] if name in _BLOCKS else fields.plain(event[name])
        for name in names
        if event[name] is not None
    }


class Sink:
    """The target of structlog for hook events: each becomes a record that goes directly to the handler."""

    def __init__(self, handler: logging.Handler) -> None:
        self.handler = handler

    def _write(self, event: EventDict, *, extra: Mapping[str, Any]) -> None:
        level = event["level"]
        name = {"name": LOGGER, "levelname": level.upper(), "levelno": logging.getLevelNamesMapping()[level.upper()]}
        self.handler.handle(logging.makeLogRecord({**name, "msg": event, **extra}))

    debug = info = warning = error = critical = _write


def hook_logger(sink: Sink, level: int) -> Any:
    """Return the structlog logger for hook events; it does not use the program's structlog configuration."""
    return structlog.wrap_logger(
        sink,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
        cache_logger_on_first_use=False,
    )


def standard_error(form: str | None, level: int) -> logging.Handler:
    """Return a handler that writes these lines to standard error; it is on no logger yet."""
    handler = StandardError()
    handler.setFormatter(Lines(form, handler))
    handler.setLevel(level)
    return handler


def attach(handler: logging.Handler, form: str | None, level: int) -> logging.Handler:
    """Write the lines of the loggers `givalia.*` in this format; a second call changes nothing.

    Returns:
        The handler in use: `handler`, now on the logger `givalia`; or an earlier one, the plugin's or Givalia's own.
    """
    logger = logging.getLogger(LOGGER)
    for present in (*logger.handlers, *logging.getLogger().handlers):
        if present.name == OWN_HANDLER:
            return present
        if present.name == HOST_HANDLER:
            if not isinstance(present.formatter, Lines):
                present.setFormatter(Lines(form, present))
            return present
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:  # Otherwise the root logger's level, WARNING, would hide the lines of jobs.
        logger.setLevel(level)
    return handler
