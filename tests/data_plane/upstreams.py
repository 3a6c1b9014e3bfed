"""What the upstream of these tests answers, beyond the ready-made answers of the fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fake_upstream import (
    EVENTS,
    LAST_CHUNK,
    Answer,
    Exchange,
    Gate,
    OpenAIUpstream,
    completion,
    completion_chunk,
    event,
    head,
    held,
    reply,
    sse,
    usage_of,
)

TOML = """
[local]
enabled = false
[[providers]]
name = "fake"
base_url = "{url}"
models = ["alpha", "beta"]
prices = {{ "alpha" = {{ input = 10.0, output = 100.0 }} }}
[[routes]]
model = "default"
deployments = ["fake/alpha"]
[[routes]]
model = "safe"
deployments = ["fake/beta", "fake/alpha"]
"""
"""5 tokens in and 2 out, as the fake tells them, cost 0.00025 US$ with alpha."""

COST_USD = 0.00025


def gated(gate: Gate) -> Answer:
    """One answer in either form: each of its two pieces takes a permit, a body takes both."""

    async def answer(exchange: Exchange) -> None:
        asked = exchange.request.json()
        if not asked.get("stream"):
            await gate.wait()
            await held(gate, reply(completion("alpha", "Hello")))(exchange)
            return
        await exchange.send(head(200, EVENTS))
        for text in ("Hel", "lo"):
            await gate.wait()
            await exchange.chunk(event(completion_chunk("alpha", {"content": text})))
        await exchange.chunk(event(completion_chunk("alpha", {}, "stop")))
        usage = {**completion_chunk("alpha", {}), "choices": [], "usage": usage_of((5, 2))}
        await exchange.chunk(event(usage))
        await exchange.chunk(event("[DONE]"))
        await exchange.send(LAST_CHUNK)

    return answer


@contextmanager
def holding(upstream: OpenAIUpstream, model: str = "alpha") -> Iterator[Gate]:
    """`gated` answers meanwhile; at the end nothing is held any more."""
    gate = Gate()
    with failing(upstream, gated(gate), model):
        try:
            yield gate
        finally:
            gate.open()


@contextmanager
def failing(upstream: OpenAIUpstream, answer: Answer, model: str = "alpha") -> Iterator[None]:
    """`answer` in place of a completion, meanwhile."""
    upstream.failures[model] = answer
    try:
        yield
    finally:
        del upstream.failures[model]


def finished(reason: str) -> Answer:
    """A whole answer in either form with this finish reason."""

    async def answer(exchange: Exchange) -> None:
        if exchange.request.json().get("stream"):
            last = completion_chunk("alpha", {}, reason)
            await sse(completion_chunk("alpha", {"content": "Hello"}), last)(exchange)
        else:
            body: dict[str, Any] = completion("alpha", "Hello")
            body["choices"][0]["finish_reason"] = reason
            await reply(body)(exchange)

    return answer


async def upstream_has(upstream: OpenAIUpstream, count: int) -> None:
    """Return when so many chats have reached the upstream."""
    await upstream_is(upstream, lambda u: len(u.chats) >= count)


async def upstream_is(upstream: OpenAIUpstream, fact: Callable[[OpenAIUpstream], object]) -> None:
    """Return when the fact is one, told by the upstream's thread to the test's loop."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, upstream.wait, fact)
