"""The plugin: one line for each hook event, with the fields that an operator needs first."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from givalia_core import Outcome, hookimpl
from givalia_core.headline import headline
from givalia_core.views import JobView, RunningJobView

from givalia_logging import fields, output

FORMATS: Final = ("json", "readable")
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
ON: Final = ("1", "true", "yes", "on")
OFF: Final = ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings from the environment."""

    form: str | None = None
    """`json` or `readable`; None: readable on a terminal, else JSON."""
    with_params: bool = False
    level: int = logging.INFO

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings `GIVALIA_LOGGING_*`.

        Raises:
            ValueError: One of them is invalid; Givalia reports the plugin as broken and runs without it.
        """
        form = _choice(environment, "GIVALIA_LOGGING_FORMAT", (*FORMATS, "")) or None
        with_params = _choice(environment, "GIVALIA_LOGGING_PARAMS", ON + OFF) in ON
        level = _choice(environment, "GIVALIA_LOGGING_LEVEL", (*LEVELS, "")) or "info"
        return cls(form, with_params, logging.getLevelNamesMapping()[level.upper()])


def _choice(environment: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = environment.get(name, "").strip().lower()
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(filter(None, allowed))}, not {fields.text(value)!r}")
    return value


def log_format(handler: logging.Handler) -> logging.Formatter:
    """Return the formatter of the lines that a server, or a process of a worker, writes through this handler.

    Raises:
        ValueError: A setting `GIVALIA_LOGGING_*` is invalid.
    """
    return output.Lines(Settings.read(os.environ).form, handler)


class Logging:
    """The plugin that logs the events of jobs, on the server and on the worker.

    Params are logged only with `GIVALIA_LOGGING_PARAMS=1`, results never; every field is harmless and short. The plugin
    sets up the log when a server or worker has started, not when the plugin is created.
    """

    def __init__(self) -> None:
        self._settings = Settings.read(os.environ)
        self._sink = output.Sink(output.standard_error(self._settings.form, self._settings.level))
        self._log = output.hook_logger(self._sink, self._settings.level)
        self._worker: str | None = None

    def _attach(self) -> None:
        self._sink.handler = output.attach(self._sink.handler, self._settings.form, self._settings.level)

    def _of(self, job: JobView) -> dict[str, Any]:
        return {
            "job": job.id,
            "key": job.key,
            "module": job.module,
            "attempt": job.attempt,
            "target": job.target_worker,
            "worker": self._worker,
        }

    @hookimpl
    def on_enq(self, job: JobView) -> None:
        self._log.info("enqueued", act="on_enq", **self._of(job), due=job.due.isoformat())

    @hookimpl
    def on_ext(self, job: JobView) -> None:
        self._log.info("due moved", act="on_ext", **self._of(job), due=job.due.isoformat())

    @hookimpl
    def on_requeue(self, job: JobView) -> None:
        self._log.info("requeued", act="on_requeue", **self._of(job), due=job.due.isoformat())

    @hookimpl
    def on_retry(self, job: JobView, outcome: Outcome) -> None:
        retried = {**self._of(job), **_ended(outcome), "due": job.due.isoformat()}
        self._log.warning("to be tried again", act="on_retry", **retried)

    @hookimpl
    def on_done(self, job: JobView) -> None:
        self._log.info("done", act="on_done", **self._of(job))

    @hookimpl
    def on_dead(self, job: JobView, reason: str, error: str | None) -> None:
        self._log.error("dead", act="on_dead", **self._of(job), reason=reason, error=headline(error) or None)

    @hookimpl
    def on_cancel(self, job: JobView, running: bool) -> None:
        self._log.info("asked to stop" if running else "cancelled", act="on_cancel", **self._of(job), running=running)

    @hookimpl
    def before_run(self, job: RunningJobView) -> None:
        shown = {"params": fields.params(job.params)} if self._settings.with_params else {}
        self._log.info("started", act="before_run", **self._of(job), **shown)

    @hookimpl
    def after_run(self, job: RunningJobView, outcome: Outcome) -> None:
        say = self._log.info if outcome.kind in ("succeeded", "released") else self._log.warning
        say(str(outcome.kind), act="after_run", **self._of(job), **_ended(outcome), seconds=outcome.seconds)

    @hookimpl
    def server_started(self) -> None:
        self._attach()
        self._log.info("server started", act="server_started", pid=os.getpid())

    @hookimpl
    def server_stopping(self) -> None:
        self._log.info("server stopping", act="server_stopping", pid=os.getpid())

    @hookimpl
    def worker_started(self, worker: Any) -> None:
        self._attach()
        self._worker = worker.settings.name
        self._log.info("worker started", act="worker_started", worker=self._worker, pid=os.getpid())

    @hookimpl
    def worker_stopping(self) -> None:
        self._log.info("worker stopping", act="worker_stopping", worker=self._worker, pid=os.getpid())


def _ended(outcome: Outcome) -> dict[str, Any]:
    """Return the fields for the end of an attempt. An error is type and message; the traceback is in `stat`."""
    return {"outcome": str(outcome.kind), "error": headline(outcome.error) or None}
