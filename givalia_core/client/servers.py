"""The servers of a client: those given to it, else in a job those of its worker, else those of its settings.

A client may be made while a module is imported, before the worker knows its servers. So the first command finds the servers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Self, TypeAlias, TypeVar

from givalia_core import job_servers
from givalia_core.client.failover import Find
from givalia_core.errors import BadRequest
from givalia_core.protocol import addresses
from givalia_core.protocol.addresses import Address
from givalia_core.settings import CLIENT_PORT, ClientSettings, load
from givalia_core.times import Length, length_to_seconds

T = TypeVar("T")

Hosts: TypeAlias = str | Iterable[str]

HOST: Final = "127.0.0.1"
RESEND_S: Final = 60.0

log = logging.getLogger("givalia.settings")


def given(host: Hosts | None, port: int | None) -> Find:
    """Return a function that finds these servers; if none are given outside a job, the server of this machine.

    Raises:
        BadRequest: Not an address.
    """
    found = addresses.parse(HOST if host is None else host, CLIENT_PORT if port is None else port)
    return _find(found, is_given=host is not None or port is not None)


def _argument(setting: str) -> str:
    return f"the argument {'host' if setting == 'master' else setting}"


def from_settings(
    host: Hosts | None,
    port: int | None,
    config: str | Path | None,
    notice: Callable[[str], object] = log.warning,
    name: Callable[[str], str] = _argument,
) -> Find:
    """Return a function that finds the servers as the command line does: by arguments, environment, settings file, defaults.

    Raises:
        SettingsInvalid: One of them cannot be used.
    """
    master = host if host is None or isinstance(host, str) else list(host)
    settings = load(ClientSettings, {"master": master, "port": port}, file=config, notice=notice, name=name)
    return _find(settings.servers(), is_given=master is not None or port is not None)


def _find(found: tuple[Address, ...], *, is_given: bool) -> Find:
    if is_given:
        return lambda: found

    def find() -> tuple[Address, ...]:
        of_worker = job_servers.known()
        return addresses.parse(of_worker, CLIENT_PORT) if of_worker else found

    return find


def _resend_s(resend: Length) -> float:
    """Return the seconds that a client resends.

    Raises:
        BadRequest: Not a number or `timedelta`, or not above 0.
    """
    seconds = length_to_seconds(resend, "resend")
    if seconds <= 0:
        raise BadRequest(f"resend is more than 0, not {resend!r:.40}: within it a server has to answer")
    return min(seconds, RESEND_S)


class _Lazily:
    """Makes the transport of a client at its first command, and leaves it there as an ordinary attribute."""

    def __get__(self, client: Any, owner: type | None = None) -> Any:
        if client is None:
            return self
        made = type(client)._make(client._find(), client._resend_s, client._find)  # noqa: SLF001 - The same room.
        # Threads that come here at once share the first one made. Not by a lock, which might be held at a fork.
        return client.__dict__.setdefault("_transport", made)


class Located(Generic[T]):
    """The part of a client that finds its servers."""

    _make: ClassVar[type[Any]]
    _transport: T = _Lazily()  # type: ignore[assignment]

    def __init__(self, host: Hosts | None = None, port: int | None = None, *, resend: Length = RESEND_S) -> None:
        self._find, self._resend_s = given(host, port), _resend_s(resend)

    @classmethod
    def from_settings(
        cls,
        host: Hosts | None = None,
        port: int | None = None,
        *,
        config: str | Path | None = None,
        resend: Length = RESEND_S,
    ) -> Self:
        """Make a client of the servers that the command line would ask: by `GIVALIA_*`, the TOML file, and the defaults.

        In a job it means the servers of the worker, unless `host` or `port` is given.

        Args:
            host: As in the class, in place of `GIVALIA_MASTER`.
            port: In place of `GIVALIA_PORT`.
            config: The TOML file; None: the one that `GIVALIA_CONFIG` names, if it names one.
            resend: As in the class.

        Raises:
            SettingsInvalid: A setting cannot be used.
            BadRequest: `resend` is no length.
        """
        return found_by(cls, from_settings(host, port, config), resend)


L = TypeVar("L", bound=Located[Any])


def found_by(kind: type[L], find: Find, resend: Length) -> L:
    """Make a client of the servers that `find` finds at its first command.

    Raises:
        BadRequest: `resend` is no length.
    """
    client = kind(resend=resend)
    client._find = find  # noqa: SLF001 - The same room.
    return client


def likewise(client: L, resend: Length) -> L:
    """Make a client of the servers of this one, with a connection of its own.

    Raises:
        BadRequest: `resend` is no length.
    """
    return found_by(type(client), client._find, resend)  # noqa: SLF001 - The same room.
