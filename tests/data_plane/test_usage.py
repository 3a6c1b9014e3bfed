"""One row for each request, however it ended, and what it says."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

from fake_upstream import (
    Exchange,
    OpenAIUpstream,
    broken_stream,
    completion,
    completion_chunk,
    error,
    reply,
    sse,
    usage_of,
)
from gateway_process import GatewayProcess

from tests.data_plane.client import Client, ask, chat, clients, told_so_far
from tests.data_plane.rows import Rows
from tests.data_plane.upstreams import (
    COST_USD,
    TOML,
    failing,
    holding,
    upstream_has,
    upstream_is,
)

_numbers = itertools.count()
WITH_USAGE = {"include_usage": True}
TOKENS = (5, 2, 0)
WRITTEN_AT_ONCE = 500
"""So many waiting rows are not kept waiting any longer."""


def fresh() -> str:
    return f"usage {next(_numbers)}"


def tokens_of(row: Any) -> tuple[int | None, ...]:
    return row.input_tokens, row.output_tokens, row.cached_tokens


def test_sound_answers(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    """Miss, hit, join and bypass, as bodies and as streams, with and without a price."""

    async def act(rows: Rows) -> None:
        began_at = time.time()
        body, stream = chat(fresh()), chat(fresh(), stream=True)
        asked = [
            await ask(gateway, body),
            await ask(gateway, body),
            await ask(gateway, {**body, "stream": True}),
            await ask(gateway, stream),
            await ask(gateway, stream),
            await ask(gateway, {**stream, "stream": False}),
            await ask(gateway, {**stream, "temperature": 1}),
            await ask(gateway, {**body, "temperature": 1}),
            await ask(gateway, {**body, "model": "fake/beta"}),
            await ask(gateway, {**body, "model": "default"}),
        ]
        async with clients(gateway, 2) as (leader, joiner):
            before = len(upstream.chats)
            with holding(upstream) as gate:
                again = chat(fresh(), stream=True)
                await leader.send(again)
                await upstream_has(upstream, before + 1)
                await joiner.send(again)
                await told_so_far(gateway)
                gate.open()
                asked += [await leader.answer(), await joiner.answer()]
        by_id = {row.request_id: row for row in await rows.new(len(asked))}
        found = [by_id[answer.request_id] for answer in asked]
        assert [row.cache for row in found] == [answer.cache for answer in asked]
        free = {"hit", "join"}
        costs = [0 if row.cache in free else COST_USD for row in found]
        costs[8] = None  # beta has no price: that is not 0
        assert [row.cost_usd for row in found] == costs
        assert [row.is_stream for row in found] == [answer.is_stream for answer in asked]
        for row, answer in zip(found, asked, strict=True):
            assert (row.status, row.outcome, row.error, row.fallback) == (200, "ok", None, None)
            assert tokens_of(row) == TOKENS
            assert (row.model, row.provider) == (answer.headers["x-openbr-model"], "fake")
            assert row.key_id is None and began_at <= row.created_at <= time.time()
            assert row.ttft_s is not None and row.total_s is not None
            assert row.ttft_s <= row.total_s
            if row.cache in free:
                assert row.queue_s is None
            else:
                assert row.queue_s is not None and row.queue_s <= row.ttft_s
        assert [row.asked for row in found[-4:-2]] == ["fake/beta", "default"]

    with Rows(gateway) as rows:
        asyncio.run(act(rows))


def test_failures(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    async def act(rows: Rows) -> None:
        text = fresh()
        statuses = []

        async def failed(answer: Any, **fields: Any) -> None:
            with failing(upstream, answer):
                statuses.append((await ask(gateway, chat(text, **fields))).status)

        for stream in (False, True):
            await failed(error(500, "boom"), stream=stream)
            await failed(error(429, "slow down"), stream=stream)
            await failed(error(400, "long", code="context_length_exceeded"), stream=stream)
            await failed(error(401, "no"), stream=stream)
            await failed(reply({"choices": []}), stream=stream)
        await failed(broken_stream("Hel", how="reset"), stream=True)
        await failed(reply(), model="nobody/nothing")
        with failing(upstream, error(500, "boom"), "beta"):
            await failed(error(429, "slow down"), model="safe")
            statuses.append((await ask(gateway, chat(text, model="safe"))).status)
        found = await rows.new(len(statuses))
        assert [row.status for row in found] == statuses
        told = [502, 429, 400, 502, 502]
        assert statuses == [*told, *told, 200, 404, 429, 200]
        reasons = ["server", "quota", "rejected", "auth", "protocol"]
        assert [row.error for row in found[:-1]] == [
            *reasons,
            *reasons,
            "interrupted",
            "model_not_found",
            "quota",
        ]
        *errors, broken, unknown, both, saved = found
        for row in errors:
            assert (row.outcome, row.model) == ("error", "fake/alpha")
            assert tokens_of(row) == (None, None, None)
            assert row.cost_usd is None and row.ttft_s is None
        assert (broken.outcome, broken.model, broken.cost_usd) == ("partial", "fake/alpha", None)
        assert (unknown.outcome, unknown.model, unknown.cost_usd) == ("error", None, 0)
        assert (both.outcome, both.model, both.fallback) == ("error", "fake/alpha", "server")
        assert (saved.outcome, saved.model, saved.fallback) == ("ok", "fake/alpha", "server")
        assert (saved.asked, saved.error, saved.cost_usd) == ("safe", None, COST_USD)

    with Rows(gateway) as rows:
        asyncio.run(act(rows))


def test_clients_that_leave(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    """Before the first content, amid a stream, kept answers to come or not; and with others who
    wait for the same call."""

    async def act(rows: Rows) -> None:
        async def leave(one: Client) -> None:
            connection = upstream.chats[-1].connection
            one.leave()
            await upstream_is(upstream, lambda _: connection.closed_at)
            await told_so_far(gateway)

        ways = itertools.product((0, 1), (False, True), ("before", "amid"))
        with holding(upstream) as gate:
            for temperature, stream, when in ways:
                if when == "amid" and not stream:
                    continue
                async with clients(gateway) as (one,):
                    before = len(upstream.chats)
                    await one.send(chat(fresh(), temperature=temperature, stream=stream))
                    await upstream_has(upstream, before + 1)
                    if when == "amid":
                        gate.release()
                        await one.piece(await one.head())
                    await leave(one)
            async with clients(gateway, 2) as (leader, joiner):
                before = len(upstream.chats)
                shared = chat(fresh(), stream=True)
                await leader.send(shared)
                await upstream_has(upstream, before + 1)
                await joiner.send(shared)
                await told_so_far(gateway)
                leader.leave()
                await told_so_far(gateway)
                gate.open()
                joined = await joiner.answer()
        *left, spared, stayed = await rows.new(8)
        assert [(row.status, row.is_stream, row.cache) for row in left] == [
            (499, False, "bypass"),
            (499, True, "bypass"),
            (200, True, "miss"),
            (499, False, "bypass"),
            (499, True, "bypass"),
            (200, True, "bypass"),
        ]
        for row in [*left, spared]:
            assert (row.outcome, row.error, row.model) == ("cancelled", None, "fake/alpha")
            assert tokens_of(row) == (None, None, None) and row.cost_usd is None
        assert spared.status == 499
        assert (stayed.request_id, stayed.outcome) == (joined.request_id, "ok")
        assert (stayed.cache, tokens_of(stayed), stayed.cost_usd) == ("join", TOKENS, 0)

    with Rows(gateway) as rows:
        asyncio.run(act(rows))


CHUNK = completion_chunk("alpha", {"content": "Hello"})
END = completion_chunk("alpha", {}, "stop")
COUNTS = {"usage": usage_of((5, 2))}
STREAMS = {
    "absent": sse(CHUNK, END),
    "with the last choices": sse(CHUNK, {**END, **COUNTS}),
    "alone": sse(CHUNK, END, {**CHUNK, "choices": [], **COUNTS}),
    "twice": sse(CHUNK, {**END, **COUNTS}, {**CHUNK, "choices": [], **COUNTS}),
}


def test_wherever_an_upstream_tells_the_usage(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    """A caller that asks for it gets one event with it alone, any other gets none; the row says
    the same for both. As a bypass, a miss, a hit in the same form and a body of it."""
    told = ["bypass", "miss", "hit"]

    async def six(where: str) -> None:
        caches = []
        is_told = where != "absent"
        for options in ({}, {"stream_options": WITH_USAGE}):
            one = chat(fresh(), stream=True, **options)
            for body in ({**one, "temperature": 1}, one, one):
                answer = await ask(gateway, body)
                alone = [e["usage"] for e in answer.events() if not e["choices"]]
                assert alone == [COUNTS["usage"]] * (bool(options) and is_told)
                assert answer.text() == "Hello"
                caches.append(answer.cache)
        plain = {k: v for k, v in one.items() if k != "stream_options"}
        whole = await ask(gateway, {**plain, "stream": False})
        assert whole.usages() == [COUNTS["usage"]] * is_told
        # Whoever asked first, the next one gets what it asked for.
        turned = await ask(gateway, plain)
        assert not [e for e in turned.events() if not e["choices"]]
        assert [*caches, whole.cache, turned.cache] == [*told, *told, "hit", "hit"]

    async def act(rows: Rows) -> None:
        for where, answer in STREAMS.items():
            with failing(upstream, answer):
                await six(where)
        found = await rows.new(8 * len(STREAMS))
        for number, row in enumerate(found):
            is_told = number >= 8
            assert tokens_of(row) == (TOKENS if is_told else (None, None, None))
            known = COST_USD if is_told else None
            assert row.cost_usd == (0 if row.cache == "hit" else known)

    with Rows(gateway) as rows:
        asyncio.run(act(rows))


def test_a_body_without_usage(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    async def act(rows: Rows) -> None:
        text = fresh()
        with failing(upstream, reply(completion("alpha", "Hello", None))):
            await ask(gateway, chat(text))
            await ask(gateway, chat(text, stream=True, stream_options=WITH_USAGE))
        miss, hit = await rows.new(2)
        assert tokens_of(miss) == tokens_of(hit) == (None, None, None)
        assert (miss.cost_usd, hit.cost_usd) == (None, 0)

    with Rows(gateway) as rows:
        asyncio.run(act(rows))


def test_an_upstream_that_refuses_stream_options(tmp_path: Path) -> None:
    """It is asked again without them, and then never with them."""

    async def picky(exchange: Exchange) -> None:
        if "stream_options" in exchange.request.json():
            await error(400, "unknown field: stream_options")(exchange)
        else:
            await STREAMS["absent"](exchange)

    async def act(gateway: GatewayProcess, rows: Rows) -> None:
        for temperature in (0, 1, 1):
            answer = await ask(gateway, chat(fresh(), stream=True, temperature=temperature))
            assert (answer.status, answer.text()) == (200, "Hello")
        asked = ["stream_options" in one.json() for one in upstream.chats]
        assert asked == [True, False, False, False]
        for row in await rows.new(3):
            assert (row.outcome, row.status, tokens_of(row)) == ("ok", 200, (None,) * 3)

    with (
        OpenAIUpstream(failures={"alpha": picky}) as upstream,
        GatewayProcess(tmp_path, TOML.format(url=upstream.base_url)) as gateway,
        Rows(gateway) as rows,
    ):
        asyncio.run(act(gateway, rows))


def test_inference_goes_on_while_the_store_is_locked(gateway: GatewayProcess) -> None:
    """Nobody waits, nothing is lost: the rows come when the lock is gone."""
    count = 2 * WRITTEN_AT_ONCE

    async def act(rows: Rows) -> None:
        kept = chat(fresh(), model="default")
        fleeting = {**kept, "stream": True, "temperature": 1}
        rows.connection.execute("BEGIN EXCLUSIVE")
        try:
            async with clients(gateway) as (one,):
                for number in range(count):
                    answer = await one.ask(kept if number % 10 else fleeting)
                    assert (answer.status, answer.text()) == (200, "Hello")
            assert rows.now() == []
        finally:
            rows.connection.execute("ROLLBACK")
        found = await rows.new(count)
        assert {row.outcome for row in found} == {"ok"}

    with Rows(gateway) as rows:
        asyncio.run(act(rows))
