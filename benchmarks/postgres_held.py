"""The time of other commands of a server on PostgreSQL while an open transaction holds keys that clients ask for.

Clients enqueue jobs with their own keys, evenly spread over the time, and each answer is timed. Meanwhile other clients ask for
held keys: in one case for keys of live jobs, which the server refuses at once; in the other for keys that an open transaction
has enqueued. Both cases have the same server and the same number of commands, and take turns.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import givalia_postgres
import harness
import psycopg
from harness import Figure, Option
from postgres import rig

from givalia_core import Client, DuplicateKey
from givalia_core.errors import Busy

TITLE = "While a transaction holds keys, on PostgreSQL"
OPTIONS = (
    Option("held", 20, "keys that the transaction holds"),
    Option("seconds", 60.0, "how long it is open, and how long there is none"),
    Option("samples", 5_000, "other commands in that time"),
    Option("others", 4, "clients that share them"),
    Option("askers", 8, "clients that ask for the keys that are held, each once in a tenth of a second or when it is answered"),
    Option("rounds", 1, "times both; the medians are shown"),
)
ASK_EACH_S = 0.1
FIRST_S = 3.0  # The time until the server and its worker have settled.


def measure(
    held: int, seconds: float, samples: int, others: int, askers: int, rounds: int, folder: str | None = None
) -> list[Figure]:
    """Measure on one server, without and with a transaction in turns."""
    figures: list[list[Figure]] = []
    with rig(1, folder) as (made, _), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(harness.HOST, made.port)) for _ in range(others)]
        asking = [stack.enter_context(Client(harness.HOST, made.port)) for _ in range(askers)]
        for number in range(held):
            clients[0].enq(harness.MODULE, time=86_400, key=f"live-{number}")
        time.sleep(FIRST_S)
        for number in range(rounds):
            harness.say("no transaction")
            with _asked(asking, [f"live-{each}" for each in range(held)]):
                without = _sampled(clients, samples, seconds, f"without-{number}")
            harness.say("an open transaction")
            keys = [f"held-{number}-{each}" for each in range(held)]
            with psycopg.connect(made.url) as connection:
                for key in keys:
                    givalia_postgres.enq(connection, harness.MODULE, time=86_400, key=key)
                with _asked(asking, keys):
                    with_them = _sampled(clients, samples, seconds, f"with-{number}")
                connection.rollback()
            figures.append(_figures(without, with_them))
    return harness.medians(figures)


@contextlib.contextmanager
def _asked(clients: Sequence[Client], keys: Sequence[str]) -> Iterator[None]:
    """Let these clients ask for the keys, over and over."""
    ended = threading.Event()

    def ask(client: Client, place: int) -> None:
        turn = place
        while not ended.is_set():
            with contextlib.suppress(DuplicateKey, Busy):
                client.enq(harness.MODULE, time=86_400, key=keys[turn % len(keys)])
            turn += 1
            ended.wait(ASK_EACH_S)

    with _threads([lambda client=client, place=place: ask(client, place) for place, client in enumerate(clients)]):  # type: ignore[misc]
        yield
        ended.set()


def _sampled(clients: Sequence[Client], samples: int, seconds: float, prefix: str) -> list[float]:
    """Enqueue `samples` jobs, evenly over the time; return the milliseconds of each answer from its planned start."""
    took: list[float] = []
    began = time.perf_counter()
    each_s = seconds / samples

    def enqueue(client: Client, place: int) -> None:
        for number in range(place, samples, len(clients)):
            at = began + number * each_s
            time.sleep(max(at - time.perf_counter(), 0))
            client.enq(harness.MODULE, time=86_400, key=f"{prefix}-{number}")
            took.append((time.perf_counter() - at) * 1e3)

    with _threads([lambda client=client, place=place: enqueue(client, place) for place, client in enumerate(clients)]):  # type: ignore[misc]
        pass
    return took


@contextlib.contextmanager
def _threads(some: Sequence[Callable[[], None]]) -> Iterator[None]:
    threads = [threading.Thread(target=each) for each in some]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def _figures(without: list[float], with_them: list[float]) -> list[Figure]:
    def found(words: str, share: float, some: list[float]) -> Figure:
        return Figure(f"{words}, other commands, p{share * 100:g}", harness.quantile(some, share), "ms")

    p99s = [harness.quantile(some, 0.99) for some in (without, with_them)]
    return [
        *(found("no transaction", share, without) for share in (0.5, 0.99)),
        *(found("keys are held", share, with_them) for share in (0.5, 0.99)),
        Figure("keys are held, p99, of that without", p99s[1] / p99s[0], "times", most=2),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
