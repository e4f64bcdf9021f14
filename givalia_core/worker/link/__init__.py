"""The link of a worker to its server, with all leases: what is held, when to beat, what to report again.

This is its door.
"""

from givalia_core.worker.link.follows import Answered, Follows
from givalia_core.worker.link.link import Connected, Disconnected, Dispatched, Event_, Link, Lost, Stopped

__all__ = ["Answered", "Connected", "Disconnected", "Dispatched", "Event_", "Follows", "Link", "Lost", "Stopped"]
