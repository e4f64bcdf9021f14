"""A longer job: it reports progress, can be stopped, and returns a result.

Try it: givalia enq Count --params '{"to": 50, "pause": 0.2}' --key slow, then givalia stat slow, then
givalia cancel slow --running.
"""

import time

from givalia_core import WorkModule


class Stopped(Exception):  # noqa: N818 - It is no error: the job was asked to stop.
    """The job ended early because it was asked to stop."""


class Count(WorkModule):
    def process(self) -> dict[str, int]:
        to, pause = self.params["to"], self.params.get("pause", 0.1)
        for number in range(1, to + 1):
            # Poll this often: between two items, two pages, two files. Raising makes the job `cancelled`, and it is not
            # tried again; returning would make it `done`, which is right if partial work is useful.
            if self.cancelled:
                raise Stopped(f"stopped before {number} of {to}")
            self.progress(number / to, f"counted {number} of {to}")  # `stat` shows it; a hint, not kept on disk.
            # Jobs share the worker's process as greenlets, and gevent has patched the standard library: while this one
            # sleeps (or waits for a socket) the others run. A long computation would block them.
            time.sleep(pause)
        return {"counted": to}  # Any msgpack value; `client.enq(...).wait()` returns it.
