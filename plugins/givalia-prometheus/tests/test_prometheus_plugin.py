"""The Prometheus plugin, called as Givalia calls it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from givalia_core import Outcome
from givalia_core.errors import ShuttingDown
from givalia_core.hooks import RAISES_MAX, Hooks, hookimpl
from givalia_core.model import OutcomeKind
from givalia_core.views import JobView, RunningJobView
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from givalia_prometheus import Prometheus, listener
from givalia_prometheus import plugin as plugin_module
from givalia_prometheus.listener import Listener

DUE = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
DEADLINE_S = 10.0


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIVALIA_PROMETHEUS_PORT", raising=False)
    monkeypatch.delenv("GIVALIA_PROMETHEUS_HOST", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def closings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.Thread]]:
    """Every closing of a listener, awaited at the end, so that no test leaves a port behind."""
    started: list[threading.Thread] = []
    close = Listener.close
    monkeypatch.setattr(Listener, "close", lambda self: started.append(close(self)))
    yield started
    for thread in started:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


class FakeServer:
    """A server as far as the plugin knows one."""

    def __init__(self, jobs: dict[str, dict[str, int]] | None = None) -> None:
        self.jobs = jobs or {}
        self.modules: dict[str, dict[str, int]] = {}
        self.hooks = Hooks([])

    def info(self) -> dict[str, Any]:
        return {
            "jobs": self.jobs,
            "modules": self.modules,
            "workers": 2,
            "stale_reports": 3,
            "hooks_dropped": 4,
            "leases_lost": 5,
            "workers_lost": 6,
            "connections_shed": 8,
            "store": {"bytes": 10, "log_bytes": 20, "index_bytes": 30, "disk_free_bytes": 40, "disk_bytes": 50},
        }

    def troubles(self) -> dict[str, Any]:
        return {"store_full": {"since_us": 1, "words": "full"}, "busy": None}


def job(module: str = "Sample", attempt: int = 0) -> JobView:
    return JobView("0195-id", "cart-7", module, "any", 0, attempt, DUE)


def running(module: str = "Sample", attempt: int = 1) -> RunningJobView:
    return RunningJobView("0195-id", "cart-7", module, "any", 0, attempt, DUE, fence=1, params=None)


def scraped(text: str) -> dict[str, float]:
    """Every sample of an exposition, under `name{label="value"}`."""
    return {
        sample.name + "{" + ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items())) + "}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def samples(plugin: Prometheus) -> dict[str, float]:
    return scraped(generate_latest(plugin.registry).decode())


def test_what_happens_to_jobs_is_counted_by_module_and_reason() -> None:
    plugin = Prometheus()
    hooks = Hooks([plugin])
    failed = Outcome(OutcomeKind.FAILED, seconds=0.3)
    for _ in range(3):
        hooks.call("on_enq", job=job())
    hooks.call("on_ext", job=job())
    hooks.call("on_cancel", job=job(), running=False)
    hooks.call("on_cancel", job=job(), running=True)
    hooks.call("on_retry", job=job(attempt=1), outcome=Outcome(OutcomeKind.TIMEOUT))
    hooks.call("on_dead", job=job(), reason="exhausted", error="no")
    hooks.call("on_done", job=job())
    hooks.call("on_requeue", job=job())
    hooks.call("after_run", job=running(), module=object, outcome=failed)
    hooks.call("after_run", job=running(), module=object, outcome=Outcome(OutcomeKind.RELEASED))
    assert not hooks.raised
    found = samples(plugin)
    assert found["givalia_jobs_enqueued_total{module=Sample}"] == 3
    assert found["givalia_jobs_extended_total{module=Sample}"] == 1
    assert found["givalia_jobs_cancelled_total{module=Sample,running=false}"] == 1
    assert found["givalia_jobs_cancelled_total{module=Sample,running=true}"] == 1
    assert found["givalia_jobs_retried_total{module=Sample,reason=timeout}"] == 1
    assert found["givalia_jobs_dead_total{module=Sample,reason=exhausted}"] == 1
    assert found["givalia_jobs_done_total{module=Sample}"] == 1
    assert found["givalia_jobs_requeued_total{module=Sample}"] == 1
    assert found["givalia_runs_total{module=Sample,outcome=failed}"] == 1
    assert found["givalia_runs_total{module=Sample,outcome=released}"] == 1
    assert found["givalia_run_seconds_count{module=Sample}"] == 1
    assert found["givalia_run_seconds_sum{module=Sample}"] == pytest.approx(0.3)


@pytest.mark.parametrize(("late_s", "observed"), [(0.0004, 0.0004), (59.0, 59.0), (-0.2, 0.0)])
def test_lateness_is_how_long_after_its_due_a_job_first_starts(late_s: float, observed: float) -> None:
    plugin = Prometheus(now=lambda: DUE + timedelta(seconds=late_s))
    hooks = Hooks([plugin])
    hooks.call("before_run", job=running(attempt=1), module=object)
    hooks.call("before_run", job=running(attempt=2), module=object)
    found = samples(plugin)
    assert found["givalia_lateness_seconds_count{module=Sample}"] == 1
    assert found["givalia_lateness_seconds_sum{module=Sample}"] == pytest.approx(observed)
    assert found["givalia_lateness_seconds_bucket{le=0.0005,module=Sample}"] == (late_s < 0.0005)
    assert found["givalia_lateness_seconds_bucket{le=60.0,module=Sample}"] == 1


def test_the_servers_jobs_are_read_when_asked() -> None:
    plugin = Prometheus()
    server = FakeServer({"Sample": {"waiting": 7, "ready": 2, "running": 1, "done": 100}, "Idle": {"done": 5}})
    Hooks([plugin]).call("server_started", server=server)
    found = samples(plugin)
    assert {name: value for name, value in found.items() if name.startswith("givalia_jobs{")} == {
        "givalia_jobs{module=Sample,state=waiting}": 5,
        "givalia_jobs{module=Sample,state=ready}": 2,
        "givalia_jobs{module=Sample,state=running}": 1,
        "givalia_jobs{module=Idle,state=waiting}": 0,
        "givalia_jobs{module=Idle,state=ready}": 0,
        "givalia_jobs{module=Idle,state=running}": 0,
    }
    assert found["givalia_workers{}"] == 2
    assert found["givalia_stale_reports_total{}"] == 3
    assert found["givalia_hooks_dropped_total{}"] == 4
    server.jobs["Sample"]["running"] = 6
    assert samples(plugin)["givalia_jobs{module=Sample,state=running}"] == 6


def test_what_an_operator_is_woken_for_is_read_when_asked() -> None:
    plugin = Prometheus()
    server = FakeServer({"Sample": {"waiting": 700, "ready": 500}})
    server.modules = {
        "Sample": {"workers": 0, "ready_age_us": 41_500_000, "untaken": 500},
        "Idle": {"workers": 3, "ready_age_us": 0, "untaken": 0},
    }
    Hooks([plugin]).call("server_started", server=server)

    found = samples(plugin)

    assert found["givalia_ready_age_seconds{module=Sample}"] == 41.5
    assert found["givalia_ready_age_seconds{module=Idle}"] == 0
    assert found["givalia_jobs_untaken{module=Sample}"] == 500
    assert (found["givalia_module_workers{module=Sample}"], found["givalia_module_workers{module=Idle}"]) == (0, 3)
    assert (found["givalia_leases_lost_total{}"], found["givalia_workers_lost_total{}"]) == (5, 6)
    assert found["givalia_connections_shed_total{}"] == 8
    assert (found["givalia_trouble{trouble=store_full}"], found["givalia_trouble{trouble=busy}"]) == (1, 0)
    assert found["givalia_store_bytes{part=index}"] == 30
    assert (found["givalia_store_disk_free_bytes{}"], found["givalia_store_disk_bytes{}"]) == (40, 50)
    assert found["givalia_answers{}"] == 1


def test_counters_begin_at_0_when_a_module_is_announced_or_first_enqueued() -> None:
    plugin = Prometheus()
    hooks = Hooks([plugin])
    server = FakeServer()
    server.modules = {"Announced": {"workers": 1, "ready_age_us": 0, "untaken": 0}}
    hooks.call("server_started", server=server)
    hooks.call("on_enq", job=job("Enqueued"))

    found = samples(plugin)

    for module in ("Announced", "Enqueued"):
        for reason in ("exhausted", "failed", "expired", "child_died"):
            assert found[f"givalia_jobs_dead_total{{module={module},reason={reason}}}"] == 0
        assert found[f"givalia_jobs_done_total{{module={module}}}"] == 0
        assert found[f"givalia_jobs_retried_total{{module={module},reason=timeout}}"] == 0


def test_on_a_worker_the_runs_of_its_modules_begin_at_0() -> None:
    plugin = Prometheus()
    plugin.worker_started(SimpleNamespace(name="w1", modules={"Sample": object}))

    found = samples(plugin)

    assert found["givalia_runs_total{module=Sample,outcome=died}"] == 0
    assert not any(name.startswith("givalia_jobs_dead") for name in found)


def test_a_server_that_cannot_answer_costs_its_counts_and_nothing_else() -> None:
    plugin = Prometheus()
    server = FakeServer()
    hooks = Hooks([plugin])
    hooks.call("server_started", server=server)
    hooks.call("on_enq", job=job())

    def info() -> dict[str, Any]:
        raise ShuttingDown("the server is stopping")

    server.info = info  # type: ignore[method-assign]
    found = samples(plugin)
    assert found["givalia_jobs_enqueued_total{module=Sample}"] == 1
    assert not any(name.startswith("givalia_jobs{") for name in found)
    assert found["givalia_answers{}"] == 0
    assert found["givalia_trouble{trouble=store_full}"] == 1


def test_plugins_that_raise_are_seen() -> None:
    class Broken:
        @hookimpl
        def on_enq(self) -> None:
            raise SystemExit

    plugin = Prometheus()
    server = FakeServer()
    server.hooks = Hooks([Broken()])
    for _ in range(RAISES_MAX):
        server.hooks.call("on_enq", job=job())
    hooks = Hooks([plugin])
    hooks.call("server_started", server=server)
    hooks.call("worker_started", worker=SimpleNamespace(hooks=server.hooks))  # The same hooks count once.
    found = samples(plugin)
    [raises] = [value for name, value in found.items() if name.startswith("givalia_plugin_raises_total{")]
    [silenced] = [value for name, value in found.items() if name.startswith("givalia_plugin_silenced{")]
    assert (raises, silenced) == (RAISES_MAX, 1)


def test_made_up_modules_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_module, "MODULES_MAX", 3)
    plugin = Prometheus()
    hooks = Hooks([plugin])
    for number in range(10):
        hooks.call("on_enq", job=job(f"M{number}"))
    server = FakeServer({f"M{number}": {"waiting": 1} for number in range(10)})
    hooks.call("server_started", server=server)
    found = samples(plugin)
    assert found["givalia_jobs_enqueued_total{module=M0}"] == 1
    assert found["givalia_jobs_enqueued_total{module=(other)}"] == 7
    assert found["givalia_jobs{module=(other),state=waiting}"] == 7
    assert sum(name.startswith("givalia_jobs_enqueued_total{") for name in found) == 4


def test_two_plugins_in_one_process_do_not_meet() -> None:
    one, other = Prometheus(), Prometheus()
    Hooks([one]).call("on_enq", job=job())
    assert samples(one)["givalia_jobs_enqueued_total{module=Sample}"] == 1
    assert "givalia_jobs_enqueued_total{module=Sample}" not in samples(other)


def test_nobody_listens_without_a_port() -> None:
    plugin = Prometheus()
    Hooks([plugin]).call("server_started", server=FakeServer())
    assert plugin.port is None


def test_metrics_are_answered_on_loopback_while_the_server_is_up(
    monkeypatch: pytest.MonkeyPatch, closings: list[threading.Thread]
) -> None:
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "0")
    plugin = Prometheus()
    hooks = Hooks([plugin])
    server = FakeServer({"Sample": {"waiting": 1}})
    hooks.call("server_started", server=server)
    port = plugin.port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as answer:
        assert scraped(answer.read().decode())["givalia_jobs{module=Sample,state=waiting}"] == 1
    hooks.call("server_stopping", server=server)
    assert not hooks.raised
    assert plugin.port is None
    [closing] = closings
    closing.join(DEADLINE_S)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S)


def test_server_and_worker_in_one_process_share_the_listener_until_both_stop(
    monkeypatch: pytest.MonkeyPatch, closings: list[threading.Thread]
) -> None:
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "0")
    plugin = Prometheus()
    hooks = Hooks([plugin])
    server, worker = FakeServer(), SimpleNamespace(name="w1")
    hooks.call("server_started", server=server)
    port = plugin.port
    hooks.call("worker_started", worker=worker)
    hooks.call("server_stopping", server=server)
    assert plugin.port == port
    assert not closings
    hooks.call("worker_stopping", worker=worker)
    assert plugin.port is None
    assert not hooks.raised


def test_a_port_in_use_is_said_and_stops_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(listener, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", str(port))
        plugin = Prometheus()
        hooks = Hooks([plugin])
        worker = SimpleNamespace(name="w1")
        with caplog.at_level(logging.INFO, "givalia.prometheus"):
            hooks.call("worker_started", worker=worker)
            hooks.call("on_enq", job=job())
            deadline = time.monotonic() + DEADLINE_S
            while "no metrics yet" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.02)
        hooks.call("worker_stopping", worker=worker)
    assert not hooks.raised
    assert f"no metrics yet on 127.0.0.1 port {port}: " in caplog.text
    if sys.platform == "linux":
        assert f"(pid {os.getpid()}) has it" in caplog.text
    assert samples(plugin)["givalia_jobs_enqueued_total{module=Sample}"] == 1


def test_a_port_that_comes_free_is_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a worker's process is replaced: the new one is there before the old one lets go."""
    worker = SimpleNamespace(name="w1")
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "0")
    before = Prometheus()
    before.worker_started(worker)
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", str(before.port))
    after = Prometheus()
    after.worker_started(worker)
    assert after.port is None

    before.worker_stopping(worker)

    deadline = time.monotonic() + DEADLINE_S
    while after.port is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert after.port is not None
    assert "no metrics yet" not in caplog.text
    after.worker_stopping(worker)


