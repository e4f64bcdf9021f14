"""Says in words who has a port that the server wants."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from givalia_core.errors import AddressInUse
from givalia_core.printable import printable

_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"  # The state of a socket, as the kernel writes it.


def bound(host: str, number: int, make: Callable[..., Any] = socket.socket, *, backlog: int | None = None) -> Any:
    """Return a socket with this port, 0 for any that is free; it listens if there is a backlog, and never waits.

    Args:
        host: An address or a name.
        number: The port.
        make: Makes the socket.
        backlog: How many connections wait to be accepted.

    Raises:
        OSError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ((_, kind, _, _, address), *_) = socket.getaddrinfo(host, number, family, socket.SOCK_STREAM)
    made = make(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        if backlog is not None:
            made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def in_use(host: str, number: int, whose: str, flag: str) -> AddressInUse:
    """Return the error of a port that somebody has: who has it, as far as this user may know, and what to do.

    Args:
        host: The address that was asked for.
        number: The port.
        whose: For whom the port is, in words.
        flag: What sets another port.
    """
    who = holders(number)
    look = f"lsof -nP -i :{number}" if sys.platform == "darwin" else f"ss -ltnp 'sport = :{number}'"
    hint = f"{who} has it" if who else f"`{look}`, as root, says who has it"
    return AddressInUse(f"the port for {whose}, {host} port {number}, is in use: {hint}. Stop that, or set another with {flag}")


def holders(number: int) -> str:
    """Return the processes that listen on a port, as far as this user may know; empty if nothing is known."""
    return ", ".join(_holders(number))


def _holders(number: int) -> Iterator[str]:
    """Yield the processes that listen on a port, as `name (pid 7)`; those of other users only for root, and only on Linux."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(number)}
    for folder in _PROC.glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):  # It has ended, or is another user's.
            if any(_target(fd) in sockets for fd in (folder / "fd").iterdir()):
                yield f"{_name(folder)} (pid {folder.name})"


def _inodes(number: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == number:
                    yield fields[9]


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""


def _name(folder: Path) -> str:
    """The program of a process: of an interpreter the script or module that it runs."""
    words = [word for word in (folder / "cmdline").read_bytes().decode(errors="replace").split("\0") if word]
    if len(words) > 1 and Path(words[0]).name.startswith("python"):
        words = [word for word in words[1:] if not word.startswith("-")] or words
    return printable(Path(words[0]).name if words else (folder / "comm").read_text().strip())
