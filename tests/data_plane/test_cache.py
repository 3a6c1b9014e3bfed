"""The cache as a caller meets it: where an answer came from, whose it is, and who gave it."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import Answer as UpstreamAnswer
from fake_upstream import OpenAIUpstream, broken_stream, error, reply
from gateway_process import GatewayProcess

from openbr.auth import generate_key, hash_key
from openbr.secret import CHAT
from openbr.store import Store, keys, usage
from tests.data_plane.client import Answer, ask, chat, clients, told_so_far
from tests.data_plane.upstreams import TOML, failing, finished, holding, upstream_has

_numbers = itertools.count()
FORMS = [False, True]
NAMES = {False: "body", True: "stream"}
WITH_USAGE = {"include_usage": True}


def fresh() -> str:
    """A text that nobody asked before."""
    return f"question {next(_numbers)}"


def same(one: Answer, other: Answer) -> bool:
    """Whether they say the same, in whichever forms."""
    return (one.text(), one.models(), one.status) == (other.text(), other.models(), other.status)


@pytest.mark.parametrize("second", FORMS, ids=NAMES.get)
@pytest.mark.parametrize("first", FORMS, ids=NAMES.get)
def test_miss_then_hit(
    gateway: GatewayProcess, upstream: OpenAIUpstream, first: bool, second: bool
) -> None:
    async def act() -> None:
        text, before = fresh(), len(upstream.chats)
        miss = await ask(gateway, chat(text, stream=first))
        hit = await ask(gateway, chat(text, stream=second))
        again = await ask(gateway, chat(text, stream=second))
        assert (miss.cache, hit.cache, again.cache) == ("miss", "hit", "hit")
        assert len(upstream.chats) == before + 1
        assert same(miss, hit) and hit.body == again.body
        assert hit.complete and hit.request_id != miss.request_id
        if first == second:
            assert hit.body == miss.body
        # As a fresh answer would have been.
        plain = await ask(gateway, chat(text, stream=second), cache_control="no-store")
        assert plain.cache == "bypass" and same(plain, hit)
        if second:
            assert hit.usages() == plain.usages() == []
        else:
            assert hit.json() == plain.json()

    asyncio.run(act())


@pytest.mark.parametrize("second", FORMS, ids=NAMES.get)
@pytest.mark.parametrize("first", FORMS, ids=NAMES.get)
def test_join(gateway: GatewayProcess, upstream: OpenAIUpstream, first: bool, second: bool) -> None:
    async def act() -> None:
        text, before = fresh(), len(upstream.chats)
        async with clients(gateway, 2) as (leader, joiner):
            with holding(upstream) as gate:
                await leader.send(chat(text, stream=first))
                await upstream_has(upstream, before + 1)
                await joiner.send(chat(text, stream=second, stream_options=WITH_USAGE))
                await told_so_far(gateway)
                gate.open()
                led, joined = await leader.answer(), await joiner.answer()
        assert (led.cache, joined.cache) == ("miss", "join")
        assert len(upstream.chats) == before + 1
        assert same(led, joined) and joined.complete
        assert [usage["total_tokens"] for usage in joined.usages()] == [7]
        assert len(led.usages()) == (not first)
        hit = await ask(gateway, chat(text, stream=second, stream_options=WITH_USAGE))
        assert (hit.cache, hit.events() if second else hit.json()) == (
            "hit",
            joined.events() if second else joined.json(),
        )

    asyncio.run(act())


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
def test_bypass(gateway: GatewayProcess, upstream: OpenAIUpstream, stream: bool) -> None:
    async def act() -> None:
        text, before = fresh(), len(upstream.chats)
        for _ in range(2):
            answer = await ask(gateway, chat(text, stream=stream, temperature=0.7))
            assert answer.cache == "bypass" and answer.text() == "Hello"
        assert len(upstream.chats) == before + 2

    asyncio.run(act())


def test_a_seed_is_deterministic_too(gateway: GatewayProcess) -> None:
    async def act() -> None:
        body = chat(fresh(), temperature=0.7, seed=11)
        assert [(await ask(gateway, body)).cache for _ in "ab"] == ["miss", "hit"]

    asyncio.run(act())


def test_what_does_not_shape_the_answer_does_not_matter(gateway: GatewayProcess) -> None:
    async def act() -> None:
        text = fresh()
        escaped = "".join(f"\\u{ord(c):04x}" for c in text)
        spelled = raw(
            '"stream_options":null',
            '"user" : "u"',
            '"metadata":{"a":"b"}',
            '\n"temperature":0',
            f'"messages":[{{"content":"{escaped}","role":"user"}}]',
            '"model":"alpha"',
        )
        assert (await ask(gateway, chat(text))).cache == "miss"
        assert (await ask(gateway, spelled)).cache == "hit"
        for more in ({"max_tokens": 7}, {"top_p": 1}, {"unknown": None}, {"temperature": 0.0}):
            assert (await ask(gateway, chat(text, **more))).cache == "miss"

    asyncio.run(act())


def test_cache_control(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    async def act() -> None:
        text = fresh()

        async def told(control: str) -> str | None:
            return (await ask(gateway, chat(text), cache_control=control)).cache

        assert await told("no-store") == "bypass"
        assert await told("max-age=60") == "miss"  # no-store left nothing behind
        assert await told("max-age=60") == "hit"
        assert await told("max-age=0") == "miss"
        upstream.deltas = ["new"]
        try:
            assert (await ask(gateway, chat(text))).text() == "Hello"
            assert await told("no-cache") == "miss"
            assert (await ask(gateway, chat(text))).text() == "new"  # the newer answer is kept
            assert await told("no-store") == "bypass"
            assert await told("max-age=60, no-cache") == "miss"
            assert await told("max-age=odd") == "miss"
        finally:
            upstream.deltas = ["Hel", "lo"]

    asyncio.run(act())


def test_who_takes_nothing_old_joins_nothing_older(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    async def act() -> None:
        text, before = fresh(), len(upstream.chats)
        async with clients(gateway, 2) as (first, second):
            with holding(upstream) as gate:
                await first.send(chat(text))
                await upstream_has(upstream, before + 1)
                await second.send(chat(text), cache_control="no-cache")
                await upstream_has(upstream, before + 2)
                gate.open()
                assert [(await one.answer()).cache for one in (first, second)] == ["miss", "miss"]

    asyncio.run(act())


NOT_KEPT: dict[str, UpstreamAnswer] = {
    "500": error(500, "boom"),
    "400": error(400, "too long", code="context_length_exceeded"),
    "429": error(429, "slow down"),
    "no choices": reply({"choices": []}),
    "length": finished("length"),
    "content_filter": finished("content_filter"),
    "no finish": broken_stream("Hello", how="end"),
    "reset": broken_stream("Hello", how="reset"),
}


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
@pytest.mark.parametrize("what", NOT_KEPT)
def test_what_is_never_kept(
    gateway: GatewayProcess, upstream: OpenAIUpstream, what: str, stream: bool
) -> None:
    async def act() -> None:
        body = chat(fresh(), stream=stream)
        with failing(upstream, NOT_KEPT[what]):
            for _ in range(2):
                before = len(upstream.chats)
                answer = await ask(gateway, body)
                assert answer.cache in ("miss", None)
                assert len(upstream.chats) == before + 1
        answer = await ask(gateway, body)
        assert (answer.status, answer.cache, answer.text()) == (200, "miss", "Hello")

    asyncio.run(act())


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
def test_all_names_tell_who_answered(
    gateway: GatewayProcess, upstream: OpenAIUpstream, stream: bool
) -> None:
    """Alias, bare name and full id; miss, hit and join."""

    async def act() -> None:
        for name in ("default", "openbr", "alpha", "fake/alpha"):
            text, before = fresh(), len(upstream.chats)
            body = chat(text, model=name, stream=stream)
            async with clients(gateway, 2) as (leader, joiner):
                with holding(upstream) as gate:
                    await leader.send(body)
                    await upstream_has(upstream, before + 1)
                    await joiner.send(body)
                    await told_so_far(gateway)
                    gate.open()
                    answers = [await leader.answer(), await joiner.answer()]
            answers.append(await ask(gateway, body))
            answers.append(await ask(gateway, {**body, "temperature": 1}))
            assert [one.cache for one in answers] == ["miss", "join", "hit", "bypass"]
            for one in answers:
                assert one.models() == {"fake/alpha"}
                assert one.headers["x-openbr-provider"] == "fake"
                assert "x-openbr-fallback" not in one.headers

    asyncio.run(act())


@pytest.mark.parametrize("stream", FORMS, ids=NAMES.get)
def test_a_fallback_is_told_and_not_kept(
    gateway: GatewayProcess, upstream: OpenAIUpstream, stream: bool
) -> None:
    async def act() -> None:
        body = chat(fresh(), model="safe", stream=stream)
        with failing(upstream, error(500, "boom"), "beta"):
            async with clients(gateway, 2) as (leader, joiner):
                before = len(upstream.chats)
                with holding(upstream) as gate:
                    await leader.send(body)
                    await upstream_has(upstream, before + 2)
                    await joiner.send(body)
                    await told_so_far(gateway)
                    gate.open()
                    answers = [await leader.answer(), await joiner.answer()]
            answers.append(await ask(gateway, body))
        assert [one.cache for one in answers] == ["miss", "join", "miss"]
        for one in answers:
            assert one.models() == {"fake/alpha"}
            assert one.headers["x-openbr-fallback"] == "server"
        healed = await ask(gateway, body)
        assert (healed.cache, healed.models()) == ("miss", {"fake/beta"})
        assert "x-openbr-fallback" not in healed.headers
        # What was answered in beta's place is no answer of alpha's either.
        strict = await ask(gateway, {**body, "model": "fake/alpha"})
        assert (strict.cache, strict.models()) == ("miss", {"fake/alpha"})

    asyncio.run(act())


@pytest.mark.parametrize("scope", ["caller", "shared"])
def test_two_callers(tmp_path: Path, upstream: OpenAIUpstream, scope: str) -> None:
    """Two keys have nothing in common, kept or under way, unless the operator says so."""
    found = [generate_key() for _ in range(2)]
    path = tmp_path / "state" / "openbr.sqlite3"
    ids = add_keys(path, found)
    toml = TOML.format(url=upstream.base_url)
    toml += f'[auth]\nmode = "required"\n[cache]\nscope = "{scope}"\n'
    one, two = ({"authorization": f"Bearer {key}"} for key in found)

    async def act(gateway: GatewayProcess) -> None:
        assert (await ask(gateway, chat("kept"))).status == 401
        answers = [await ask(gateway, chat("kept"), **who) for who in (one, two, one, two)]
        before = len(upstream.chats)
        async with clients(gateway, 2) as (first, second):
            with holding(upstream) as gate:
                await first.send(chat("under way"), **one)
                await upstream_has(upstream, before + 1)
                await second.send(chat("under way"), **two)
                await told_so_far(gateway)
                if scope == "caller":
                    await upstream_has(upstream, before + 2)
                gate.open()
                answers += [await first.answer(), await second.answer()]
        told = [answer.cache for answer in answers]
        if scope == "caller":
            assert told == ["miss", "miss", "hit", "hit", "miss", "miss"]
        else:
            assert told == ["miss", "hit", "hit", "hit", "miss", "join"]

    with GatewayProcess(tmp_path, toml) as gateway:
        asyncio.run(act(gateway))
        assert gateway.stop() == 0
    # What waited to be written was written at the end, under the key that asked.
    with closing(sqlite3.connect(path)) as connection:
        rows = usage.recent(connection, 100)
    assert Counter(row.key_id for row in rows) == {ids[0]: 3, ids[1]: 3}


def add_keys(path: Path, found: list[str]) -> list[int]:
    """Into a new store. Returns their ids."""
    store = Store.open(path)
    try:
        return [
            store.write(
                keys.add,
                name=f"key {number}",
                digest=hash_key(key),
                last4=key[-4:],
                scopes=frozenset({CHAT}),
                now=1.0,
            )
            for number, key in enumerate(found)
        ]
    finally:
        store.close()


def raw(*fields: str) -> bytes:
    return ("{" + ", ".join(fields) + "}").encode()


ASKED = '"messages": [{"role": "user", "content": "%s"}]'


def test_of_equal_names_the_last_one_counts(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    """In what is routed, in what is forwarded, and in what is kept."""

    async def act() -> None:
        first, last = fresh(), fresh()
        twice = raw(
            '"model": "nobody/nothing"',
            '"temperature": 1',
            '"stream": true',
            ASKED % first,
            '"model": "fake/alpha"',
            ASKED % last,
            '"stream": false',
            '"temperature": 0',
        )
        answer = await ask(gateway, twice)
        assert (answer.status, answer.cache, answer.is_stream) == (200, "miss", False)
        arrived = upstream.chats[-1].body
        assert upstream.chats[-1].json() == {**chat(last, stream=False), "model": "alpha"}
        for name in (b'"model"', b'"messages"', b'"temperature"', b'"stream"'):
            assert arrived.count(name) == 1
        assert first.encode() not in arrived
        # It is the last question that was answered and kept.
        assert (await ask(gateway, chat(last))).cache == "hit"
        assert (await ask(gateway, chat(first))).cache == "miss"

    asyncio.run(act())


def test_equal_names_further_inside(gateway: GatewayProcess, upstream: OpenAIUpstream) -> None:
    """They are the upstream's to judge: it gets them as they came. Here too the last one counts
    for the key, as it does for those who read JSON into a map."""

    async def act() -> None:
        first, last = fresh(), fresh()
        inside = f'{{"role": "user", "content": "{first}", "content": "{last}"}}'
        twice = raw('"model": "fake/alpha"', '"temperature": 0', f'"messages": [{inside}]')
        assert (await ask(gateway, twice)).cache == "miss"
        assert inside.encode() in upstream.chats[-1].body
        assert upstream.chats[-1].json()["messages"][0]["content"] == last
        assert (await ask(gateway, chat(last))).cache == "hit"
        assert (await ask(gateway, chat(first))).cache == "miss"

    asyncio.run(act())


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers"])
def test_a_forbidden_name_is_found_among_equal_ones(gateway: GatewayProcess, name: str) -> None:
    async def act() -> None:
        forbidden = [f'"{name}": "http://127.0.0.1:1"', f'"{name}": null']
        body: Any = raw('"model": "fake/alpha"', ASKED % "x", *forbidden)
        answer = await ask(gateway, body)
        assert (answer.status, answer.json()["error"]["param"]) == (400, name)

    asyncio.run(act())
