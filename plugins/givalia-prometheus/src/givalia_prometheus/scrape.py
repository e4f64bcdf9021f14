"""The values that are read at each scrape: the server's jobs and state, and the errors of plugins.

Nothing is kept between scrapes, so nothing can drift from the truth in the store. If a server cannot answer, because it
stops or its store is away, the scrape has only its troubles.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("givalia.prometheus")

_COUNTED: Final[tuple[tuple[str, Callable[..., Metric], str, str], ...]] = (
    ("workers", GaugeMetricFamily, "givalia_workers", "Workers that are connected to the server."),
    ("stale_reports", CounterMetricFamily, "givalia_stale_reports", "Reports on leases that had ended, so not accepted."),
    ("leases_lost", CounterMetricFamily, "givalia_leases_lost", "Leases that ended without a report of their worker."),
    (
        "workers_lost",
        CounterMetricFamily,
        "givalia_workers_lost",
        "Workers that were gone for a lease and had not drained.",
    ),
    ("hooks_dropped", CounterMetricFamily, "givalia_hooks_dropped", "Calls of hooks left out: plugins were too slow."),
    (
        "connections_shed",
        CounterMetricFamily,
        "givalia_connections_shed",
        "Connections refused or closed for lack of room.",
    ),
)
"""Keys of the server's `info` that are plain numbers, with their metrics."""

_EVENTS: Final = ("crews", "hosts_replaced", "children_died", "blocked")
_SIZES: Final = (("bytes", "records"), ("log_bytes", "log"), ("index_bytes", "index"))
_DISK: Final = (
    ("disk_free_bytes", "givalia_store_disk_free_bytes", "Bytes that are free on the disk of the store."),
    ("disk_bytes", "givalia_store_disk_bytes", "The size of the disk of the store."),
)


class Scrape(Collector):
    """A collector over the running servers and workers of this process; each scrape reads `hosts` again."""

    def __init__(
        self, hosts: Callable[[], Iterable[Any]], label: Callable[[str], str], want: Callable[[str], None]
    ) -> None:
        self._hosts = hosts
        self._label = label  # Returns the label of a module; limited in number.
        self._want = want  # Keeps a label for a module that is served.

    def collect(self) -> Iterator[Metric]:
        hosts = list(self._hosts())
        for host in hosts:
            if hasattr(host, "info"):
                yield from self._of_server(host)
        yield from _of_workers(hosts)
        yield from _of_plugins(hosts)
        # The lost lines of this process, a server's or a worker's. Givalia's own handler counts them.
        lost = sum(getattr(handler, "lost", 0) for handler in logging.getLogger("givalia").handlers)
        yield CounterMetricFamily("givalia_log_lines_lost", "Lines of the log that could not be written.", value=lost)

    def _of_server(self, server: Any) -> Iterator[Metric]:
        if hasattr(server, "troubles"):  # Read apart, because they are known even if the store does not answer.
            yield _troubles(server.troubles())
        info: Mapping[str, Any] = {}
        try:
            info = server.info()
        except Exception as error:
            log.info("no counts of jobs in this scrape: %s: %s", type(error).__name__, error)
        yield GaugeMetricFamily(
            "givalia_answers", "1: the server answers; 0: its store does not, or it stops.", value=bool(info)
        )
        if info:
            for module, told in info.get("modules", {}).items():
                if told.get("workers"):
                    self._want(module)  # A served module has its own label, however many names clients make up.
                    self._label(module)
            yield self._jobs(info)
            yield from self._modules(info)
            yield from _store(info.get("store", {}))
        for key, family, name, help_text in _COUNTED:
            if key in info:
                yield family(name, help_text, value=info[key])

    def _jobs(self, info: Mapping[str, Any]) -> Metric:
        counts: Counter[tuple[str, str]] = Counter()
        for module, states in info.get("jobs", {}).items():
            label = self._label(module)
            # The store counts due jobs as waiting, too; for users a job is either waiting or ready.
            counts[label, "waiting"] += max(states.get("waiting", 0) - states.get("ready", 0), 0)
            counts[label, "ready"] += states.get("ready", 0)
            counts[label, "running"] += states.get("running", 0)
        jobs = GaugeMetricFamily("givalia_jobs", "Live jobs; ready ones are counted to 10,000.", labels=("module", "state"))
        for labels, count in counts.items():
            jobs.add_metric(labels, count)
        return jobs

    def _modules(self, info: Mapping[str, Any]) -> Iterator[Metric]:
        ages: defaultdict[str, float] = defaultdict(float)
        untaken: Counter[str] = Counter()
        workers: Counter[str] = Counter()
        served = info.get("modules", {})
        for module in {**info.get("jobs", {}), **served}:
            told, label = served.get(module, {}), self._label(module)
            ages[label] = max(ages[label], told.get("ready_age_us", 0) / 1e6)
            untaken[label] += told.get("untaken", 0)
            workers[label] += told.get("workers", 0)
        yield _by_module("givalia_ready_age_seconds", "How long the oldest job that is ready has been due.", ages)
        yield _by_module("givalia_jobs_untaken", "Ready jobs that no connected worker can take.", untaken)
        yield _by_module("givalia_module_workers", "Connected workers that can run the module.", workers)


def _by_module(name: str, words: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=("module",))
    for label, value in values.items():
        family.add_metric((label,), value)
    return family


def _troubles(shown: Mapping[str, Any]) -> Metric:
    family = GaugeMetricFamily("givalia_trouble", "1: the server has this trouble itself.", labels=("trouble",))
    for name, trouble in shown.items():
        family.add_metric((name,), int(trouble is not None))
    return family


def _store(described: Mapping[str, Any]) -> Iterator[Metric]:
    sizes = GaugeMetricFamily("givalia_store_bytes", "What the files of the store take.", labels=("part",))
    for key, part in _SIZES:
        if key in described:
            sizes.add_metric((part,), described[key])
    yield sizes
    for key, name, words in _DISK:
        if key in described:
            yield GaugeMetricFamily(name, words, value=described[key])


def _of_workers(hosts: Iterable[Any]) -> Iterator[Metric]:
    """Yield the counts of these workers' supervisors; they survive when the process of this plugin is replaced."""
    counted = [host.counts for host in hosts if hasattr(host, "counts")]
    happened = Counter(dict.fromkeys(_EVENTS, 0))
    for counts in counted:
        happened.update(counts)
    if counted:
        words = "What happened to the worker's processes: replaced, died, or blocked by a job that does not yield."
        events = CounterMetricFamily("givalia_worker_events", words, labels=("event",))
        for event, count in sorted(happened.items()):
            events.add_metric((event,), count)
        yield events


def _of_plugins(hosts: Iterable[Any]) -> Iterator[Metric]:
    raised: Counter[str] = Counter()
    silenced: set[str] = set()
    for hooks in {id(each): each for each in (getattr(host, "hooks", None) for host in hosts)}.values():
        raised.update(dict.fromkeys(getattr(hooks, "names", ()), 0))
        # Each copied in one step, because plugins may raise in another thread meanwhile.
        raised.update(dict(getattr(hooks, "raised", {})))
        silenced.update(set(getattr(hooks, "silenced", ())))
    raises = CounterMetricFamily("givalia_plugin_raises", "How often a plugin's hooks have raised.", labels=("plugin",))
    silences = GaugeMetricFamily("givalia_plugin_silenced", "1: raised too often, called no more.", labels=("plugin",))
    for plugin in sorted(raised | dict.fromkeys(silenced, 0)):
        raises.add_metric((plugin,), raised[plugin])
        silences.add_metric((plugin,), int(plugin in silenced))
    yield raises
    yield silences
