"""For programs that enqueue: the client and the job handle."""

from givalia_core.client.client import Client
from givalia_core.client.handles import JobHandle

__all__ = ["Client", "JobHandle"]
