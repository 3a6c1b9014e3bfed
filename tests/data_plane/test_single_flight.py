"""One call upstream for all who ask the same at one time, whoever of them stays or leaves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fake_upstream import Gate, OpenAIUpstream, broken_stream, error, held
from gateway_process import GatewayProcess

from tests.data_plane.client import Answer, Client, ask, chat, clients, told_so_far
from tests.data_plane.upstreams import failing, holding, upstream_has, upstream_is

JOINERS = 99
_numbers = itertools.count()
FORMS = [False, True]
NAMES = {False: "body", True: "stream"}


def fresh() -> str:
    return f"flight {next(_numbers)}"


class Flight:
    """A leader and those who joined it, before the upstream has said anything."""

    def __init__(self, upstream: OpenAIUpstream, leader: Client, joiners: list[Client]) -> None:
        self.leader = leader
        self.joiners = joiners
        self._upstream = upstream
        self._before = len(upstream.chats)

    @property
    def calls(self) -> int:
        return len(self._upstream.chats) - self._before

    @property
    def connection_is_closed(self) -> bool:
        return self._upstream.chats[self._before].connection.closed_at is not None

    @property
    def closed_at(self) -> float:
        closed_at = self._upstream.chats[self._before].connection.closed_at
        assert closed_at is not None
        return closed_at

    async def take_off(self, gateway: GatewayProcess, stream: bool, others: bool) -> None:
        text = fresh()
        await self.leader.send(chat(text, stream=stream))
        await upstream_has(self._upstream, self._before + 1)
        for joiner in self.joiners:
            await joiner.send(chat(text, stream=others))
        await told_so_far(gateway)


@asynccontextmanager
async def flight(
    gateway: GatewayProcess,
    upstream: OpenAIUpstream,
    count: int = JOINERS,
    *,
    stream: bool,
    others: bool | None = None,
) -> AsyncIterator[Flight]:
    """`others`: whether the joiners ask for a stream, where not as the leader."""
    async with clients(gateway, count + 1) as (leader, *joiners):
        made = Flight(upstream, leader, joiners)
        await made.take_off(gateway, stream, stream if others is None else others)
        yield made


async def answers_of(some: list[Client]) -> list[Answer]:
    return await asyncio.gather(*(one.answer() for one in some))


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
def test_a_hundred_share_one_call(
    gateway: GatewayProcess, upstream: OpenAIUpstream, stream: bool
) -> None:
    async def act() -> None:
        with holding(upstream) as gate:
            async with flight(gateway, upstream, stream=stream) as made:
                gate.open()
                answers = await answers_of([made.leader, *made.joiners])
        assert Counter(one.cache for one in answers) == {"miss": 1, "join": JOINERS}
        assert made.calls == 1
        assert all(one.complete and one.status == 200 for one in answers)
        assert len({one.body for one in answers}) == 1
        assert answers[0].text() == "Hello"
        assert len({one.request_id for one in answers}) == JOINERS + 1

    asyncio.run(act())


def test_who_comes_late_gets_what_has_passed_and_then_the_rest(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    async def act() -> None:
        text, before = fresh(), len(upstream.chats)
        async with clients(gateway, 2) as (early, late):
            with holding(upstream) as gate:
                gate.release()
                await early.send(chat(text, stream=True))
                first = await early.head()
                assert b'"Hel"' in await early.piece(first)
                await late.send(chat(text, stream=True))
                second = await late.head()
                assert b'"Hel"' in await late.piece(second)
                gate.open()
                assert (await early.rest(first)).text() == "Hello"
                assert (await late.rest(second)).text() == "Hello"
        assert (first.cache, second.cache, len(upstream.chats)) == ("miss", "join", before + 1)

    asyncio.run(act())


@pytest.mark.parametrize("others", FORMS, ids=NAMES.get)
@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
def test_the_leader_leaves_before_the_first_content(
    gateway: GatewayProcess, upstream: OpenAIUpstream, stream: bool, others: bool
) -> None:
    async def act() -> None:
        with holding(upstream) as gate:
            async with flight(gateway, upstream, 9, stream=stream, others=others) as made:
                made.leader.leave()
                await told_so_far(gateway)
                assert not made.connection_is_closed
                gate.open()
                answers = await answers_of(made.joiners)
        assert made.calls == 1
        assert {one.cache for one in answers} == {"join"}
        assert {(one.text(), one.complete) for one in answers} == {("Hello", True)}

    asyncio.run(act())


def test_the_leader_leaves_in_the_middle(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    async def act() -> None:
        with holding(upstream) as gate:
            async with flight(gateway, upstream, 9, stream=True) as made:
                gate.release()
                await made.leader.piece(await made.leader.head())
                heads = [await joiner.head() for joiner in made.joiners]
                made.leader.leave()
                made.joiners[0].leave()
                await told_so_far(gateway)
                gate.open()
                pairs = zip(made.joiners[1:], heads[1:], strict=True)
                answers = [await joiner.rest(head) for joiner, head in pairs]
        assert made.calls == 1
        assert {(one.text(), one.complete) for one in answers} == {("Hello", True)}

    asyncio.run(act())


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
@pytest.mark.parametrize("when", ["before", "amid"])
def test_all_leave(
    gateway: GatewayProcess, upstream: OpenAIUpstream, when: str, stream: bool
) -> None:
    """The upstream is let go within a second."""

    async def act() -> None:
        with holding(upstream) as gate:
            async with flight(gateway, upstream, 9, stream=stream) as made:
                everybody = [made.leader, *made.joiners]
                if when == "amid":
                    gate.release()
                    if stream:
                        for one in everybody:
                            await one.piece(await one.head())
                left_at = time.monotonic()
                for one in everybody:
                    one.leave()
                await upstream_is(upstream, lambda _: made.connection_is_closed)
                assert made.closed_at - left_at < 1.0
                assert made.calls == 1
        # Nothing of it is left: the same question is asked again.
        again = await ask(gateway, chat(f"flight {next(_numbers) - 1}", stream=stream))
        assert (again.cache, again.text()) == ("miss", "Hello")

    asyncio.run(act())


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(500, "upstream_unavailable", 502), (429, "rate_limit_exceeded", 429), (400, "odd", 400)],
)
def test_a_failure_is_everybodys_and_is_not_repeated(
    gateway: GatewayProcess,
    upstream: OpenAIUpstream,
    stream: bool,
    status: int,
    code: str,
    told: int,
) -> None:
    async def act() -> None:
        gate = Gate()
        with failing(upstream, held(gate, error(status, "no", code=code))):
            async with flight(gateway, upstream, stream=stream) as made:
                gate.open()
                answers = await answers_of([made.leader, *made.joiners])
        assert made.calls == 1
        assert {one.status for one in answers} == {told}
        assert {one.json()["error"]["code"] for one in answers} == {code}
        assert {one.headers["x-should-retry"] for one in answers} == {"false"}

    asyncio.run(act())


def test_a_stream_that_breaks_breaks_for_everybody(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    async def act() -> None:
        gate = Gate()
        with failing(upstream, held(gate, broken_stream("Hel", how="reset"))):
            async with flight(gateway, upstream, 19, stream=True) as made:
                gate.open()
                answers = await answers_of([made.leader, *made.joiners])
        assert made.calls == 1
        for one in answers:
            assert one.status == 200 and not one.complete
            assert b'"Hel"' in one.body and b"[DONE]" not in one.body
            assert one.body.count(b"stream_interrupted") == 1

    asyncio.run(act())


def test_different_questions_do_not_wait_for_each_other(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    async def act() -> None:
        with holding(upstream) as gate:
            async with flight(gateway, upstream, 1, stream=True) as made:
                other = await ask(gateway, chat(fresh(), model="fake/beta", stream=True))
                assert (other.cache, other.text()) == ("miss", "Hello")
                gate.open()
                answers = await answers_of([made.leader, *made.joiners])
        assert [one.cache for one in answers] == ["miss", "join"]

    asyncio.run(act())
