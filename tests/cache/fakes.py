"""Recorded answers, requests as the chat dialect makes them, and streams that a test holds back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from openbr.api.chat import parse_request
from openbr.cache import ResponseCache
from openbr.config import CacheConfig
from openbr.providers.base import ChatStream, Completion
from openbr.records import Answer, Caller, ChatRequest, Deployment, Usage

DONE = b"data: [DONE]\n\n"
HERE = Deployment(provider="fake", upstream_model="alpha", is_local=False)
ELSEWHERE = Deployment(provider="fake", upstream_model="beta", is_local=False)
ANA = Caller(key_id=1, name="ana", scopes=frozenset({"chat"}))
BIA = Caller(key_id=2, name="bia", scopes=frozenset({"chat"}))
NOBODY = Caller(key_id=None, name="here", scopes=frozenset({"chat"}))
USAGE = Usage(input_tokens=5, output_tokens=2)


def make_request(
    body: dict[str, Any] | bytes | None = None,
    *,
    cache_control: str | None = None,
    include_usage: bool = False,
    is_deterministic: bool = True,
) -> ChatRequest:
    if body is None:
        body = {
            "model": "fake/alpha",
            "temperature": 0,
            "messages": [{"role": "user", "content": "hi"}],
        }
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    read = parse_request(raw)
    return ChatRequest(
        model=read.model,
        stream=read.stream,
        fields=read.fields,
        is_deterministic=is_deterministic,
        include_usage=include_usage,
        cache_control=cache_control,
    )


def changed(
    request: ChatRequest, *, cache_control: str | None = None, include_usage: bool = False
) -> ChatRequest:
    return ChatRequest(
        model=request.model,
        stream=request.stream,
        fields=request.fields,
        is_deterministic=request.is_deterministic,
        include_usage=include_usage,
        cache_control=cache_control,
    )


def make_cache(clock: Callable[[], float] | None = None, **config: Any) -> ResponseCache:
    return ResponseCache(CacheConfig(**config), clock=clock)


def event(tree: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(tree) + b"\n\n"


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({**HEAD, "choices": [{**choice, **more}]})


HEAD: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1790000000,
    "model": "fake/alpha",
    "system_fingerprint": "fp_1",
}
COUNTS = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
USAGE_EVENT = event({**HEAD, "choices": [], "usage": COUNTS})


def text_events(*texts: str, finish: str = "stop", usage: bytes = b"") -> list[bytes]:
    """The batches of an answer that says these texts."""
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": text}) for text in texts),
        chunk({}, finish),
        *([usage] if usage else []),
        DONE,
    ]


def body_of_text(text: str, finish: str = "stop", **more: Any) -> bytes:
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1790000000,
            "model": "fake/alpha",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": finish,
                }
            ],
            "usage": COUNTS,
            **more,
        }
    )


class FakeStream(ChatStream):
    """Gives batches, each when the test lets it; then an error, or a sound end.

    `held`: each call of `next()` waits for a permit of `release()`. `calls` counts them.
    """

    def __init__(
        self,
        batches: Iterable[bytes],
        *,
        held: bool = False,
        error: Exception | None = None,
        finish: str | None = "stop",
        usage: Usage | None = None,
        deployment: Deployment = HERE,
    ) -> None:
        self.answer = Answer(deployment=deployment)
        self.text = ""
        self.closed = False
        self.is_over = False
        self.calls = 0
        self._batches = list(batches)
        self._finish = finish
        self._usage = usage
        self._error = error
        self._permits = asyncio.Semaphore(0 if held else 1_000_000)

    def release(self, number: int = 1) -> None:
        for _ in range(number):
            self._permits.release()

    async def next(self) -> bytes:
        self.calls += 1
        await self._permits.acquire()
        if self.closed and self._batches:
            raise AssertionError("read after it was closed")
        if not self._batches:
            if self._error is not None:
                raise self._error
            self.is_over = True
            return b""
        batch = self._batches.pop(0)
        if self._finish and (f'"finish_reason":"{self._finish}"'.encode() in batch):
            self.answer.finish_reason = self._finish
        if b'"choices":[]' in batch or b"[DONE]" in batch:
            self.answer.usage = self._usage
        return batch

    def close(self) -> None:
        self.closed = True


class Opener:
    """What the gateway gives: opens streams or gets bodies, and counts how often."""

    def __init__(self, *answers: Any, held: bool = False) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def __call__(self) -> Any:
        self.calls += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = self.answers[min(self.calls, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def completion(body: bytes, **facts: Any) -> Completion:
    facts = {"deployment": HERE, "finish_reason": "stop", "usage": USAGE, **facts}
    return Completion(body=body, answer=Answer(**facts))


async def read_all(stream: ChatStream) -> bytes:
    """Everything until the end, then closed."""
    out = []
    try:
        while batch := await stream.next():
            out.append(batch)
    finally:
        stream.close()
    return b"".join(out)


async def turns(number: int = 3) -> None:
    """Let every task run that can."""
    for _ in range(number):
        await asyncio.sleep(0)


class Desk:
    """A cache and one request to it, over and over."""

    def __init__(self, cache: ResponseCache, request: ChatRequest | None = None) -> None:
        self.cache = cache
        self.request = request or make_request()

    def _key(self, request: ChatRequest) -> bytes:
        key = self.cache.key(request, ANA, HERE)
        assert key is not None
        return key

    async def chat(
        self,
        open_: Callable[[], Awaitable[ChatStream]],
        chain: tuple[Deployment, ...] = (),
        **changes: Any,
    ) -> ChatStream:
        request = changed(self.request, **changes)
        return await self.cache.chat(self._key(request), request, HERE, open_, chain)

    async def complete(
        self, get: Callable[[], Awaitable[Completion]], **changes: Any
    ) -> Completion:
        request = changed(self.request, **changes)
        return await self.cache.complete(self._key(request), request, HERE, get)
