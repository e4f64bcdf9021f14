"""Sockets and greenlets round the engine."""

from givalia_core.server.app import Server

__all__ = ["Server"]
