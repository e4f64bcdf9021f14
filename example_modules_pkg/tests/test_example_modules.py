"""The example modules, each run by hand: a `Run` with a job in it is all that a WorkModule needs."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from givalia_core import Fail, Retry, WorkModule
from givalia_core.modules import Run
from givalia_core.views import RunningJobView

from example_modules.count import Count, Stopped
from example_modules.flaky import Flaky
from example_modules.sample import Sample
from example_modules.webhook import RETRY_AFTER_MAX_S, Webhook

ID = "01950000-0000-7000-8000-000000000001"


def run_of(name: str, params: Any, attempt: int = 1, told: list[tuple[float, str]] | None = None) -> Run:
    job = RunningJobView(ID, "a key", name, "any", 0, attempt, datetime.now(UTC), fence=1, params=params)
    heard = told if told is not None else []
    log = logging.LoggerAdapter(logging.getLogger("givalia.job"), {})
    return Run(job, log, lambda part, text: heard.append((part, text)))


def process(module: type[WorkModule], params: Any, attempt: int = 1) -> Any:
    return module(run_of(module.__name__, params, attempt)).process()


def test_sample_prints_as_in_2012(capsys: pytest.CaptureFixture[str]) -> None:
    process(Sample, "parameter sample")
    assert capsys.readouterr().out == "Run job sample\nparameter sample\n"


def test_flaky_fails_as_often_as_asked_and_then_succeeds() -> None:
    for attempt in (1, 2):
        with pytest.raises(RuntimeError, match="on purpose"):
            process(Flaky, {"fail_times": 2}, attempt)
    assert process(Flaky, {"fail_times": 2}, 3) == {"attempts": 3}


def test_flaky_announces_its_own_attempts_and_backoff() -> None:
    assert Flaky.max_attempts == 4
    assert Flaky.backoff == (0.2, 5.0)


def test_count_tells_how_far_it_is_and_returns_a_result() -> None:
    told: list[tuple[float, str]] = []
    result = Count(run_of("Count", {"to": 4, "pause": 0}, told=told)).process()
    assert result == {"counted": 4}
    assert told == [(n / 4, f"counted {n} of 4") for n in (1, 2, 3, 4)]


def test_count_stops_when_it_is_asked_to() -> None:
    told: list[tuple[float, str]] = []
    run = run_of("Count", {"to": 1000, "pause": 0}, told=told)._replace(is_cancelled=lambda: len(told) >= 3)
    with pytest.raises(Stopped, match="before 4 of 1000"):
        Count(run).process()


class Receiver(HTTPServer):
    """A server that answers each POST with `status` and `headers`, and keeps the requests in `got`."""

    status = 200
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "*")
    with Receiver() as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Answered = Callable[[int, dict[str, str]], Any]


@pytest.fixture
def answered(receiver: Receiver) -> Answered:
    """POSTs to a receiver that gives this answer."""

    def post(status: int, headers: dict[str, str]) -> Any:
        receiver.status, receiver.headers = status, headers
        return process(Webhook, {"url": receiver.url, "body": 1})

    return post


def test_webhook_delivers_the_body_with_the_jobs_idempotency_key(receiver: Receiver) -> None:
    receiver.status = 202
    result = process(Webhook, {"url": receiver.url + "?a=1", "body": {"order": 7, "name": "Ünal"}}, attempt=2)
    assert result["status"] == 202
    assert 0 < result["seconds"] < 10
    [(path, headers, body)] = receiver.got
    assert path == "/hook?a=1"
    assert body == {"order": 7, "name": "Ünal"}
    assert headers["Idempotency-Key"] == ID
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [429, 503])
def test_webhook_waits_as_long_as_a_busy_receiver_asks(answered: Answered, status: int) -> None:
    with pytest.raises(Retry, match=str(status)) as raised:
        answered(status, {"Retry-After": "7"})
    assert raised.value.after_us == 7_000_000


def test_webhook_understands_a_date_to_wait_for(answered: Answered) -> None:
    with pytest.raises(Retry) as raised:
        answered(503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)})
    assert raised.value.after_us is not None
    assert 80_000_000 < raised.value.after_us <= 90_000_000


@pytest.mark.parametrize(
    ("header", "after_us"),
    [
        ("soon", None),
        ("-5", None),
        ("9" * 400, RETRY_AFTER_MAX_S * 1e6),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
    ],
)
def test_webhook_is_not_led_astray_by_a_strange_wait(answered: Answered, header: str, after_us: float | None) -> None:
    with pytest.raises(Retry) as raised:
        answered(429, {"Retry-After": header})
    assert raised.value.after_us == after_us


def test_webhook_leaves_the_wait_to_the_backoff_when_none_is_asked(answered: Answered) -> None:
    with pytest.raises(Retry) as raised:
        answered(429, {})
    assert raised.value.after_us is None


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_webhook_does_not_try_again_what_is_refused(answered: Answered, status: int) -> None:
    with pytest.raises(Fail, match=str(status)):
        answered(status, {})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_webhook_never_turns_into_a_get_by_a_redirect(receiver: Receiver, answered: Answered, status: int) -> None:
    with pytest.raises(Fail, match=str(status)):
        answered(status, {"Location": receiver.url + "/elsewhere"})
    assert len(receiver.got) == 1


def test_webhook_tries_again_when_the_receiver_is_broken(answered: Answered) -> None:
    with pytest.raises(RuntimeError, match="500"):
        answered(500, {})


def test_webhook_tries_again_when_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        process(Webhook, {"url": f"http://127.0.0.1:{port}/", "body": None})


@pytest.mark.parametrize(
    "params",
    [
        None,
        "http://127.0.0.1/",
        {"body": 1},
        {"url": "http://127.0.0.1/"},
        {"url": 7, "body": 1},
        {"url": "file:///etc/passwd", "body": 1},
        {"url": "http://", "body": 1},
        {"url": "http://127.0.0.1:port/", "body": 1},
        {"url": "http://127.0.0.1:99999/", "body": 1},
        {"url": "http://127.0.0.1/a b", "body": 1},
        {"url": "http://127.0.0.1/\r\nX-Header: 1", "body": 1},
        {"url": "http://127.0.0.1/ü", "body": 1},
        {"url": "http://127.0.0.1/", "body": b"bytes are not JSON"},
        {"url": "http://127.0.0.1/", "body": float("nan")},
    ],
)
def test_webhook_gives_up_at_once_on_params_that_cannot_be_used(params: Any) -> None:
    with pytest.raises(Fail, match="params cannot be used"):
        process(Webhook, params)