def test_what_the_supervisor_counts_is_shown() -> None:
    plugin = Prometheus()
    plugin.worker_started(SimpleNamespace(name="w1", counts={"hosts_replaced": 2, "blocked": 1}))

    found = samples(plugin)

    assert found["givalia_worker_events_total{event=hosts_replaced}"] == 2
    assert found["givalia_worker_events_total{event=blocked}"] == 1
    assert found["givalia_worker_events_total{event=children_died}"] == 0


def test_lines_that_the_log_of_a_process_lost_are_counted() -> None:
    handler = logging.NullHandler()
    handler.lost = 3  # type: ignore[attr-defined]
    logging.getLogger("givalia").addHandler(handler)
    try:
        assert samples(Prometheus())["givalia_log_lines_lost_total{}"] == 3
    finally:
        logging.getLogger("givalia").removeHandler(handler)


def test_a_module_that_is_served_has_a_label_of_its_own_however_many_are_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_module, "MODULES_MAX", 3)
    plugin = Prometheus()
    server = FakeServer({f"M{number}": {"waiting": 1} for number in range(10)})
    server.modules = {"Zebra": {"workers": 1, "ready_age_us": 5_000_000, "untaken": 0}}
    Hooks([plugin]).call("server_started", server=server)

    assert samples(plugin)["givalia_ready_age_seconds{module=Zebra}"] == 5


