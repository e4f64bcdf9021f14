"""Calls that an exception cuts short, at any step: no part of them stays on the wire, and none is sent again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
from collections.abc import Callable, Iterator
from types import CodeType

import pytest
from instructions import before_each_instruction
from system_rig import Rig

from givalia_core import AsyncClient

SEED = int(os.environ.get("GIVALIA_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
CUTS = int(os.environ.get("GIVALIA_CUTS", "150"))

# A call that is cut before it has put down its socket leaves that to Python, which closes it with a warning.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # Here, and not during somebody else's test.


class Cut(BaseException):
    """Cuts a call short."""


class Late(TimeoutError):
    """The same, of a kind that the system raises, too: what a handler of SIGALRM may throw."""


def is_of_client(code: CodeType) -> bool:
    return "/givalia_core/client/" in code.co_filename


def instructions(call: Callable[[], object]) -> int:
    """Count the instructions that the client's code runs in this thread."""
    count = itertools.count()
    with before_each_instruction(is_of_client, lambda: next(count)):
        call()
    return next(count)


@contextlib.contextmanager
def cut_at(number: int) -> Iterator[None]:
    """Cut the block short at this instruction of the client's code."""
    left = iter(range(number - 1, -1, -1))
    thrown: list[BaseException] = []

    def cut() -> None:
        if not next(left):
            thrown.append((Cut, Late)[number % 2]())
            raise thrown[0]

    try:
        with before_each_instruction(is_of_client, cut):
            yield
    except (Cut, Late):
        thrown.clear()
    assert not thrown, "what was thrown has not reached the caller"


@pytest.fixture(scope="module")
def ready(shared_rig: Rig) -> Rig:
    """A server and a worker."""
    shared_rig.start_server()
    shared_rig.start_worker()
    return shared_rig


CALLS = {
    "enq": lambda client, key: client.enq("Echo", params=key, key=key, time=3_600),
    "enq_many": lambda client, key: client.enq_many(
        {"module": "Echo", "params": "x" * 400, "key": f"{key} {n}", "time": 3_600} for n in range(3_000)
    ),
    "wait": lambda client, key: client.enq("Echo", params=key).wait(20),
    "info": lambda client, key: client.info(),
}


@pytest.mark.parametrize("verb", CALLS)
def test_a_call_that_is_cut_short_leaves_nothing_behind(ready: Rig, verb: str) -> None:
    chance = random.Random(SEED)
    call = CALLS[verb]
    cuts = CUTS if verb != "enq_many" else CUTS // 10
    with ready.client() as client, ready.client() as other:
        client.info()
        whole = instructions(lambda: call(client, f"{verb} whole"))
        mine: dict[str, str] = {}
        for number in range(cuts):
            key = f"{verb} {SEED} {number}"
            at = chance.randrange(1, whole + 1)
            with cut_at(at):
                call(client, key)

            said = f"next {key}"
            assert client.enq("Echo", params=said).wait(20) == said, (SEED, number, at)
            if verb == "enq":
                mine[key] = other.enq("Echo", key=key, if_exists="keep", params="mine", time=3_600).id
        # What was given up was not sent again: each key has the job that it had when the call was over.
        assert {key: other.stat(key).id for key in mine} == mine
        assert not client._transport.delivery.requests


def test_an_async_call_that_is_cancelled_anywhere_leaves_nothing_behind(ready: Rig) -> None:
    chance = random.Random(SEED)

    async def cut(client: AsyncClient, number: int) -> None:
        task = asyncio.ensure_future(client.enq("Echo", params=f"cut {number}"))
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        await asyncio.sleep(chance.random() * 0.002)
        task.cancel()
        await asyncio.wait([task])
        said = f"next {number}"
        job = await client.enq("Echo", params=said)
        assert await job.wait(20) == said, (SEED, number)

    async def run() -> None:
        assert ready.server is not None
        async with AsyncClient("127.0.0.1", ready.server.port) as client:
            for number in range(CUTS):
                await cut(client, number)
            assert not client._transport.delivery.requests

    asyncio.run(run())
