"""A client that does not read: the upstream waits, and the gateway's memory does not fill."""

from __future__ import annotations

import asyncio
import sys

import pytest
from fake_upstream import (
    EVENTS,
    LAST_CHUNK,
    Connection,
    Exchange,
    OpenAIUpstream,
    chunk,
    completion_chunk,
    event,
    head,
)
from gateway_inside import resident_bytes
from gateway_process import GatewayProcess

from tests.data_plane.client import Answer, Client, ask, chat, clients, told_so_far
from tests.data_plane.upstreams import failing, upstream_has, upstream_is

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1024 * 1024
PIECE = "~" * 16 * 1024
PIECES = 64 * MIB // len(PIECE)
SMALL = 64 * 1024
"""Bytes that a client's socket holds for it."""
MAX_GROWTH = 8 * MIB
MAX_IN_SOCKETS = 24 * MIB
"""What the system's socket buffers may hold between upstream and client: 6 MiB to receive and
4 MiB to send at each of two connections is Linux's default, and some of it is bookkeeping."""


async def long_stream(exchange: Exchange) -> None:
    """64 MiB of text in 16 KiB pieces, as fast as they are taken."""
    piece = chunk(event(completion_chunk("alpha", {"content": PIECE})))
    await exchange.send(head(200, EVENTS))
    for _ in range(PIECES):
        await exchange.send(piece)
    end = chunk(event(completion_chunk("alpha", {}, "stop"))) + chunk(event("[DONE]"))
    await exchange.send(end + LAST_CHUNK)


async def stalled(gateway: GatewayProcess, upstream: OpenAIUpstream, one: Connection) -> None:
    """Return when the upstream cannot write, and what it had sent does not get less either
    while the gateway goes about its other work."""
    sent = -1
    while not one.is_blocked or sent != one.sent_bytes:
        await upstream_is(upstream, lambda _: one.is_blocked)
        sent = one.sent_bytes
        for _ in range(5):
            await told_so_far(gateway)


async def read_all(client: Client, answer: Answer) -> int:
    """Bytes of text in the rest of the answer; the answer forgets its pieces."""
    size = 0
    while piece := await client.piece(answer):
        size += piece.count(b"~")
        answer.pieces.clear()
    return size


@pytest.mark.parametrize("temperature", [0, 1], ids=["a flight", "alone"])
def test_a_client_that_stops_reading(
    gateway: GatewayProcess, upstream: OpenAIUpstream, temperature: int
) -> None:
    async def act() -> None:
        before = len(upstream.chats)
        async with clients(gateway, receive_bytes=SMALL) as (one,):
            base = resident_bytes(gateway)
            await one.send(chat("long", stream=True, temperature=temperature))
            await upstream_has(upstream, before + 1)
            connection = upstream.chats[-1].connection
            already = connection.sent_bytes
            await stalled(gateway, upstream, connection)
            assert connection.sent_bytes - already < MAX_IN_SOCKETS
            assert resident_bytes(gateway) - base < MAX_GROWTH
            # The others are served meanwhile.
            other = await ask(gateway, chat("short", model="fake/beta"))
            assert other.text() == "Hello"
            answer = await one.head()
            assert await read_all(one, answer) == PIECES * len(PIECE)
            assert answer.complete
            assert resident_bytes(gateway) - base < MAX_GROWTH

    with failing(upstream, long_stream):
        asyncio.run(act())


def test_a_fast_and_a_stalled_client_on_one_flight(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    """The fast one gets no further ahead than memory allows; then both get all of it."""

    async def act() -> None:
        before = len(upstream.chats)
        async with clients(gateway, 2, receive_bytes=SMALL) as (slow, fast):
            base = resident_bytes(gateway)
            body = chat("long for two", stream=True)
            await slow.send(body)
            await fast.send(body)
            answers = [await slow.head(), await fast.head()]
            assert {one.cache for one in answers} == {"miss", "join"}
            connection = upstream.chats[-1].connection
            already = connection.sent_bytes
            reading = asyncio.create_task(read_all(fast, answers[1]))
            await stalled(gateway, upstream, connection)
            assert connection.sent_bytes - already < MAX_IN_SOCKETS
            assert resident_bytes(gateway) - base < MAX_GROWTH
            assert not reading.done()
            assert await read_all(slow, answers[0]) == PIECES * len(PIECE)
            assert await reading == PIECES * len(PIECE)
            assert all(one.complete for one in answers)
            assert resident_bytes(gateway) - base < MAX_GROWTH
        assert len(upstream.chats) == before + 1

    with failing(upstream, long_stream):
        asyncio.run(act())


def test_a_stalled_client_that_leaves_holds_nobody_up(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    async def act() -> None:
        async with clients(gateway, 2, receive_bytes=SMALL) as (slow, fast):
            body = chat("long for one", stream=True)
            await slow.send(body)
            await fast.send(body)
            await slow.head()
            answer = await fast.head()
            reading = asyncio.create_task(read_all(fast, answer))
            await stalled(gateway, upstream, upstream.chats[-1].connection)
            slow.leave()
            assert await reading == PIECES * len(PIECE)
            assert answer.complete

    with failing(upstream, long_stream):
        asyncio.run(act())
