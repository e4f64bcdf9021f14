"""Job code for the system tests: it records what it does, stays and spins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from givalia_core import Client, Retry, WorkModule

made_at_import = Client()  # As people write it: the worker does not know its servers yet.


def write_line(file: str, *words: object) -> None:
    """Append one line in one write, so that lines of several processes never mix and none is lost with its process."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


class Note(WorkModule):
    """Writes its id and the time to the file that its params name."""

    def process(self) -> None:
        write_line(self.params, self.job.id, time.time(), self.job.attempt)


class Echo(WorkModule):
    """Returns its params."""

    def process(self) -> Any:
        return self.params


class AskOwn(WorkModule):
    """Asks the servers of its worker in each of the ways that need no address; returns what servers they were."""

    def process(self) -> list[int]:
        with Client() as plain, Client.from_settings() as from_settings:
            pids = [client.info()["pid"] for client in (made_at_import, plain, from_settings)]
        command = [Path(sys.executable).with_name("givalia"), "info", "--json"]
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
        return [*pids, json.loads(done.stdout)["pid"]]


class AskOwnApart(AskOwn):
    """The same in a process of its own."""

    isolation = "process"


class Pay(WorkModule):
    """Writes into the database that its params name and is done in that transaction; the first attempt rolls back."""

    def process(self) -> None:
        import psycopg

        with psycopg.connect(self.params) as connection:
            connection.execute("INSERT INTO public.paid VALUES (%s, %s)", (self.job.id, self.job.attempt))
            self.job.complete_in(connection, f"paid in attempt {self.job.attempt}")
            if self.job.attempt == 1:
                raise Retry(after=0.1)
        raise RuntimeError("behind the commit nothing counts any more")


class Stay(WorkModule):
    """Says that it has started, then stays for some seconds or until somebody asks it to stop; says so on both streams."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        if "progress" in self.params:
            self.progress(*self.params["progress"])
        end = time.monotonic() + self.params["seconds"]
        while time.monotonic() < end:
            if self.cancelled:
                raise RuntimeError("stopped as asked")
            time.sleep(0.02)
        print("stayed", flush=True)
        print("stayed", file=sys.stderr, flush=True)
        return self.job.attempt


class Chatty(WorkModule):
    """Writes to both descriptors itself, and has a program write to them."""

    def process(self) -> None:
        for fd in (1, 2):
            os.write(fd, b"chatty\n")
        subprocess.run([sys.executable, "-c", "import sys; print(1, flush=True); print(1, file=sys.stderr)"], check=True)


class StayOnce(WorkModule):
    """Stays on its first attempt, whatever happens; every later one returns at once."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        if self.job.attempt == 1:
            time.sleep(self.params["seconds"])
        return self.job.attempt


class Spin(WorkModule):
    """Holds the interpreter for some seconds without ever yielding."""

    def process(self) -> int:
        write_line(self.params["file"], self.job.id, os.getpid(), self.job.attempt)
        end = time.monotonic() + self.params["seconds"]
        turns = 0
        while time.monotonic() < end:
            turns += 1
        return turns
