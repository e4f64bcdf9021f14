"""The logging of a process; one call of `logging.config` or `structlog` in a job may change it for all later jobs."""

from __future__ import annotations

import logging
from logging import Handler, Logger, disable, getLogger, root
from logging import _handlerList as _known  # type: ignore[attr-defined]
from logging import _levelToName as _level_names
from logging import _nameToLevel as _levels
from sys import modules
from typing import Any, Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

_OURS: Final = tuple(map(getLogger, ("givalia", "givalia.job", "givalia.worker", "givalia.hooks")))
_PARTS: Final = ("_logRecordFactory", "_loggerClass", "lastResort", "raiseExceptions")
"""The names in `logging` that its own functions replace."""
_caches: Final[dict[Any, bool]] = root._cache  # type: ignore[attr-defined]  # noqa: SLF001 - Only it shows each `setLevel`.
_SEEN: Final = "givalia"
"""A mark in the root logger's cache of levels: `setLevel` of any logger clears all caches."""


class _State:
    """Level, handlers and the rest of one logger."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self.level, self.propagates, self.is_disabled = logger.level, logger.propagate, logger.disabled
        self.filters, self.handlers = logger.filters[:], logger.handlers[:]

    def is_kept(self) -> bool:
        """Return whether the logger is unchanged, with no other handlers."""
        logger = self.logger
        return logger.level == self.level and logger.handlers == self.handlers and logger.filters == self.filters

    def is_served(self) -> bool:
        """Return whether the logger still logs as before, by the same handlers and maybe more."""
        logger = self.logger
        return (
            not logger.disabled
            and logger.level == self.level
            and logger.filters == self.filters
            and (not self.handlers or set(self.handlers) <= set(logger.handlers))
        )

    def restore(self) -> None:
        logger = self.logger
        logger.disabled, logger.propagate = self.is_disabled, self.propagates
        logger.filters, logger.handlers = self.filters[:], self.handlers[:]
        logger.setLevel(self.level)

    def serve(self) -> None:
        """Let the logger log as before; added handlers may stay."""
        logger = self.logger
        logger.disabled, logger.propagate, logger.filters = False, self.propagates, self.filters[:]
        logger.setLevel(self.level)
        for handler in self.handlers:
            logger.addHandler(handler)


class Loggers:
    """Givalia's loggers and all other enabled loggers, when this object was made: an import must not change them."""

    def __init__(self) -> None:
        self._disabled_to = root.manager.disable
        self._ours = list(map(_State, _OURS))
        handlers: set[Handler] = {handler for ours in self._ours for handler in ours.handlers}
        self._handlers = [(handler, handler.level, handler.formatter, handler.filters[:]) for handler in handlers]
        self._enabled = [logger for logger in _loggers() if not logger.disabled]

    def are_enabled(self) -> bool:
        """Return whether none of Givalia's loggers was disabled; levels and handlers may have changed."""
        return root.manager.disable <= self._disabled_to and not any(ours.logger.disabled for ours in self._ours)

    def enable(self) -> None:
        """Enable Givalia's loggers again, and others that were disabled together with them."""
        disable(self._disabled_to)
        for logger in self._enabled:
            logger.disabled = False

    def are_kept(self) -> bool:
        """Return whether Givalia still logs as before, by the same handlers; handlers may have been added."""
        if root.manager.disable > self._disabled_to:
            return False
        for ours in self._ours:
            if not ours.is_served():
                return False
        for handler, level, formatter, filters in self._handlers:
            if handler.level != level or handler.formatter is not formatter or handler.filters != filters:
                return False
        return True

    def restore(self) -> None:
        """Let Givalia's loggers log as before."""
        for ours in self._ours:
            ours.serve()
        self.enable()
        for handler, level, formatter, filters in self._handlers:
            handler.level, handler.formatter, handler.filters = level, formatter, filters[:]


class Logging:
    """The logging of the process when this object was made; a job must not change it for later jobs.

    A job may make loggers and add handlers to them. Changes of other loggers by `dictConfig`, `fileConfig`, `disable`,
    `basicConfig`, `addLevelName`, `setLevel`, `setLoggerClass`, `setLogRecordFactory` and `structlog.configure` are detected
    and can be undone.
    """

    def __init__(self) -> None:
        self._loggers = Loggers()
        self._root = _State(root)
        self._others = [_State(logger) for logger in _loggers() if logger not in _OURS]
        self._parts = [getattr(logging, name) for name in _PARTS]
        self._known: list[Any] = list(_known)
        self._level_names, self._levels = dict(_level_names), dict(_levels)
        self._structlog = _Structlog()
        _caches[_SEEN] = True

    def are_kept(self) -> bool:
        """Return whether the logging is unchanged."""
        return (
            self._loggers.are_kept()
            and self._root.is_kept()
            and self._knows_handlers()
            and _level_names.items() >= self._level_names.items()  # Names may have been added.
            and [getattr(logging, name) for name in _PARTS] == self._parts
            and self._structlog.is_kept()
            and (_SEEN in _caches or self._levels_are_kept())
        )

    def _levels_are_kept(self) -> bool:
        for other in self._others:
            if other.logger.level != other.level:
                return False
        _caches[_SEEN] = True
        return True

    def _knows_handlers(self) -> bool:
        """Return whether `logging` knows the oldest handler: a new configuration forgets all and may change any logger."""
        return not self._known or _known[:1] == self._known[:1]

    def restore(self) -> None:
        """Undo the changes."""
        if not self._knows_handlers():
            new = [each for each in _known if each not in self._known]
            _known[:] = [*(each for each in self._known if each() is not None), *new]
            were = {each.logger for each in self._others}
            for other in self._others:
                other.restore()
            for logger in _loggers():
                if logger not in were:  # Made since, and disabled by the configuration.
                    logger.disabled = False
        for name, value in zip(_PARTS, self._parts, strict=True):
            setattr(logging, name, value)
        _level_names.update(self._level_names)
        _levels.update(self._levels)
        self._root.restore()
        self._loggers.restore()
        self._structlog.restore()
        for other in self._others:
            if other.logger.level != other.level:
                other.logger.setLevel(other.level)
        _caches[_SEEN] = True


class _Structlog:
    """The configuration of `structlog`, if it has been imported."""

    def __init__(self) -> None:
        self._was = _structlog()

    def is_kept(self) -> bool:
        is_configured, config = _structlog()
        was_configured, was = self._was
        return is_configured == was_configured and (config == was or not was)  # `not was`: it has been imported since.

    def restore(self) -> None:
        """Restore the configuration, if it was known."""
        structlog: Any = modules.get("structlog")
        if self.is_kept() or structlog is None:
            return
        is_configured, config = self._was
        if is_configured:
            structlog.configure(**{**config, "processors": config["processors"][:]})
        else:
            structlog.reset_defaults()


def _structlog() -> tuple[bool, dict[str, Any]]:
    """Return whether `structlog` was configured, and its settings."""
    structlog: Any = modules.get("structlog")
    if structlog is None:
        return False, {}
    try:
        config = structlog.get_config()
        return structlog.is_configured(), {**config, "processors": list(config["processors"])}
    except Exception:  # It is being imported, or is another module of that name.
        return False, {}


def _loggers() -> list[Logger]:
    """Return all loggers except the root."""
    return [logger for logger in list(root.manager.loggerDict.values()) if isinstance(logger, Logger)]
