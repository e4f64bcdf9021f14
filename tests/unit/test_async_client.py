"""The parts that only the asyncio client has: cancelled tasks, awaited callbacks, and its event loop.

`test_transport`, `test_failover` and `test_client_on_wire` test the parts that both clients have.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from scripted_server import ScriptedServer, every, hang_up, say_nothing, serve

from givalia_core import AsyncClient, ConnectionLost, WaitTimeout
from givalia_core.client.async_socket import AsyncSocket
from givalia_core.client.async_transport import AsyncTransport
from givalia_core.client.connection import ClientConnection
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import OK, Kind, Progressed
from givalia_core.views import text_id

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
PATIENCE_S = 10.0


Scripted = Callable[..., ScriptedServer]


async def asked(server: ScriptedServer, kind: Kind) -> Any:
    """The next thing of this kind that the server is asked, while the loop goes on."""
    return await asyncio.to_thread(server.next, kind)


def run(main: Callable[[], Any]) -> Any:
    """Run a coroutine in a loop of its own, with a deadline."""

    async def within() -> Any:
        async with asyncio.timeout(PATIENCE_S * 2):
            return await main()

    return asyncio.run(within())


def test_a_task_that_is_cancelled_takes_nothing_from_the_others(scripted: Scripted) -> None:
    late: list[Any] = []
    server = scripted(every(Kind.WAIT, lambda line, ask: late.append((line, ask))))

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            cancelled, stays = asyncio.create_task(client.wait(JOB)), asyncio.create_task(client.wait(JOB))
            for _ in range(2):
                await asked(server, Kind.WAIT)

            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled

            assert (await client.enq("Sample", id=JOB)).id == JOB
            for line, ask in late:
                serve(line, ask)
            assert await stays == 7

    run(main)


def test_the_task_that_called_first_may_be_cancelled_while_it_connects(scripted: Scripted) -> None:
    lost = scripted(every(Kind.ENQ, hang_up))

    async def main() -> None:
        async with AsyncClient([lost.address], resend=PATIENCE_S) as client:
            first_task, other = [asyncio.create_task(client.enq("Sample")) for _ in range(2)]
            await asked(lost, Kind.ENQ)
            first_task.cancel()
            await asyncio.wait([first_task])
            lost._script = serve

            assert await other

    run(main)


def test_thousands_of_tasks_share_one_connection_and_each_gets_its_own_answer(scripted: Scripted) -> None:
    def echo(line: Any, ask: Any) -> None:
        line.say(ask, [((OK, message.id, 0, "memory"), b"") for message in ask.messages])

    server = scripted(every(Kind.ENQ, echo))
    ids = [text_id(n.to_bytes(16, "big")) for n in range(1, 2_001)]

    async def main() -> list[str]:
        async with AsyncClient(server.address) as client:
            return [job.id for job in await asyncio.gather(*(client.enq("Sample", id=each) for each in ids))]

    assert run(main) == ids
    assert len(server.lines) == 1


def test_a_callback_that_is_a_coroutine_function_is_awaited(scripted: Scripted) -> None:
    def tell(line: Any, ask: Any) -> None:
        line.tell(Kind.PROGRESSED, [item(Progressed(ask.request, 0.5, "half"))])
        serve(line, ask)

    server = scripted(every(Kind.WAIT, tell))
    heard: list[Any] = []

    async def main() -> Any:
        async with AsyncClient(server.address) as client:

            async def hear(fraction: float, text: str) -> None:
                job = await client.enq("Sample", id=JOB)
                heard.append((fraction, text, job.id))

            return await client.wait(JOB, progress=hear)

    assert run(main) == 7
    assert heard == [(0.5, "half", JOB)]


def test_what_an_awaited_callback_raises_ends_the_waiting(scripted: Scripted) -> None:
    def tell(line: Any, ask: Any) -> None:
        line.tell(Kind.PROGRESSED, [item(Progressed(ask.request, 0.5, "half"))])

    server = scripted(every(Kind.WAIT, tell))

    async def refuse_it(fraction: float, text: str) -> None:
        raise LookupError(text)

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(LookupError, match="half"):
                await client.wait(JOB, progress=refuse_it)

    run(main)


class Transport:
    """Has so many bytes that it could not send yet."""

    unsent = 0

    def write(self, data: bytes) -> None:
        self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent


def test_a_socket_is_sending_only_while_bytes_wait_and_some_leave() -> None:
    async def main() -> list[bool]:
        sock = AsyncSocket(AsyncTransport([Address("one", 1)], 1.0), ClientConnection())
        sock.transport = transport = Transport()
        sock.send(bytes(100))
        said = []
        for transport.unsent in (60, 60, 20, 0):
            said.append(sock.is_sending())
        return said

    assert run(main) == [True, False, True, False]


def test_close_ends_the_calls_of_every_task_and_the_client_takes_no_other(scripted: Scripted) -> None:
    server = scripted(every(Kind.WAIT, say_nothing))

    async def main() -> list[Any]:
        client = AsyncClient(server.address)
        waiting = [asyncio.create_task(client.wait(JOB)) for _ in range(3)]
        for _ in waiting:
            await asked(server, Kind.WAIT)
        await client.close()
        await client.close()
        with pytest.raises(ConnectionLost, match="closed"):
            await client.info()
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(error) for error in run(main)] == [ConnectionLost] * 3


def test_close_while_it_connects_leaves_nothing_for_asyncio_to_complain_of(scripted: Scripted) -> None:
    server = scripted()
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, about: complaints.append(about))
        for rounds in range(40):
            client = AsyncClient(server.address)
            asking = asyncio.create_task(client.wait(JOB))
            for _ in range(rounds % 10):
                await asyncio.sleep(0)
            await client.close()
            await asyncio.wait([asking])
            asking.exception()
        del client, asking
        gc.collect()

    run(main)
    assert complaints == []


def test_when_every_other_task_is_cancelled_whoever_waits_hears_of_it_and_may_call_again(scripted: Scripted) -> None:
    server = scripted(every(Kind.WAIT, say_nothing))

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            waiting = asyncio.create_task(client.wait(JOB))
            await asked(server, Kind.WAIT)
            for task in asyncio.all_tasks() - {waiting, asyncio.current_task()}:
                task.cancel()

            with pytest.raises(ConnectionLost):
                await waiting
            assert (await client.enq("Sample", id=JOB)).id == JOB

    run(main)


def test_a_client_that_was_not_closed_goes_on_in_the_next_loop(scripted: Scripted) -> None:
    server = scripted()
    client = AsyncClient(server.address)

    for _ in range(2):
        assert asyncio.run(client.wait(JOB, PATIENCE_S)) == 7

    asyncio.run(client.close())
    assert len(server.lines) == 2


def test_a_client_is_not_shared_by_two_loops_at_once(scripted: Scripted) -> None:
    client = AsyncClient(scripted().address)

    async def main() -> None:
        async with client:
            await client.wait(JOB)
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(client.wait(JOB)))

    run(main)


async def first(jobs: Any) -> Any:
    return await anext(jobs)


VERBS: dict[str, Callable[[AsyncClient], Any]] = {
    "close": lambda client: client.close(),
    "exit": lambda client: client.__aexit__(None, None, None),
    "enq": lambda client: client.enq("Sample"),
    "enq_many": lambda client: client.enq_many([{"module": "Sample"}]),
    "stat": lambda client: client.stat(id=JOB),
    "cancel_many": lambda client: client.cancel_many([JOB]),
    "requeue_all": lambda client: client.requeue_all(all=True),
    "list": lambda client: first(client.list()),
    "wait": lambda client: client.wait(JOB),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_from_another_loop_raises_and_the_first_loop_goes_on(scripted: Scripted, verb: str) -> None:
    server = scripted()

    async def from_another_loop(client: AsyncClient) -> None:
        await asyncio.to_thread(lambda: asyncio.run(asyncio.wait_for(VERBS[verb](client), PATIENCE_S / 2)))

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            job = await client.enq("Sample", id=JOB)
            waiting = asyncio.create_task(job.wait())

            with pytest.raises(RuntimeError, match="another event loop"):
                await from_another_loop(client)

            assert await waiting == 7
            assert (await client.enq("Sample", id=JOB)).id == JOB

    run(main)
    assert len(server.lines) == 1


@pytest.mark.parametrize("verb", ["close", "wait"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Of the loop, which is closed too early on purpose.
def test_a_loop_that_was_closed_with_its_tasks_unfinished_is_no_hindrance(scripted: Scripted, verb: str) -> None:
    server = scripted()
    client = AsyncClient(server.address)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.enq("Sample", id=JOB))
    loop.close()

    async def act() -> Any:
        return await asyncio.wait_for(VERBS[verb](client), PATIENCE_S)

    assert asyncio.run(act()) == (7 if verb == "wait" else None)
    asyncio.run(client.close())
    del loop
    gc.collect()


def test_a_listing_that_is_cancelled_leaves_nothing_behind(scripted: Scripted) -> None:
    server = scripted(every(Kind.LIST, say_nothing))

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            listing = asyncio.create_task(anext(client.list()))
            await asked(server, Kind.LIST)
            listing.cancel()
            await asyncio.wait([listing])

            assert not client._transport.delivery.requests

    run(main)


def test_the_callers_own_deadline_and_that_of_wait_are_told_apart(scripted: Scripted) -> None:
    server = scripted(every(Kind.WAIT, say_nothing))

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            with pytest.raises(WaitTimeout):
                await client.wait(JOB, 0.1)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.1):
                    await client.wait(JOB)
            assert not isinstance(caught.value, WaitTimeout)

    run(main)


def test_what_was_cancelled_before_there_was_room_for_it_is_never_sent(scripted: Scripted) -> None:
    reads_on = threading.Event()

    def hold_up(line: Any, ask: Asked) -> None:
        reads_on.wait(PATIENCE_S)
        serve(line, ask)

    server = scripted(every(Kind.INFO, hold_up))
    calls = 40  # More than the buffers of the system hold.

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            asking = asyncio.create_task(client.info())
            given_up = [asyncio.create_task(client.enq("Sample", params=bytes(500_000))) for _ in range(calls)]
            await asked(server, Kind.INFO)
            for each in given_up:
                each.cancel()
            await asyncio.wait(given_up)
            reads_on.set()
            await asking
            await client.enq("Sample", id=JOB)

    run(main)

    sent = [ask.messages[0].id for ask in server.asks.queue if ask.kind is Kind.ENQ]
    assert len(sent) < calls
    assert text_id(sent[-1]) == JOB


def test_calls_that_wait_for_room_are_all_sent_and_answered(scripted: Scripted) -> None:
    server = scripted()
    ids = [f"0195d6c0-7a80-7000-8000-{number:012}" for number in range(40)]

    async def main() -> list[str]:
        async with AsyncClient(server.address) as client:
            made = await asyncio.gather(*(client.enq("Sample", id=each, params=bytes(500_000)) for each in ids))
            return [each.id for each in made]

    assert run(main) == ids
