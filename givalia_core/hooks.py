"""The hooks that plugins implement, the discovery of plugins, and the caller that contains their errors.

A hook observes: it gets frozen records and changes nothing. Each implementation is called on its own. An error, including
SystemExit, is logged and counted, and the other plugins are still called. A plugin object that raises twenty times in a row is
silenced for the rest of the process; one log line says so, and the counts show it.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pluggy

from givalia_core import installed
from givalia_core.frozen import BUILTINS
from givalia_core.installed import ALL, entry_points, owner
from givalia_core.loggers import Loggers
from givalia_core.steady import quietly
from givalia_core.views import JobView, Outcome, RunningJobView

__builtins__ = BUILTINS

PROJECT: Final = "givalia"
GROUP: Final = "givalia.plugins"
RAISES_MAX: Final = 20
_STARTS: Final = ("server_started", "worker_started")  # The hooks in which plugins set things up.

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method (or a module's function) as the implementation of the hook of the same name."""

log = logging.getLogger("givalia.hooks")


class Specs:
    """Every hook. `docs/hooks.md` says when, where, with which arguments and in which order each is called."""

    @hookspec
    def before_run(self, job: RunningJobView, module: type) -> None:
        """On the worker, before each attempt's `process` starts; delays only that job."""

    @hookspec
    def after_run(self, job: RunningJobView, module: type, outcome: Outcome) -> None:
        """On the worker, after each attempt, before its outcome is reported; delays only that job."""

    @hookspec
    def on_enq(self, job: JobView) -> None:
        """On the server, after a new job is durable."""

    @hookspec
    def on_ext(self, job: JobView) -> None:
        """On the server, after a job's new due is durable (`ext`, and `enq` with `replace` or `reschedule`)."""

    @hookspec
    def on_requeue(self, job: JobView) -> None:
        """On the server, after a dead or cancelled job's new life is durable."""

    @hookspec
    def on_retry(self, job: JobView, outcome: Outcome) -> None:
        """On the server, after a failed attempt is durable and another will follow."""

    @hookspec
    def on_done(self, job: JobView) -> None:
        """On the server, after a job's success is durable."""

    @hookspec
    def on_dead(self, job: JobView, reason: str, error: str | None) -> None:
        """On the server, after a job's death is durable."""

    @hookspec
    def on_cancel(self, job: JobView, running: bool) -> None:
        """At the cancel: on the server if the job had not started, on the worker if it was running."""

    @hookspec
    def server_started(self, server: Any) -> None:
        """On the server, once its ports are open."""

    @hookspec
    def server_stopping(self, server: Any) -> None:
        """On the server, when it begins to drain."""

    @hookspec
    def worker_started(self, worker: Any) -> None:
        """On the worker, once it is connected for the first time."""

    @hookspec
    def worker_stopping(self, worker: Any) -> None:
        """On the worker, when it begins to drain."""


HOOKS: Final = tuple(name for name in vars(Specs) if not name.startswith("_"))


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """One entry point of the group `givalia.plugins`: the plugin object, or the reason why it could not be loaded."""

    name: str
    distribution: str
    version: str
    plugin: object | None
    error: str | None
    source: str


def discover(allowed: str = ALL) -> list[FoundPlugin]:
    """Load the installed plugins; a plugin that cannot be loaded is logged and delays no other.

    `allowed` names distributions, separated by commas; plugins of others are not even imported. `*` allows all.
    """
    found: list[FoundPlugin] = []
    for entry in entry_points(GROUP, allowed):
        distribution, version = owner(entry)
        plugin: object | None = None
        error, source = None, entry.value
        try:
            plugin = entry.load()
            source = inspect.getsourcefile(plugin) or source  # type: ignore[arg-type]
            if isinstance(plugin, type):
                plugin = plugin()
        except BaseException as raised:  # Importing a plugin may raise anything.
            plugin, error = None, f"{type(raised).__name__}: {_words(raised)}"
            log.error("plugin %s of %s %s cannot be loaded: %s", entry.name, distribution, version, error)
        found.append(FoundPlugin(entry.name, distribution, version, plugin, error, source))
    return found


def missing(allowed: str, other_group: str) -> Iterator[str]:
    """Yield a message for each distribution in `allowed` that has neither plugins nor entry points of the other group."""
    return installed.missing((GROUP, other_group), allowed)


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # The error's text, too, comes from the plugin's code.
        return "(its words cannot be read)"


