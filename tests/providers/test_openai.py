"""What the adapter says of a server's models, which key it sends, and how it learns the usage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from fake_upstream import (
    Exchange,
    Gate,
    OpenAIUpstream,
    completion_chunk,
    error,
    held,
    refused,
    reply,
    sse,
    usage_of,
)

from openbr.api.chat import parse_request
from openbr.api.http import encode_json
from openbr.config import LimitsConfig
from openbr.errors import UpstreamError, UpstreamRejectedError
from openbr.providers.openai import OpenAIProvider
from openbr.records import ChatRequest, Deployment, Usage
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


def ask(**fields: Any) -> ChatRequest:
    body = {"model": "fake/alpha", "messages": [{"role": "user", "content": "Olá"}], **fields}
    return parse_request(encode_json({"stream": True, **body}))


async def read(provider: OpenAIProvider, request: ChatRequest) -> tuple[bytes, Usage | None]:
    """A whole stream, and the usage that it told."""
    alpha = Deployment(provider="fake", upstream_model="alpha", is_local=False)
    stream = await provider.open_chat(request, alpha)
    events = b""
    while batch := await stream.next():
        events += batch
    stream.close()
    return events, stream.answer.usage


USAGE = Usage(input_tokens=5, output_tokens=2)
NO_SUCH_OPTION = error(400, "unknown field: stream_options", type="invalid_request_error")


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"x": 1}}])
@pytest.mark.parametrize("wanted", [False, True])
def test_every_stream_is_asked_for_its_usage(options: dict[str, Any], wanted: bool) -> None:
    """Whoever wants it: the caller by its body, or the cache for those who may come later."""

    async def act(provider: OpenAIProvider) -> None:
        request = msgspec.structs.replace(ask(**options), include_usage=wanted)
        events, usage = await read(provider, request)
        assert usage == USAGE
        assert events.count(b'"usage"') == wanted
        asked = {**(options.get("stream_options") or {}), "include_usage": True}
        assert server.chats[-1].json()["stream_options"] == asked

    with OpenAIUpstream() as server:
        run(act, server.base_url)


def test_a_server_without_that_option_is_asked_without_it() -> None:
    """Also those who were asked with it at the same time; and from then on nobody is."""

    async def answer(exchange: Exchange) -> None:
        if "stream_options" in exchange.request.json():
            await held(gate, NO_SUCH_OPTION)(exchange)
        else:
            await sse(completion_chunk("alpha", {"content": "Oi"}, "stop"))(exchange)

    async def act(provider: OpenAIProvider) -> None:
        both = [asyncio.create_task(read(provider, ask())) for _ in range(2)]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, server.wait, lambda u: len(u.chats) == 2)
        gate.open()
        for reading in both:
            events, usage = await reading
            assert b'"Oi"' in events and usage is None
        await read(provider, ask())
        assert ["stream_options" in chat.json() for chat in server.chats] == [
            True,
            True,
            False,
            False,
            False,
        ]
        # Who asks for it in so many words is told that the server refuses it.
        with pytest.raises(UpstreamRejectedError, match="stream_options"):
            await read(provider, ask(stream_options={"include_usage": True}))

    gate = Gate()
    with OpenAIUpstream(failures={"alpha": answer}) as server:
        run(act, server.base_url)


def test_a_refusal_of_something_else_is_the_callers() -> None:
    async def act(provider: OpenAIProvider) -> None:
        with pytest.raises(UpstreamRejectedError, match="too long"):
            await read(provider, ask())
        assert len(server.chats) == 1

    with OpenAIUpstream(failures={"alpha": error(400, "too long")}) as server:
        run(act, server.base_url)


CHUNK = completion_chunk("alpha", {"content": "Oi"})
END = completion_chunk("alpha", {}, "stop")
COUNTS = {"usage": usage_of((5, 2))}
BARE: dict[str, Any] = {**CHUNK, "choices": [], **COUNTS}
TOLD = {
    "absent": (CHUNK, END),
    "null": ({**CHUNK, "usage": None}, {**END, "usage": None}),
    "with the end": (CHUNK, {**END, **COUNTS}),
    "in every event": ({**CHUNK, "usage": usage_of((5, 1))}, {**END, **COUNTS}),
    "alone": (CHUNK, END, BARE),
    "alone, without choices": (CHUNK, END, {k: v for k, v in BARE.items() if k != "choices"}),
    "alone, with null choices": (CHUNK, END, {**BARE, "choices": None}),
    "with the end and alone": (CHUNK, {**END, **COUNTS}, BARE),
}


@pytest.mark.parametrize("where", TOLD)
@pytest.mark.parametrize("wanted", [False, True])
def test_the_usage_is_told_once_and_only_when_it_is_wanted(where: str, wanted: bool) -> None:
    """Where it comes with choices it stays there; an event with it alone is for those who ask."""

    async def act(provider: OpenAIProvider) -> None:
        request = ask(stream_options={"include_usage": wanted})
        events, usage = await read(provider, request)
        assert usage == (None if where in ("absent", "null") else USAGE)
        *told, done = events.decode().split("\n\n")[:-1]
        assert done == "data: [DONE]"
        found = [json.loads(one.removeprefix("data: ")) for one in told]
        alone = [one for one in found if one.get("usage") and not one.get("choices")]
        assert len(alone) == (1 if wanted and usage is not None else 0)
        assert all(one["usage"] == COUNTS["usage"] for one in alone)
        assert [one["choices"][0]["delta"].get("content") for one in found if one.get("choices")]

    with OpenAIUpstream(failures={"alpha": sse(*TOLD[where])}) as server:
        run(act, server.base_url)
