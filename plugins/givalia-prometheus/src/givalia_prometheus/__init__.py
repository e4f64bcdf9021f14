"""Metrics of jobs: the `Prometheus` plugin, found by Givalia through the entry point group `givalia.plugins`."""

from givalia_prometheus.plugin import Prometheus

__all__ = ["Prometheus"]
__version__ = "0.1.0"