class Watch(Protocol):
    """A watcher that is told when a plugin's call begins and ends, to limit its time and to name the plugin."""

    def enter(self, hook: str, plugin: int, job: Any) -> Any:
        """Note the call of a plugin (its place in `Hooks.names`), maybe for a job; return the token for `leave`."""

    def leave(self, entered: Any) -> None:
        """Note that the call is over."""


class Hooks:
    """The caller of the implementations of a set of plugins, each by itself."""

    def __init__(self, plugins: Iterable[object]) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Specs)
        self.raised: Counter[str] = Counter()
        """The number of errors of each plugin, by its name."""
        self.silenced: set[str] = set()
        """The plugins that are silenced."""
        self.watch: Watch | None = None
        self._in_a_row: Counter[int] = Counter()
        for plugin in plugins:
            if self._manager.is_registered(plugin):
                continue  # The same plugin, given twice: by its entry point and by hand.
            try:
                self._manager.register(plugin, self._name(plugin))
                self._manager.check_pending()
            except (pluggy.PluginValidationError, ValueError) as error:
                log.error("plugin %s is not used: %s", getattr(plugin, "__name__", type(plugin).__qualname__), error)
                if self._manager.is_registered(plugin):
                    self._manager.unregister(plugin)
        self._implementations = {name: self._collect(name) for name in HOOKS}
        self.names = [name for name, _ in self._manager.list_name_plugin()]
        """The names of the plugins; a plugin's number is its place here."""
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def _name(self, plugin: object) -> str:
        """Return a plugin's name in the log and the counts: its class or module, numbered if that name is taken."""
        name = getattr(plugin, "__name__", type(plugin).__name__)
        taken = sum(1 for other, _ in self._manager.list_name_plugin() if other.split("#")[0] == name)
        return f"{name}#{taken + 1}" if taken else name

    def _collect(self, name: str) -> list[Any]:
        # Last registered first, as pluggy calls them. Wrappers could keep other plugins from being called, so they are skipped.
        implementations = reversed(getattr(self._manager.hook, name).get_hookimpls())
        return [each for each in implementations if not each.hookwrapper and not each.wrapper]

    def listens(self, name: str) -> bool:
        """Return whether any plugin implements this hook; if none does, a call costs nothing."""
        return bool(self._implementations[name])

    def call(self, name: str, **arguments: Any) -> None:
        """Call every implementation with the arguments that it takes; never raises."""
        loggers = Loggers() if name in _STARTS else None
        for implementation in self._implementations[name]:
            plugin = implementation.plugin
            if self._in_a_row[id(plugin)] >= RAISES_MAX:
                continue
            watch = self.watch
            entered = None
            if watch is not None:
                entered = watch.enter(name, self._numbers[implementation.plugin_name], arguments.get("job"))
            try:
                implementation.function(*(arguments[wanted] for wanted in implementation.argnames))
            except BaseException as error:  # A plugin may raise anything; the program goes on.
                self._count(implementation.plugin_name, plugin, name, error)
            else:
                self._in_a_row[id(plugin)] = 0
            finally:
                if watch is not None:
                    watch.leave(entered)
        if loggers is not None and not loggers.are_enabled():  # Configuring `logging` disables all existing loggers.
            loggers.enable()
            log.warning("a plugin has disabled Givalia's loggers in %s; they log again", name)

    def silence(self, plugin_name: str) -> None:
        """Stop calling a plugin: its calls cannot be interrupted."""
        if plugin_name not in self.silenced:
            self.silenced.add(plugin_name)
            self._in_a_row[id(self._manager.get_plugin(plugin_name))] = RAISES_MAX
            quietly(log.error, "plugin %s does not return, though it was broken off, and is called no more", plugin_name)

    def _count(self, plugin_name: str, plugin: object, hook: str, error: BaseException) -> None:
        self.raised[plugin_name] += 1
        self._in_a_row[id(plugin)] += 1
        words = "plugin %s raised in %s: %s: %s"
        quietly(log.error, words, plugin_name, hook, type(error).__name__, _words(error), exc_info=error)
        if self._in_a_row[id(plugin)] >= RAISES_MAX:
            self.silenced.add(plugin_name)
            quietly(log.error, "plugin %s raised %d times in a row and is called no more", plugin_name, RAISES_MAX)
