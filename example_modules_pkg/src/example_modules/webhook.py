"""Real work: POST JSON to a URL, and deliver it although networks fail.

Try it: givalia enq Webhook --params '{"url": "http://127.0.0.1:8000/hook", "body": {"order": 7}}' --wait.

It shows the three ways in which an attempt can fail, and the reaction to each:

- It may work later: raise any exception. The server tries again after the backoff.
- It may work later, and the receiver said when: raise `Retry(after=seconds)`.
- It will never work: raise `Fail`. The job is dead at once, visible to people, and no attempt is wasted.

Clients of this module decide where the worker connects to. On a network where that matters, check the host here.
"""

import json
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from givalia_core import Fail, Retry, WorkModule

CONNECT_AND_READ_S = 10.0
RETRY_AFTER_MAX_S = 3600.0


class Webhook(WorkModule):
    max_attempts = 8
    timeout = 60.0  # For the whole attempt; the timeout below is for each wait of the socket.

    def process(self) -> dict[str, Any]:
        request = self._request()
        started = time.monotonic()
        try:
            with _opener.open(request, timeout=CONNECT_AND_READ_S) as response:
                status = response.status
        except HTTPError as answer:  # The receiver answered, but not with success.
            with answer:
                self._judge(answer.code, answer.headers.get("Retry-After"))
        # For a refused or lost connection, or a timeout, urllib raises OSError; that is enough for a retry.
        seconds = round(time.monotonic() - started, 6)
        self.log.info("delivered with status %d", status)
        return {"status": status, "seconds": seconds}

    def _request(self) -> Request:
        """Return the request. Clients choose the params; a retry does not repair wrong ones."""
        try:
            url, body = self.params["url"], json.dumps(self.params["body"], allow_nan=False).encode()
            _check(url)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Fail(f"the params cannot be used: {type(error).__name__}: {error}") from error
        headers = {
            "Content-Type": "application/json",
            # Givalia runs a job at least once: if the answer got lost, the POST comes again. The key is the same on
            # every attempt of this job, so that the receiver can tell a repetition from a second order.
            "Idempotency-Key": self.job.idempotency_key,
        }
        return Request(url, data=body, headers=headers, method="POST")

    def _judge(self, status: int, retry_after: str | None) -> NoReturn:
        """Raise the exception that fits an answer without success."""
        if status in (429, 503):
            raise Retry(f"the receiver is busy: status {status}", after=_seconds(retry_after))
        if 300 <= status < 500:
            raise Fail(f"the receiver refuses: status {status}")
        raise RuntimeError(f"the receiver is broken: status {status}")


def _check(url: str) -> None:
    """Refuse a URL that urllib cannot POST to: urllib also opens files, and finds some mistakes only while it connects."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # A bad port raises here too.
        raise ValueError("url must begin with http:// or https:// and name a host")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("url must be plain ASCII; quote what is not")


def _seconds(retry_after: str | None) -> float | None:
    """Return the header `Retry-After`, seconds or a date, as seconds from now, limited; None if it is not understood."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after) if retry_after.isdecimal() else _until(parsedate_to_datetime(retry_after))
    except ValueError:
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _until(moment: datetime) -> float:
    # A date without a zone is in UTC: HTTP has no other.
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


class _NoRedirects(HTTPRedirectHandler):
    """A refusal of redirects: a POST would become a GET without its body, which looks like success and delivers nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(_NoRedirects)
