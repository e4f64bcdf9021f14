"""Runs jobs: the link to the server, and the line of steps that an attempt goes through."""

from givalia_core.worker.app import Worker

__all__ = ["Worker"]
