"""For programs that enqueue: the client and the job handle."""

from givalia_core.client.client import Client, JobHandle

__all__ = ["Client", "JobHandle"]
