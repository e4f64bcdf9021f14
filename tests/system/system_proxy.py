"""A proxy between client and server for tests of the network: it forwards what the test tells it to."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any


class Proxy:
    """Listens on a port of its own and connects each connection on; what is said on the way is for a subclass."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = [self._listener]
        self._go(self._accept)

    def ask(self, near: socket.socket, far: socket.socket, asked: dict[int, Any]) -> None:
        """Hand on what the client says; `asked` is for both directions of one connection."""
        raise NotImplementedError

    def answer(self, far: socket.socket, near: socket.socket, asked: dict[int, Any]) -> None:
        """Hand on what the server says."""
        raise NotImplementedError

    def _go(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                asked: dict[int, Any] = {}
                self._go(self.ask, near, far, asked)
                self._go(self.answer, far, near, asked)

    @staticmethod
    def cut(*both: socket.socket) -> None:
        """End the connection in both directions."""
        for each in both:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        self.cut(*self._sockets)
        for each in self._sockets:
            each.close()
        for thread in self._threads:
            thread.join(5)
