"""What is asked for at the moment of a scrape: the server's counts of jobs, and how the plugins fare.

Nothing is kept between scrapes, so nothing can drift from the truth in the store. A server that cannot answer, because it
is stopping, is left out of that one scrape.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from givalia_prometheus.labels import Bounded

log = logging.getLogger("givalia.prometheus")

_COUNTED: Final[tuple[tuple[str, Callable[..., Metric], str, str], ...]] = (
    ("workers", GaugeMetricFamily, "givalia_workers", "Workers that are connected to the server."),
    ("stale_reports", CounterMetricFamily, "givalia_stale_reports", "Reports on leases that had ended, so not accepted."),
    ("hooks_dropped", CounterMetricFamily, "givalia_hooks_dropped", "Calls of hooks left out: plugins were too slow."),
)
"""Keys of the server's `info` that are plain numbers, and what becomes of them."""


class Scrape(Collector):
    """Collects from the servers and workers of this process that are up; `hosts` is looked at anew each time."""

    def __init__(self, hosts: Callable[[], Iterable[Any]], modules: Bounded) -> None:
        self._hosts = hosts
        self._modules = modules

    def collect(self) -> Iterator[Metric]:
        hosts = list(self._hosts())
        for host in hosts:
            if hasattr(host, "info"):
                yield from self._of_server(host)
        yield from _of_workers(hosts)
        yield from _of_plugins(hosts)

    def _of_server(self, server: Any) -> Iterator[Metric]:
        try:
            info = server.info()
        except Exception as error:
            log.info("no counts of jobs in this scrape: %s: %s", type(error).__name__, error)
            return
        counts: Counter[tuple[str, str]] = Counter()
        for module, states in info.get("jobs", {}).items():
            label = self._modules(module)
            # The store counts what is due as waiting too; users know a job as one or the other.
            counts[label, "waiting"] += max(states.get("waiting", 0) - states.get("ready", 0), 0)
            counts[label, "ready"] += states.get("ready", 0)
            counts[label, "running"] += states.get("running", 0)
        jobs = GaugeMetricFamily("givalia_jobs", "Live jobs; ready ones are counted to 10,000.", labels=("module", "state"))
        for labels, count in counts.items():
            jobs.add_metric(labels, count)
        yield jobs
        for key, family, name, help_text in _COUNTED:
            if key in info:
                yield family(name, help_text, value=info[key])


def _of_workers(hosts: Iterable[Any]) -> Iterator[Metric]:
    """What the supervisors of these workers have counted; it lives on when the process of this plugin is replaced."""
    happened: Counter[str] = Counter()
    for host in hosts:
        happened.update(getattr(host, "counts", {}))
    if happened:
        words = "What happened to the worker's processes: replaced, died, or blocked by a job that does not yield."
        events = CounterMetricFamily("givalia_worker_events", words, labels=("event",))
        for event, count in sorted(happened.items()):
            events.add_metric((event,), count)
        yield events


def _of_plugins(hosts: Iterable[Any]) -> Iterator[Metric]:
    raised: Counter[str] = Counter()
    silenced: set[str] = set()
    for hooks in {id(each): each for each in (getattr(host, "hooks", None) for host in hosts)}.values():
        # Copied in one step each, for the plugins may be raising meanwhile in another thread.
        raised.update(dict(getattr(hooks, "raised", {})))
        silenced.update(set(getattr(hooks, "silenced", ())))
    raises = CounterMetricFamily("givalia_plugin_raises", "How often a plugin's hooks have raised.", labels=("plugin",))
    silences = GaugeMetricFamily("givalia_plugin_silenced", "1: raised too often, called no more.", labels=("plugin",))
    for plugin in sorted(raised | dict.fromkeys(silenced, 0)):
        raises.add_metric((plugin,), raised[plugin])
        silences.add_metric((plugin,), int(plugin in silenced))
    yield raises
    yield silences
