"""The HTTP side: answers `/metrics` from a registry, in a thread of its own.

On the server that is a native thread, which shares nothing with the loop that serves jobs; on a worker gevent makes it a
greenlet beside the others. Whatever goes wrong here is said in the log and stops nothing else.
"""

from __future__ import annotations

import logging
import threading

from prometheus_client import CollectorRegistry, start_http_server

log = logging.getLogger("givalia.prometheus")


class Listener:
    """One open port; made by `listen`."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._http, self._thread = start_http_server(port, host, registry)
        self.port: int = self._http.server_port

    def close(self) -> threading.Thread:
        """Close the port soon, without waiting: ending takes up to half a second, which a drain need not spend.

        Returns:
            The thread that closes it, for those who do want to wait.
        """
        closing = threading.Thread(target=self._close, name="givalia-prometheus-close", daemon=True)
        closing.start()
        return closing

    def _close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def listen(host: str, port: int, registry: CollectorRegistry) -> Listener | None:
    """Answer on this address; None, and a line in the log, if it cannot be had."""
    try:
        listener = Listener(host, port, registry)
    except OSError as error:
        log.error("no metrics on %s port %d: %s; jobs are served all the same", host, port, error)
        return None
    log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, listener.port)
    return listener
