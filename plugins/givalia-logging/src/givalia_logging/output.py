"""The one way out: a standard handler whose formatter turns hook events and ordinary log records into the same lines.

`attach` puts it on the logger `givalia` once per process, whoever asks and however often, and leaves every other handler
as it is. Hook events go to the handler directly, never through a logger, so that they appear once, whatever the host
program does with its loggers.
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
"""A handler of this name is the one Givalia itself made: it is given our format, instead of every line coming twice."""

BLOCK_CHARACTERS_MAX: Final = 16_384
"""Of a traceback or stack; what it has more is left out at its beginning, for the error is at the end."""
_FIRST: Final = ("timestamp", "level", "event", "act", "job", "key", "module", "attempt")
_RENAMED: Final = {"job_id": "job", "job_module": "module"}
_BLOCKS: Final = ("exception", "stack")
_OWN: Final = {"exception": ("exc_text", "traceback"), "stack": ("stack_info", "block")}
"""By our name for a block, the attributes of a record that hold one as text."""


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment of writing, so it follows a process into the background."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.set_name(OWN_HANDLER)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class Lines(structlog.stdlib.ProcessorFormatter):
    """Formats hook events and log records alike, as JSON or for people."""

    def __init__(self, form: str | None, handler: logging.Handler) -> None:
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        # What a record says of itself comes before what we know of it, so that it cannot pass for something else.
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
        # A hook event is a dict; whatever else is no text may raise when it is shown.
        if record.args or record.exc_text or type(record.msg) not in (str, dict):
            record = copy.copy(record)
            record.msg, record.args = message_of(record), None
            if record.exc_text and not record.exc_info:  # Of a job in a process of its own; structlog leaves it out.
                record.traceback = record.exc_text
        try:
            return super().format(record)
        except Exception:  # A value in the record may raise; the line is written all the same.
            return self._simple.format(record)


class Render:
    """The last step: JSON, or a line for people; where nothing is set, whichever suits the stream."""

    def __init__(self, form: str | None, handler: logging.Handler) -> None:
        self._form = form
        self._handler = handler
        self._json = structlog.processors.JSONRenderer()
        self._plain = structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)
        self._coloured = structlog.dev.ConsoleRenderer(colors=True, sort_keys=False)

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str | bytes:
        # Asked for each line, because a process that goes to the background loses its terminal on the way.
        on_terminal = _is_terminal(getattr(self._handler, "stream", None))
        if (self._form or ("readable" if on_terminal else "json")) == "json":
            return self._json(logger, name, event)
        for block in _BLOCKS:
            if block in event:
                # The margin keeps a line within an error's message from passing for a log line of its own.
                event[block] = "\n".join("    | " + line for line in event[block])
        render = self._coloured if on_terminal and "NO_COLOR" not in os.environ else self._plain
        return render(logger, name, event)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # No stream, not a stream, or closed.
        return False


def _same_names(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Call a job's fields in `self.log` what hook events call them; a log record has other uses for some of the names."""
    for theirs, ours in _RENAMED.items():
        if theirs in event:
            event[ours] = event.pop(theirs)
    return event


def _blocks(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Give tracebacks as lists of harmless lines, so that none can break out; their length is that of the whole."""
    raised = event.pop("exc_info", None)
    given = {name: [event.pop(attribute, None) for attribute in attributes] for name, attributes in _OWN.items()}
    if isinstance(raised, tuple) and raised[1] is not None:
        given["exception"].insert(0, "".join(traceback.format_exception(*raised)))
    for name, texts in given.items():
        if block := next((text for text in texts if text), None):
            event[name] = [fields.text(line, BLOCK_CHARACTERS_MAX) for line in _end_of(str(block)).splitlines()]
    return event


def _end_of(block: str) -> str:
    """Return the last lines of a block, as many as a line of the log may hold."""
    if len(block) <= BLOCK_CHARACTERS_MAX:
        return block
    cut = block[-BLOCK_CHARACTERS_MAX:]
    return cut[cut.find("\n", 0, -1) + 1 :]


def _tidy(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make every field harmless and short, drop the empty ones, and put the ones that people look for first."""
    names = [*(name for name in _FIRST if name in event), *(name for name in event if name not in _FIRST)]
    return {
        fields.text(name): event[name] if name in _BLOCKS else fields.plain(event[name])
        for name in names
        if event[name] is not None
    }


class Sink:
    """What structlog writes hook events to: each becomes a record that goes straight to the handler."""

    def __init__(self, handler: logging.Handler) -> None:
        self.handler = handler

    def _write(self, event: EventDict, *, extra: Mapping[str, Any]) -> None:
        level = event["level"]
        name = {"name": LOGGER, "levelname": level.upper(), "levelno": logging.getLevelNamesMapping()[level.upper()]}
        self.handler.handle(logging.makeLogRecord({**name, "msg": event, **extra}))

    debug = info = warning = error = critical = _write


def hook_logger(sink: Sink, level: int) -> Any:
    """The structlog logger for hook events; made by itself, so the program's own structlog settings stay as they are."""
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
    """A handler that writes our lines to standard error; on no logger yet."""
    handler = StandardError()
    handler.setFormatter(Lines(form, handler))
    handler.setLevel(level)
    return handler


def attach(handler: logging.Handler, form: str | None, level: int) -> logging.Handler:
    """Let the loggers `givalia.*` come out in our format; a second call changes nothing.

    Returns:
        The handler in use: `handler`, now on the logger `givalia`; or the one that was there, ours or Givalia's own.
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
    if logger.level == logging.NOTSET:  # Nobody chose one; the root logger's, WARNING, would hide what jobs say.
        logger.setLevel(level)
    return handler