def test_a_module_that_is_served_only_when_all_labels_are_taken_has_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_module, "MODULES_MAX", 3)
    plugin = Prometheus()
    server = FakeServer({f"M{number}": {"done": 1} for number in range(10)})
    Hooks([plugin]).call("server_started", server=server)
    samples(plugin)

    server.modules = {f"Zebra{number}": {"workers": 1, "ready_age_us": 0, "untaken": 2} for number in range(5)}
    found = {name: value for name, value in samples(plugin).items() if name.startswith("givalia_jobs_untaken{module=Zebra")}

    assert found == {f"givalia_jobs_untaken{{module=Zebra{number}}}": 2 for number in range(3)}  # That many, and no more.


@pytest.mark.parametrize("port", ["http", "-1", "65536", "1e3", "٣", "99999999999999"])
def test_a_port_that_cannot_be_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", port)
    with pytest.raises(ValueError, match="GIVALIA_PROMETHEUS_PORT must be"):
        Prometheus()


def test_a_port_that_kubernetes_sets_is_ignored_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "tcp://10.43.7.1:9090")
    plugin = Prometheus()
    Hooks([plugin]).call("server_started", server=FakeServer())

    assert plugin.port is None
    assert [record.getMessage().split(" is ")[0] for record in caplog.records] == [
        "GIVALIA_PROMETHEUS_PORT=tcp://10.43.7.1:9090"
    ]


