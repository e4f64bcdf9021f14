"""The link of a worker to its server, and all its leases. This is its door."""

from givalia_core.worker.link.link import Bell, Link
from givalia_core.worker.link.records import Answered, Connected, Disconnected, Dispatched, Follows, LinkEvent, Lost, StopAsked

__all__ = ["Answered", "Bell", "Connected", "Disconnected", "Dispatched", "Follows", "Link", "LinkEvent", "Lost", "StopAsked"]
