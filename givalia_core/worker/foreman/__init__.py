"""The foreman of a worker: joins the link to the processes, and knows each job that the worker holds. This is the door."""

from givalia_core.worker.foreman.foreman import Foreman

__all__ = ["Foreman"]
