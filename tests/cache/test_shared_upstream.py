"""Single flight over a loopback upstream and the real adapter: what the other side sees of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_upstream import EVENTS as EVENT_HEADERS
from fake_upstream import (
    LAST_CHUNK,
    Exchange,
    Gate,
    OpenAIUpstream,
    broken_stream,
    chunk,
    completion_chunk,
    error,
    event,
    head,
)

from openbr.cache.replay import read_text
from openbr.config import LimitsConfig
from openbr.errors import StreamInterruptedError, UpstreamUnavailableError
from openbr.providers.base import ChatStream, Completion
from openbr.providers.openai import OpenAIProvider
from openbr.upstream import Upstream
from tests.cache.conftest import Run
from tests.cache.fakes import HERE, Desk, make_cache, make_request, read_all, turns
from tests.cache.test_flight import content_of

WORDS = [f"word {n} " for n in range(30)]
TEXT = "".join(WORDS)
MESSAGES = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
STREAMED = make_request({"model": "fake/alpha", "stream": True, **MESSAGES})
WHOLE = make_request({"model": "fake/alpha", **MESSAGES})

Act = Callable[["Client", OpenAIUpstream], Awaitable[None]]


class Client:
    """A cache before the adapter of one upstream."""

    def __init__(self, provider: OpenAIProvider) -> None:
        self.provider = provider
        self.streams = Desk(make_cache(), STREAMED)
        self.bodies = Desk(self.streams.cache, WHOLE)

    async def open(self) -> ChatStream:
        return await self.provider.open_chat(STREAMED, HERE)

    async def get(self) -> Completion:
        return await self.provider.complete_chat(WHOLE, HERE)

    async def chat(self) -> str:
        return read_text(await read_all(await self.streams.chat(self.open)))

    async def complete(self) -> str:
        return content_of((await self.bodies.complete(self.get)).body)


@pytest.fixture
def serve(run: Run) -> Callable[..., None]:
    def start(act: Act, **fake: Any) -> None:
        async def main() -> None:
            async with OpenAIUpstream(**{"deltas": WORDS, **fake}) as server:
                upstream = Upstream()
                provider = OpenAIProvider(
                    name="fake",
                    base_url=server.base_url,
                    keys=(),
                    upstream=upstream,
                    limits=LimitsConfig(),
                )
                try:
                    await act(Client(provider), server)
                finally:
                    await upstream.aclose()

        run(main())

    return start


@pytest.mark.parametrize("first", ["stream", "body"])
def test_a_hundred_callers_are_one_request(first: str, serve: Callable[..., None]) -> None:
    async def act(client: Client, server: OpenAIUpstream) -> None:
        ways = [client.chat, client.complete]
        if first == "body":
            ways.reverse()
        got = await asyncio.gather(*(ways[n % 2]() for n in range(100)))
        assert set(got) == {TEXT}
        assert len(server.chats) == 1
        assert await client.chat() == await client.complete() == TEXT
        assert len(server.chats) == 1

    serve(act)


def test_callers_that_come_while_it_streams(serve: Callable[..., None]) -> None:
    gate = Gate()

    async def act(client: Client, server: OpenAIUpstream) -> None:
        callers = []
        for _ in WORDS:
            callers += [asyncio.create_task(client.chat()), asyncio.create_task(client.complete())]
            gate.release()
            await turns(3)
        assert set(await asyncio.gather(*callers)) == {TEXT}
        assert len(server.chats) == 1

    serve(act, gate=gate)


def test_the_first_leaves_before_the_first_content(serve: Callable[..., None]) -> None:
    gate = Gate()

    async def act(client: Client, server: OpenAIUpstream) -> None:
        first = asyncio.create_task(client.chat())
        await server.until(lambda s: s.chats)
        others = [asyncio.create_task(way()) for way in (client.chat, client.complete) * 5]
        await turns()
        assert client.streams.cache.spare(first)
        gate.open()
        assert set(await asyncio.gather(*others)) == {TEXT}
        await asyncio.wait([first])
        assert first.cancelled() and len(server.chats) == 1

    serve(act, gate=gate)


def test_callers_leave_one_after_the_other(serve: Callable[..., None]) -> None:
    """Each time the one that waits for the upstream goes; nothing is lost, nobody asks anew."""
    gate = Gate()

    async def act(client: Client, server: OpenAIUpstream) -> None:
        leaving = [asyncio.create_task(client.chat()) for _ in range(10)]
        last = asyncio.create_task(client.chat())
        for task in leaving:
            gate.release()
            await turns(20)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        gate.open()
        assert await last == TEXT
        assert len(server.chats) == 1

    serve(act, gate=gate)


@pytest.mark.parametrize("content", [0, 3])
def test_the_last_to_leave_hangs_up(content: int, serve: Callable[..., None]) -> None:
    gate = Gate()

    async def act(client: Client, server: OpenAIUpstream) -> None:
        callers = [asyncio.create_task(client.chat()) for _ in range(3)]
        await server.until(lambda s: s.chats)
        gate.release(content)
        await turns(20)
        assert len(server.open_connections) == 1
        for task in callers:
            task.cancel()
        await asyncio.wait(callers)
        await server.until(lambda s: not s.open_connections)
        assert len(server.chats) == 1
        gate.open()
        assert await client.chat() == TEXT
        assert len(server.chats) == 2

    serve(act, gate=gate)


def test_a_refusal_is_for_all_and_asked_once(serve: Callable[..., None]) -> None:
    async def act(client: Client, server: OpenAIUpstream) -> None:
        ways = (client.chat, client.complete) * 10
        got = await asyncio.gather(*(way() for way in ways), return_exceptions=True)
        assert all(isinstance(one, UpstreamUnavailableError) for one in got)
        assert len(server.chats) == 1

    serve(act, failures={"*": error(500, "boom")})


@pytest.mark.parametrize("how", ["reset", "close", "end"])
def test_a_break_is_for_all_after_what_came(how: str, serve: Callable[..., None]) -> None:
    async def act(client: Client, server: OpenAIUpstream) -> None:
        async def read() -> str:
            stream = await client.streams.chat(client.open)
            texts = []
            with pytest.raises(StreamInterruptedError):
                while await stream.next():
                    texts.append(stream.text)
            stream.close()
            return "".join(texts)

        assert set(await asyncio.gather(*(read() for _ in range(10)))) == {"Hello"}
        assert len(server.chats) == 1
        assert client.streams.cache.stats().entries == 0

    serve(act, failures={"*": broken_stream("Hel", "lo", how=how)})


@pytest.mark.parametrize("seed", range(5))
def test_next_of_the_adapter_loses_nothing_when_cancelled(
    seed: int, serve: Callable[..., None]
) -> None:
    """What flights rest on: a cancelled `next()` may be called again by somebody else."""
    rng = random.Random(seed)

    async def trickle(exchange: Exchange) -> None:
        """The events in pieces of a few bytes, cut anywhere."""
        await exchange.send(head(200, EVENT_HEADERS))
        chunks = [completion_chunk("alpha", {"content": f"é{word}"}) for word in WORDS]
        data = b"".join(event(one) for one in [*chunks, completion_chunk("alpha", {}, "stop")])
        data += event("[DONE]")
        while data:
            size = rng.randint(1, 60)
            await exchange.send(chunk(data[:size]))
            data = data[size:]
            await asyncio.sleep(0)
        await exchange.send(LAST_CHUNK)

    async def act(client: Client, server: OpenAIUpstream) -> None:
        stream = await client.open()
        got: list[bytes] = []
        cancelled = 0
        while True:
            task = asyncio.create_task(stream.next())
            for _ in range(rng.randint(0, 4)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                cancelled += 1
                continue
            if not task.result():
                break
            got.append(task.result())
        stream.close()
        assert cancelled > 5
        assert read_text(b"".join(got)) == "".join(f"é{word}" for word in WORDS)
        assert len(server.chats) == 1

    serve(act, failures={"*": trickle})
