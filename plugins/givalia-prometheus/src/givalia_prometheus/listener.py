"""The HTTP listener: answers `/metrics` from a registry, in a thread of its own.

On the server this is a native thread, which shares nothing with the loop that serves jobs; on a worker gevent makes it a
greenlet. An error here is logged and affects nothing else. A taken port is tried again: when a worker's process is
replaced, the old process frees the port only after the new one has started.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import Final

from givalia_core import forks, ports
from prometheus_client import CollectorRegistry, start_http_server

AGAIN_S: Final = 0.5
PATIENCE_S: Final = 5.0  # A process that is being replaced has freed its port by then.

log = logging.getLogger("givalia.prometheus")


class Listener:
    """One port: it opens at once if it is free, else as soon as it is."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.port: int | None = None
        """The open port; None while there is none."""
        self._address = host, port
        self._registry = registry
        self._closed = threading.Event()
        self._opened = threading.Lock()
        forks.register(self)
        if self._open() is not None:
            threading.Thread(target=self._open_later, name="givalia-prometheus-open", daemon=True).start()

    def _open(self) -> OSError | None:
        """Open the port; return the error, or None if the port is open or no longer needed."""
        host, port = self._address
        with self._opened:
            if self._closed.is_set():
                return None
            try:
                self._http, self._thread = start_http_server(port, host, self._registry)
            except OSError as error:
                return error
            self.port = self._http.server_port
        log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, self.port)
        return None

    def _open_later(self) -> None:
        speaks_at_s = time.monotonic() + PATIENCE_S
        has_spoken = False
        while not self._closed.wait(AGAIN_S) and (error := self._open()) is not None:
            if not has_spoken and time.monotonic() >= speaks_at_s:
                has_spoken = True
                who = ports.holders(self._address[1]) if error.errno == errno.EADDRINUSE else ""
                why = f"{who} has it" if who else error
                log.error("no metrics yet on %s port %d: %s; jobs are served all the same", *self._address, why)

    def after_fork(self) -> None:
        """In a fork: close the port, which belongs to the parent; otherwise it would stay taken until the fork ends."""
        self._closed.set()
        self._opened = threading.Lock()
        if self.port is not None:
            forks.detach(self._http.fileno())
            # On a worker the listener is a greenlet, which the fork has, too. `shutdown` would wait for it.
            self._http._BaseServer__shutdown_request = True  # noqa: SLF001 - The public way waits.
            self.port = None

    def close(self) -> threading.Thread:
        """Close the port soon, without waiting: closing takes up to half a second, which would delay a drain.

        Returns:
            The thread that closes the port, for callers that wait.
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
