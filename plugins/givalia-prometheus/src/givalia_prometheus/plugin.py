"""The plugin: it counts the events of jobs, and keeps the listener open while a server or worker runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from givalia_core import Outcome, hookimpl
from givalia_core.settings import from_environment
from givalia_core.views import JobView, RunningJobView
from prometheus_client import CollectorRegistry, Counter, Histogram

from givalia_prometheus.labels import Bounded
from givalia_prometheus.listener import Listener
from givalia_prometheus.scrape import Scrape

MODULES_MAX: Final = 500
REASONS_MAX: Final = 50
LATENESS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
OUTCOMES: Final = ("succeeded", "failed", "timeout", "stopped", "died", "released")
RETRIED: Final = ("failed", "timeout", "died", "released")
DEAD: Final = ("exhausted", "failed", "expired", "child_died")
RUN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)


def address(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the address from `GIVALIA_PROMETHEUS_HOST` and `GIVALIA_PROMETHEUS_PORT`; None without a port.

    Port 0 is any free port. A value that Kubernetes sets for a Service of that name is ignored, with a line in the log.

    Raises:
        ValueError: The port is not a number from 0 to 65535; Givalia reports the plugin as broken and runs without it.
    """
    port = (from_environment("GIVALIA_PROMETHEUS_PORT", environment) or "").strip()
    if not port:
        return None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"GIVALIA_PROMETHEUS_PORT must be a number from 0 to 65535, not {port!r:.40}")
    return environment.get("GIVALIA_PROMETHEUS_HOST", "").strip() or "127.0.0.1", int(port)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Prometheus:
    """Metrics in a registry of its own, so that two plugins in one process do not conflict.

    `registry` may be read directly; `port` is the open port, None while there is none.
    """

    def __init__(self, now: Callable[[], datetime] = _utc_now) -> None:
        self._address = address(os.environ)
        self._now = now
        self._hosts: list[Any] = []
        self._listener: Listener | None = None
        self._module = Bounded(MODULES_MAX)
        self._reason = Bounded(REASONS_MAX)
        self._born: set[str] = set()  # The modules whose counters on the server exist.
        self.registry = CollectorRegistry()
        # First, so that the counters of a module that the collector finds are in the same scrape.
        self.registry.register(Scrape(lambda: tuple(self._hosts), self._on_server, self._module.want))
        self._enqueued = self._counter("givalia_jobs_enqueued", "Jobs that were enqueued.", "module")
        self._extended = self._counter("givalia_jobs_extended", "Times that a waiting job's due was moved.", "module")
        self._cancelled = self._counter("givalia_jobs_cancelled", "Cancels; running: it had started.", "module", "running")
        self._retried = self._counter("givalia_jobs_retried", "Failed attempts that another follows.", "module", "reason")
        self._requeued = self._counter("givalia_jobs_requeued", "Dead or cancelled jobs given another life.", "module")
        self._done = self._counter("givalia_jobs_done", "Jobs that ended with success.", "module")
        self._dead = self._counter("givalia_jobs_dead", "Jobs that ended dead.", "module", "reason")
        self._runs = self._counter("givalia_runs", "Attempts that ended on this worker.", "module", "outcome")
        self._lateness = self._histogram("givalia_lateness_seconds", "From a job's due to its first start.", LATENESS_S)
        self._run_time = self._histogram("givalia_run_seconds", "How long attempts took.", RUN_S)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, ("module",), registry=self.registry, buckets=buckets)

    def _on_server(self, module: str) -> str:
        """Return the label of a module; its counters begin at 0 here, because a counter that begins at 1 has no rate."""
        label = self._module(module)
        if label not in self._born:
            self._born.add(label)
            for counter in (self._enqueued, self._extended, self._requeued, self._done):
                counter.labels(label)
            for running in ("false", "true"):
                self._cancelled.labels(label, running)
            for kind in RETRIED:
                self._retried.labels(label, kind)
            for reason in DEAD:
                self._dead.labels(label, self._reason(reason))
        return label

    @property
    def port(self) -> int | None:
        """The port of `/metrics`; None while there is none."""
        return self._listener.port if self._listener else None

    # On the server.

    @hookimpl
    def on_enq(self, job: JobView) -> None:
        self._enqueued.labels(self._on_server(job.module)).inc()

    @hookimpl
    def on_ext(self, job: JobView) -> None:
        self._extended.labels(self._on_server(job.module)).inc()

    @hookimpl
    def on_requeue(self, job: JobView) -> None:
        self._requeued.labels(self._on_server(job.module)).inc()

    @hookimpl
    def on_done(self, job: JobView) -> None:
        self._done.labels(self._on_server(job.module)).inc()

    @hookimpl
    def on_retry(self, job: JobView, outcome: Outcome) -> None:
        self._retried.labels(self._on_server(job.module), str(outcome.kind)).inc()

    @hookimpl
    def on_dead(self, job: JobView, reason: str) -> None:
        self._dead.labels(self._on_server(job.module), self._reason(reason)).inc()

    @hookimpl
    def on_cancel(self, job: JobView, running: bool) -> None:
        """Count a cancel, on the server or, for a running job, on its worker: the total is the sum of both."""
        label = self._module(job.module) if running else self._on_server(job.module)
        self._cancelled.labels(label, str(running).lower()).inc()

    # On the worker.

    @hookimpl
    def before_run(self, job: RunningJobView) -> None:
        if job.attempt == 1:  # The due of a retry comes from the backoff, so its lateness tells nothing.
            late_s = (self._now() - job.due).total_seconds()
            self._lateness.labels(self._module(job.module)).observe(max(late_s, 0.0))

    @hookimpl
    def after_run(self, job: RunningJobView, outcome: Outcome) -> None:
        self._runs.labels(self._module(job.module), str(outcome.kind)).inc()
        if outcome.kind != "released":  # A released job did not run.
            self._run_time.labels(self._module(job.module)).observe(outcome.seconds)

    # The listener is open while a server or worker of this process is up.

    @hookimpl
    def server_started(self, server: Any) -> None:
        self._open(server)

    @hookimpl
    def worker_started(self, worker: Any) -> None:
        for module in getattr(worker, "modules", ()):
            for kind in OUTCOMES:
                self._runs.labels(self._module(module), kind)
            self._lateness.labels(self._module(module))
            self._run_time.labels(self._module(module))
        self._open(worker)

    @hookimpl
    def server_stopping(self, server: Any) -> None:
        self._close(server)

    @hookimpl
    def worker_stopping(self, worker: Any) -> None:
        self._close(worker)

    def _open(self, host: Any) -> None:
        self._hosts.append(host)
        if self._address and self._listener is None:
            self._listener = Listener(*self._address, self.registry)

    def _close(self, host: Any) -> None:
        self._hosts = [each for each in self._hosts if each is not host]
        if self._listener is not None and not self._hosts:
            self._listener.close()
            self._listener = None
