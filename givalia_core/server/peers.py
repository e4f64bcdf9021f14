"""The connected peers as people see them: address, agent, and time of connecting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from givalia_core.clock import Reading
from givalia_core.protocol.session import Port
from givalia_core.server.connection import Connection

GROUPS_MAX: Final = 1_000  # The most groups of clients in an answer; connections_max may be much more.


def peer(connection: Connection) -> dict[str, Any]:
    """Return the address and port of a peer, its agent, and the agent's version; empty where the peer does not tell."""
    agent, _, version = connection.session.agent.partition("/")
    host = f"[{connection.peer}]" if ":" in connection.peer else connection.peer
    return {"address": f"{host}:{connection.peer_port}", "agent": agent, "version": version}


def clients(connections: Iterable[Connection], now: Reading) -> list[dict[str, Any]]:
    """Return the clients by address and agent, those with the most connections first.

    Each group is a map: `address`, `agent`, `version`, `connections`, and `since_us`, the start of the oldest connection.
    """
    counts: Counter[tuple[str, str]] = Counter()
    opened_us: dict[tuple[str, str], int] = {}
    for connection in connections:
        if connection.session.port is Port.CLIENT and connection.session.is_open:
            group = connection.peer, connection.session.agent
            counts[group] += 1
            opened_us[group] = min(opened_us.get(group, connection.opened_us), connection.opened_us)
    return [
        {
            "address": address,
            "agent": agent.partition("/")[0],
            "version": agent.partition("/")[2],
            "connections": count,
            "since_us": now.wall_us - (now.mono_us - opened_us[address, agent]),
        }
        for (address, agent), count in counts.most_common(GROUPS_MAX)
    ]
