"""Structured logs of jobs: the `Logging` plugin, found by Givalia through the entry point group `givalia.plugins`."""

from givalia_logging.plugin import Logging

__all__ = ["Logging"]
__version__ = "0.1.0"
