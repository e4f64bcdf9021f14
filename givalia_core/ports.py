"""The binding of the server's ports, and the error that names the process which has a port already."""

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
_LISTENS: Final = "0A"  # The kernel's code for a listening socket.


def bound(host: str, number: int, make: Callable[..., Any] = socket.socket, *, backlog: int | None = None) -> Any:
    """Return a non-blocking socket bound to this port (0: any free port). The socket listens if `backlog` is given.

    Args:
        host: An address or a name.
        number: The port.
        make: Makes the socket.
        backlog: The number of connections that may wait to be accepted.

    Raises:
        OSError: The port cannot be bound.
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
    """Return the error for a port that is taken. It names the process that has the port if this user may see it.

    Args:
        host: The requested address.
        number: The port.
        whose: The users of the port, in words.
        flag: The flag that sets another port.
    """
    who = holders(number)
    look = f"lsof -nP -i :{number}" if sys.platform == "darwin" else f"ss -ltnp 'sport = :{number}'"
    hint = f"{who} has it" if who else f"`{look}`, as root, says who has it"
    return AddressInUse(f"the port for {whose}, {host} port {number}, is in use: {hint}. Stop that, or set another with {flag}")


def holders(number: int) -> str:
    """Return the processes that listen on a port, as far as this user may see them; empty if none is known."""
    return ", ".join(_holders(number))


def _holders(number: int) -> Iterator[str]:
    """Yield the processes that listen on a port, as `name (pid 7)`. Linux only; root sees those of other users."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(number)}
    for folder in _PROC.glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):  # The process has ended, or belongs to another user.
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
    """Return the name of a process's program; for an interpreter, the script or module that it runs."""
    words = [word for word in (folder / "cmdline").read_bytes().decode(errors="replace").split("\0") if word]
    if len(words) > 1 and Path(words[0]).name.startswith("python"):
        words = [word for word in words[1:] if not word.startswith("-")] or words
    return printable(Path(words[0]).name if words else (folder / "comm").read_text().strip())
