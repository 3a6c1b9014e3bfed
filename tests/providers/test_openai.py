"""What the adapter says of a server's models, and which key it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_upstream import OpenAIUpstream, error, refused, reply

from openbr.config import LimitsConfig
from openbr.errors import UpstreamError
from openbr.providers.openai import OpenAIProvider
from openbr.secret import Secret
from openbr.upstream import Upstream


def run(
    act: Callable[[OpenAIProvider], Awaitable[None]],
    base_url: str,
    *,
    keys: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
) -> None:
    async def main() -> None:
        upstream = Upstream()
        provider = OpenAIProvider(
            name="fake",
            base_url=base_url,
            keys=tuple(Secret(key) for key in keys),
            upstream=upstream,
            limits=LimitsConfig(),
            models=models,
        )
        try:
            await act(provider)
        finally:
            await upstream.aclose()

    asyncio.run(main())


def test_a_list_is_read_with_what_servers_add() -> None:
    listed = [
        {"id": "a", "created": 7, "context_length": 4096},
        {"id": "b", "max_model_len": 8192},
        {"id": "c", "meta": {"n_ctx_train": 2048}},
        {"id": "d", "created": None, "meta": None},
        {"id": ""},
    ]

    async def act(provider: OpenAIProvider) -> None:
        found = await provider.fetch_models()
        assert [(m.id, m.created_at, m.context_tokens) for m in found] == [
            ("fake/a", 7, 4096),
            ("fake/b", 0, 8192),
            ("fake/c", 0, 2048),
            ("fake/d", 0, None),
        ]

    with OpenAIUpstream(list_answer=reply({"data": listed})) as server:
        run(act, server.base_url)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"<html>"), "protocol"),
        (reply({"data": [{"name": "x"}]}), "protocol"),
        (error(401, "no"), "auth"),
        (error(429, "slow"), "quota"),
        (error(500, "boom"), "server"),
    ],
)
def test_a_list_that_fails_says_why(answer: Any, reason: str) -> None:
    async def act(provider: OpenAIProvider) -> None:
        with pytest.raises(UpstreamError) as failed:
            await provider.fetch_models()
        assert (failed.value.reason, failed.value.provider) == (reason, "fake")

    with OpenAIUpstream(list_answer=answer) as server:
        run(act, server.base_url)


def test_a_declared_list_still_needs_a_server_that_answers() -> None:
    async def alive(provider: OpenAIProvider) -> None:
        assert [m.id for m in await provider.fetch_models()] == ["fake/mine"]
        assert provider.offers("mine") and not provider.offers("other")

    async def dead(provider: OpenAIProvider) -> None:
        with pytest.raises(UpstreamError) as failed:
            await provider.fetch_models()
        assert failed.value.reason == "refused"

    with OpenAIUpstream(list_answer=error(404, "no list here")) as server:
        run(alive, server.base_url, models=("mine",))
    with refused() as url:
        run(dead, url + "/v1", models=("mine",))


def test_several_keys_take_turns() -> None:
    async def act(provider: OpenAIProvider) -> None:
        for _ in range(3):
            await provider.fetch_models()

    with OpenAIUpstream() as server:
        run(act, server.base_url, keys=("sk-one", "sk-two"))
        sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer sk-one", "Bearer sk-two", "Bearer sk-one"]
