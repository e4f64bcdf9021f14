"""The foreman of a worker: he joins the link to the processes, and knows each job that the worker holds. This is his door."""

from givalia_core.worker.foreman.foreman import Foreman

__all__ = ["Foreman"]
