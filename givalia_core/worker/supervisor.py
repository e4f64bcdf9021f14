"""The supervisor, `givalia-worker`: link, foreman and crews, in a process that runs no job and no plugin.

So job code can cost the worker neither its leases nor its connection. The order of stopping: take no more jobs; wait the time
of grace for the running ones; stop the rest, which are reported as failed; end the processes; end the link when the server has
answered every report.
"""

from __future__ import annotations

import os
import time
import uuid

import gevent
from gevent.event import Event

from givalia_core.protocol.messages import Join
from givalia_core.settings import WorkerSettings
from givalia_core.steady import AGAIN_S, survives
from givalia_core.worker.foreman import Foreman
from givalia_core.worker.link import Link
from givalia_core.worker.processes.generations import Crew
from givalia_core.worker.watch import LOOK_S, PackageWatch

READY_S = 10.0  # The longest wait of the link for the modules, so that a connected worker has some.
STOP_S = 5.0
_FIXED = ("master", "worker_port", "name", "only_targeted", "watch")


class Supervisor:
    """The parent of the jobs' processes; call `start`, then `stop`, in the main greenlet of a process that is not patched."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = self._made_with = settings
        join = Join(settings.name, uuid.uuid4().bytes, settings.only_targeted, os.getpid())
        self._link = Link(settings.servers(), join, [], lambda event: self._foreman.deliver(event))
        self._foreman = Foreman(settings, self._link, Crew)
        self.connected = self._foreman.news.connected
        """Set while the link is up."""
        self._watching: gevent.Greenlet[..., None] | None = None

    def start(self) -> None:
        """Start the processes and the link, and return at once."""
        watch = PackageWatch() if self.settings.watch else None
        self._foreman.open()
        self._linked = gevent.spawn(self._run_link)
        if watch is not None:
            self._watching = gevent.spawn(self._watch_forever, watch)

    def _run_link(self) -> None:
        self._foreman.news.ready.wait(READY_S)
        self._link.run()

    def _watch_forever(self, watch: PackageWatch) -> None:
        while True:
            gevent.sleep(LOOK_S)
            with survives("looking for packages that have changed", self._foreman.log) as failed:
                if watch.has_changed(time.monotonic()):
                    self.reload("packages have changed")
            if failed:
                watch.doubt()
                gevent.sleep(AGAIN_S)

    def reload(self, why: str) -> Event:
        """Replace the processes one by one, without stopping a job; new processes import what is installed now.

        Returns:
            An event, set when the new processes have taken over.
        """
        return self._foreman.reload(why)

    def change(self, settings: WorkerSettings) -> list[str]:
        """Use these settings for new processes; the settings of the link (servers, name) stay as they are.

        Returns:
            The names of settings that have changed and need a restart.
        """
        changed = [name for name in _FIXED if getattr(settings, name) != getattr(self._made_with, name)]
        self.settings = settings
        self._foreman.use(settings)
        return changed

    def stop(self) -> None:
        """Stop in the order that the module docstring gives."""
        if self._watching is not None:
            self._watching.kill()
        self._foreman.stop()
        self._link.stop()
        self._linked.join(STOP_S)
        self._foreman.say_rest()
