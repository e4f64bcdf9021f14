"""The connecting side: its reaction to a server's messages."""

from __future__ import annotations

import http.server
import threading
from typing import Any

import pytest

from givalia_core import BadRequest, Busy, Client
from givalia_core.protocol.caller import Caller, retry_after_s


class Quiet(http.server.BaseHTTPRequestHandler):
    """A server of web pages that logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("said", "expected"),
    [(2, 2.0), (0.5, 0.5), (0, 1.0), (-3, 1.0), (1e-9, 0.05), (1e9, 60.0), (float("nan"), 1.0), (True, 1.0), ("5", 1.0)],
)
def test_a_busy_server_is_asked_again_when_it_says_within_reason(said: Any, expected: float) -> None:
    assert retry_after_s(Busy("later", retry_after=said)) == expected


def test_a_busy_server_that_does_not_say_when_is_asked_again_in_a_second() -> None:
    assert retry_after_s(Busy("later")) == 1.0


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n", "an HTTP server answers there"),
        (b'<!DOCTYPE HTML>\n<html lang="en">', "an HTTP server answers there"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server answers there"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "a TLS server answers there"),
        (b"-ERR unknown command\r\n", "something that says '-ERR unknown command' answers there"),
        (b"220 mail.example\x1b[2J ESMTP\r\n", r"something that says '220 mail.example\x1b[2J ESMTP' answers there"),
    ],
)
def test_who_answers_is_said_when_it_is_no_server_of_ours(says: bytes, expected: str) -> None:
    caller = Caller()
    caller.hello("test")

    with pytest.raises(BadRequest) as refused:
        caller.feed(says)

    assert str(refused.value) == f"{expected}, and no Givalia server: look at the host and the port"


def test_hello_ends_a_line_so_that_a_server_of_lines_answers() -> None:
    assert b"\n" in Caller().hello("test")


def test_http_server_that_waits_for_a_line_is_recognised() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            with (
                Client("127.0.0.1", server.server_port, resend=30) as client,
                pytest.raises(BadRequest, match="an HTTP server answers there"),
            ):
                client.info()
        finally:
            server.shutdown()
            serving.join()
