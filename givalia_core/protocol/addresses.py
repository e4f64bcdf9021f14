"""The servers that a client or a worker knows, and which of them is tried next.

Used by the client, the worker's link and the settings; nothing here touches a socket. Several servers are equals: they share
one store, so what began at one can go on at another.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from givalia_core.errors import BadRequest

PORT_MAX: Final = 65_535
HOST_CHARS_MAX: Final = 253

_NO_HOST: Final = re.compile(r"[\s,:/@\[\]\x00-\x1f\x7f]").search
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII).fullmatch


class Address(NamedTuple):
    """The address of a server; written `HOST:PORT`, an IPv6 host in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(given: str | Iterable[str], port: int) -> tuple[Address, ...]:
    """Return the addresses in a text (separated by commas) or in several, each once, in their order.

    Args:
        given: Each `HOST` or `HOST:PORT`; an IPv6 host stands in brackets, which are optional where no port follows.
        port: The port of addresses that name none, 1 to 65535.

    Raises:
        BadRequest: An address cannot be read, or none is given.
    """
    parts: list[str] = []
    for each in [given] if isinstance(given, str) or not isinstance(given, Iterable) else given:
        if not isinstance(each, str):
            raise BadRequest(f"a server's address is a text, HOST or HOST:PORT, and not {each!r}")
        parts += each.split(",")
    if not parts:
        raise BadRequest("name at least one server, as HOST or HOST:PORT")
    return tuple(dict.fromkeys(_address(part.strip(), port) for part in parts))


def _address(text: str, port: int) -> Address:
    host, number = _split(text)
    if host is None:
        raise BadRequest(f"{text!r} is no server's address: HOST, HOST:PORT, or [::1]:PORT for IPv6")
    chosen = _port(number, port)
    if chosen is None:
        raise BadRequest(f"{text!r}: {port if number is None else number!r} is no port; they are 1 to {PORT_MAX}")
    return Address(host, chosen)


def _split(text: str) -> tuple[str | None, str | None]:
    """Return host and port of one address; no host if the text is no address, no port if it names none."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if closed and is_ipv6(host) and rest[:1] in ("", ":"):
            return host, rest[1:] if rest else None
        return None, None
    if is_ipv6(text):
        return text, None
    host, colon, number = text.partition(":")
    if not is_host(host) or ":" in number:
        return None, None
    return host, number if colon else None


def is_host(text: str) -> bool:
    """Return whether a text may be a host's name or IPv4 address: labels have 1 to 63 characters, as DNS carries them."""
    name = text.removesuffix(".")
    if _NO_HOST(name) or len(name) > HOST_CHARS_MAX or not all(1 <= len(label) <= 63 for label in name.split(".")):
        return False
    try:
        return name.isascii() or len(name.encode("idna")) <= HOST_CHARS_MAX
    except UnicodeError:  # Too long in that form, or with characters that no name has.
        return False


def is_ipv6(host: str) -> bool:
    """Return whether a host is an IPv6 address, which has colons of its own."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _port(number: str | None, otherwise: int) -> int | None:
    """Return the given port, or the other one if none is given; None if that is no port."""
    if number is not None:
        otherwise = int(number) if _PORT(number) else 0
    return otherwise if type(otherwise) is int and 1 <= otherwise <= PORT_MAX else None


class Round:
    """Several servers that are tried in turn.

    The servers are shuffled once, so that clients with the same list spread over it, even when one server fails. `failed` tells
    when all have failed in a row, since then it is time to rest.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = random.sample(addresses, len(addresses))
        self._failed = 0  # How many in a row.
        self.has_others = len(addresses) > 1
        """True if there is another server to try."""

    def __str__(self) -> str:
        return ", ".join(map(str, self._addresses))

    def __len__(self) -> int:
        return len(self._addresses)

    def __iter__(self) -> Iterator[Address]:
        return iter(tuple(self._addresses))

    @property
    def address(self) -> Address:
        """The server whose turn it is."""
        return self._addresses[0]

    def replace(self, addresses: Sequence[Address]) -> None:
        """Continue with these servers instead, if they differ."""
        if set(addresses) != set(self._addresses):
            self._addresses = random.sample(addresses, len(addresses))
            self._failed = 0
            self.has_others = len(addresses) > 1

    def worked(self) -> None:
        """Note that the present server works: earlier failures do not count any more."""
        self._failed = 0

    def move_on(self) -> None:
        """Move on to the next server, without counting a failure of the present one."""
        self._addresses.append(self._addresses.pop(0))

    def failed(self) -> bool:
        """Count a failure and move on to the next server; return whether all have failed in a row, so that a rest is due."""
        self.move_on()
        self._failed = (self._failed + 1) % len(self._addresses)
        return self._failed == 0
