"""Many requests, and what is left of them: nothing. Many threads of the official client."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from fake_upstream import (
    Exchange,
    OpenAIUpstream,
    completion,
    completion_chunk,
    reply,
    sse,
)
from gateway_inside import Inside, descriptors, resident_bytes, threads
from gateway_process import GatewayProcess

from tests.data_plane.client import DEADLINE_S, ask, chat, clients
from tests.data_plane.upstreams import TOML, failing

MIB = 1024 * 1024
CONNECTIONS = 16
REQUESTS = 10_000
STREAMS = 1_000
MAX_GROWTH = 4 * MIB
# A cache that is full after the warm-up.
SMALL_CACHE = '[cache]\nmax_bytes = "256 KiB"\n'


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    made = Inside(tmp_path_factory.mktemp("inside"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(
    upstream: OpenAIUpstream, inside: Inside, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    toml = TOML.format(url=upstream.base_url) + SMALL_CACHE
    with GatewayProcess(folder, toml, **inside.environ) as running:
        yield running
        assert "defect" not in running.log() and "Traceback" not in running.log()


class Holdings:
    """What a gateway holds when nobody asks it for anything."""

    def __init__(self, gateway: GatewayProcess, upstream: OpenAIUpstream, inside: Inside) -> None:
        self._gateway = gateway
        self._upstream = upstream
        self._inside = inside

    def count(self) -> tuple[int, int, int]:
        """Tasks, threads, and descriptors without those of kept upstream connections."""
        kept = len(self._upstream.open_connections)
        tasks = len(self._inside.ask(self._gateway).tasks)
        return tasks, threads(self._gateway), descriptors(self._gateway) - kept

    async def at_rest(self) -> tuple[int, int, int]:
        """Wait until there are two tasks: the server, and the app's life."""
        async with asyncio.timeout(DEADLINE_S):
            while (found := self.count())[0] != 2:
                await asyncio.sleep(0.01)
        return found

    async def settle(self, base: tuple[int, int, int]) -> None:
        """Wait until it is so again: clients that left are still being taken leave of."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.count()) != base:
            assert time.monotonic() < deadline, f"{found} tasks, threads, descriptors, not {base}"
            await asyncio.sleep(0.01)


async def ask_often(gateway: GatewayProcess, count: int, name: str) -> Counter[str | None]:
    """Hits, misses and bypasses by turns, over connections that are kept."""
    told: Counter[str | None] = Counter()

    async def turn(worker: int) -> None:
        async with clients(gateway) as (one,):
            for number in range(count // CONNECTIONS):
                fields: dict[str, Any] = {"stream": number % 7 == 0}
                text = f"{name} {worker} {number}"
                if number % 3 == 0:
                    text = f"{name} {worker}"
                elif number % 3 == 1:
                    fields["temperature"] = 1
                answer = await one.ask(chat(text, **fields))
                assert answer.complete and answer.text() == "Hello"
                told[answer.cache] += 1

    await asyncio.gather(*(turn(worker) for worker in range(CONNECTIONS)))
    return told


async def stream_often(gateway: GatewayProcess, count: int, name: str) -> Counter[str]:
    """Streams that are read to their end, left amid it, or left before it begins."""
    told: Counter[str] = Counter()

    async def turn(worker: int) -> None:
        for number in range(count // CONNECTIONS):
            text = f"{name} {worker if number % 2 else 'all'} {number}"
            async with clients(gateway) as (one,):
                await one.send(chat(text, stream=True, temperature=number % 4 // 2))
                if number % 5 == 0:
                    told["left at once"] += 1
                    continue
                answer = await one.head()
                if number % 5 == 1:
                    await one.piece(answer)
                    told["left"] += 1
                    continue
                assert (await one.rest(answer)).text() == "Hello"
                told["read"] += 1

    await asyncio.gather(*(turn(worker) for worker in range(CONNECTIONS)))
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_of_many_requests(
    gateway: GatewayProcess, upstream: OpenAIUpstream, inside: Inside
) -> None:
    holdings = Holdings(gateway, upstream, inside)

    async def act() -> None:
        base = await holdings.at_rest()
        # What is made once is made now: code, buffers, a full cache.
        await ask_often(gateway, REQUESTS // 10, "warm-up")
        await stream_often(gateway, STREAMS // 10, "warm-up")
        await holdings.settle(base)
        base_bytes = resident_bytes(gateway)

        told = await ask_often(gateway, REQUESTS, "many")
        asked = REQUESTS // CONNECTIONS * CONNECTIONS
        assert told.total() == asked
        assert min(told["hit"], told["miss"], told["bypass"]) > asked // 4
        left = await stream_often(gateway, STREAMS, "many")
        assert min(left["left at once"], left["left"], left["read"]) > STREAMS // 8

        await holdings.settle(base)
        assert resident_bytes(gateway) - base_bytes < MAX_GROWTH
        assert (await ask(gateway, chat("still here"))).text() == "Hello"

    asyncio.run(act())


THREADS = 64
TURNS = 6


async def repeat_the_question(exchange: Exchange) -> None:
    """An answer that only this question can get."""
    asked = exchange.request.json()
    words = asked["messages"][-1]["content"].split(" ")
    if asked.get("stream"):
        pieces = [completion_chunk("alpha", {"content": word + " "}) for word in words]
        await sse(*pieces, completion_chunk("alpha", {}, "stop"))(exchange)
    else:
        await reply(completion("alpha", " ".join(words) + " "))(exchange)


def test_the_official_client_in_many_threads(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    """Streams and bodies, some questions shared by all threads, some one thread's own."""

    def work(worker: int) -> list[str]:
        wrong = []
        for turn in range(TURNS):
            who = worker if turn % 2 else "all"
            question = f"thread {who} turn {turn}: São Paulo, 東京 😀"
            answer = client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": question}],
                temperature=0 if turn % 3 else 1,
                stream=(worker + turn) % 2 == 0,
            )
            if isinstance(answer, openai.Stream):
                chunks = list(answer)
                said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                models = {chunk.model for chunk in chunks}
            else:
                said = answer.choices[0].message.content or ""
                models = {answer.model}
            if (said, models) != (question + " ", {"fake/alpha"}):
                wrong.append(f"{question!r} got {said!r} by {models}")
        return wrong

    with (
        failing(upstream, repeat_the_question),
        openai.OpenAI(base_url=gateway.base_url, api_key="unused", max_retries=0) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        assert [wrong for found in pool.map(work, range(THREADS)) for wrong in found] == []
