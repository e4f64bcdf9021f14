"""The link of a worker to its server, and all its leases. This is its door."""

from givalia_core.worker.link.link import Bell, Link
from givalia_core.worker.link.records import (
    Connected,
    Disconnected,
    Dispatched,
    FailAnswered,
    Follows,
    LinkEvent,
    Lost,
    StopAsked,
)

__all__ = [
    "Bell",
    "Connected",
    "Disconnected",
    "Dispatched",
    "FailAnswered",
    "Follows",
    "Link",
    "LinkEvent",
    "Lost",
    "StopAsked",
]
