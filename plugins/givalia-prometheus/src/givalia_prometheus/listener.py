"""The HTTP side: answers `/metrics` from a registry, in a thread of its own.

On the server that is a native thread, which shares nothing with the loop that serves jobs; on a worker gevent makes it a
greenlet beside the others. Whatever goes wrong here is said in the log and stops nothing else. A port that is taken is
tried again: when a worker's process is replaced, the one before it lets go of it only when the new one is there.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from givalia_core import forks
from prometheus_client import CollectorRegistry, start_http_server

AGAIN_S: Final = 0.5

log = logging.getLogger("givalia.prometheus")


class Listener:
    """One port: open at once if it can be had, else as soon as it can."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.port: int | None = None
        """The open port; None while it cannot be had."""
        self._address = host, port
        self._registry = registry
        self._closed = threading.Event()
        self._opened = threading.Lock()
        forks.register(self)
        if not self._open(is_first=True):
            threading.Thread(target=self._open_later, name="givalia-prometheus-open", daemon=True).start()

    def _open(self, *, is_first: bool) -> bool:
        host, port = self._address
        with self._opened:
            if self._closed.is_set():
                return True
            try:
                self._http, self._thread = start_http_server(port, host, self._registry)
            except OSError as error:
                if is_first:
                    log.error("no metrics yet on %s port %d: %s; jobs are served all the same", host, port, error)
                return False
            self.port = self._http.server_port
        log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, self.port)
        return True

    def _open_later(self) -> None:
        while not self._closed.wait(AGAIN_S) and not self._open(is_first=False):
            pass

    def after_fork(self) -> None:
        """In a fork: the port is the parent's, which would not get it back before the fork ends as well."""
        self._closed.set()
        self._opened = threading.Lock()
        if self.port is not None:
            forks.detach(self._http.fileno())
            # On a worker the listener is a greenlet, which the fork has, too. `shutdown` would wait for it.
            self._http._BaseServer__shutdown_request = True
            self.port = None

    def close(self) -> threading.Thread:
        """Close the port soon, without waiting: ending takes up to half a second, which a drain need not spend.

        Returns:
            The thread that closes it, for those who do want to wait.
        """
        closing = threading.Thread(target=self._close, name="givalia-prometheus-close", daemon=True)
        closing.start()
        return closing

    def _close(self) -> None:
        self._closed.set()
        with self._opened:
            if self.port is not None:
                self._http.shutdown()
                self._http.server_close()
                self._thread.join()
                self.port = None