AS_A_WORKER = """
import gevent.monkey; gevent.monkey.patch_all()
import gevent, time, types, urllib.request
from givalia_core.hooks import Hooks
from givalia_prometheus import Prometheus

plugin = Prometheus()
hooks = Hooks([plugin])
worker = types.SimpleNamespace(name="w1", hooks=hooks)
hooks.call("worker_started", worker=worker)
longest = [0.0]

def other_job():
    while True:
        before = time.monotonic()
        gevent.sleep(0.002)
        longest[0] = max(longest[0], time.monotonic() - before)

other = gevent.spawn(other_job)
url = f"http://127.0.0.1:{plugin.port}/metrics"
for _ in range(5):
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert b"givalia_plugin_raises" in answer.read()
hooks.call("worker_stopping", worker=worker)
gevent.sleep(0.05)
other.kill()
assert not hooks.raised
print("held up for", longest[0])
assert longest[0] < 0.4, longest
"""


def test_on_a_worker_the_listener_holds_up_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "0")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    done = subprocess.run([sys.executable, "-c", AS_A_WORKER], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("closings")
def test_a_scrape_does_not_wait_for_the_thread_that_calls_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "0")
    plugin = Prometheus()
    server = FakeServer()
    asked_in: list[threading.Thread] = []
    info: Callable[[], dict[str, Any]] = server.info

    def seen() -> dict[str, Any]:
        asked_in.append(threading.current_thread())
        return info()

    server.info = seen  # type: ignore[method-assign]
    hooks = Hooks([plugin])
    hooks.call("server_started", server=server)
    with urllib.request.urlopen(f"http://127.0.0.1:{plugin.port}/metrics", timeout=DEADLINE_S) as answer:
        answer.read()
    hooks.call("server_stopping", server=server)
    assert asked_in
    assert threading.current_thread() not in asked_in


FORKED = """
import os, sys, time, urllib.request
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
from types import SimpleNamespace
from givalia_core.hooks import Hooks
from givalia_prometheus import Prometheus

plugin = Prometheus()
worker = SimpleNamespace(name="w1")
Hooks([plugin]).call("worker_started", worker=worker)
reader, writer = os.pipe()
pid = os.fork()
if not pid:
    assert plugin.port is None
    plugin.worker_stopping(worker)
    os.write(writer, b"!")
    time.sleep(600)
os.read(reader, 1)
print(pid, plugin.port, flush=True)
for _ in range(20):
    assert b"givalia" in urllib.request.urlopen(f"http://127.0.0.1:{plugin.port}/metrics", timeout=10).read()
print("answered", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["plain", "patched"])
def test_a_fork_answers_no_scrape_and_does_not_keep_the_port(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setenv("GIVALIA_PROMETHEUS_PORT", "0")
    command = [sys.executable, "-W", "ignore", "-c", FORKED, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        try:
            assert parent.stdout.readline() == "answered\n"

            # when
            parent.kill()
            parent.wait()

            # then: nobody listens there, though somebody's outgoing connection may have the port by now
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10)
        finally:
            parent.kill()
            os.kill(pid, signal.SIGKILL)
