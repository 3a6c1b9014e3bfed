"""The fake in OpenAI's dialect: a model list, and completions streamed or whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .answers import (
    EVENTS,
    LAST_CHUNK,
    chunk,
    error,
    event,
    head,
    reply,
    sse,
)
from .server import Answer, Exchange, FakeUpstream, Gate, Request


class OpenAIUpstream(FakeUpstream):
    """A server that speaks OpenAI's API: GET /v1/models, POST /v1/chat/completions.

    Every attribute may be changed while it runs.
      models     what the list says
      deltas     the text pieces of every answer, streamed or joined
      usage      (input, output) tokens; None leaves usage out
      gate       a Gate: each delta of a stream takes a permit (the role and finish events do not)
      key        when set, any other bearer key gets 401
      failures   model name -> Answer given in place of a completion; "*" stands for all
                 (see `error`, `reset`, `silence`, `broken_stream`, ...)
      list_answer  Answer in place of the model list
      name       `model` in the answers; None repeats what was asked
    """

    def __init__(
        self,
        models: Sequence[str] = ("alpha", "beta"),
        deltas: Sequence[str] = ("Hel", "lo"),
        *,
        usage: tuple[int, int] | None = (5, 2),
        gate: Gate | None = None,
        key: str | None = None,
        failures: Mapping[str, Answer] | None = None,
        list_answer: Answer | None = None,
        name: str | None = None,
        **server: Any,
    ) -> None:
        super().__init__(**server)
        self.models = list(models)
        self.deltas = list(deltas)
        self.usage = usage
        self.gate = gate
        self.key = key
        self.failures = dict(failures or {})
        self.list_answer = list_answer
        self.name = name

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    @property
    def chats(self) -> list[Request]:
        return [r for r in self.requests if r.path == "/v1/chat/completions"]

    async def answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            wrong = error(401, "wrong key", type="invalid_request_error", code="invalid_api_key")
            await wrong(exchange)
        elif (request.method, request.path) == ("GET", "/v1/models"):
            await (self.list_answer or self._list())(exchange)
        elif (request.method, request.path) == ("POST", "/v1/chat/completions"):
            await self._chat(exchange)
        else:
            await error(404, f"nothing at {request.path}", type="invalid_request_error")(exchange)

    def _list(self) -> Answer:
        data = [
            {"id": name, "object": "model", "created": 1700000000 + n, "owned_by": "fake"}
            for n, name in enumerate(self.models)
        ]
        return reply({"object": "list", "data": data})

    async def _chat(self, exchange: Exchange) -> None:
        asked = exchange.request.json()
        model = asked["model"]
        if failure := self.failures.get(model) or self.failures.get("*"):
            await failure(exchange)
        elif model not in self.models:
            await error(
                404, f"no model {model}", type="invalid_request_error", code="model_not_found"
            )(exchange)
        elif asked.get("stream"):
            options = asked.get("stream_options") or {}
            await self._stream(exchange, model, bool(options.get("include_usage")))
        else:
            await reply(completion(self.name or model, "".join(self.deltas), self.usage))(exchange)

    async def _stream(self, exchange: Exchange, model: str, with_usage: bool) -> None:
        name = self.name or model
        await exchange.send(head(200, EVENTS))
        await exchange.chunk(event(completion_chunk(name, {"role": "assistant", "content": ""})))
        for text in list(self.deltas):
            if self.gate is not None:
                await self.gate.wait()
            await exchange.chunk(event(completion_chunk(name, {"content": text})))
        await exchange.chunk(event(completion_chunk(name, {}, "stop")))
        if with_usage and self.usage is not None:
            last = {**completion_chunk(name, {}), "choices": [], "usage": usage_of(self.usage)}
            await exchange.chunk(event(last))
        await exchange.send(chunk(event("[DONE]")) + LAST_CHUNK)


def usage_of(usage: tuple[int, int]) -> dict[str, int]:
    return {
        "prompt_tokens": usage[0],
        "completion_tokens": usage[1],
        "total_tokens": sum(usage),
    }


def completion(model: str, text: str, usage: tuple[int, int] | None = (5, 2)) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1700000000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        **({"usage": usage_of(usage)} if usage is not None else {}),
    }


def completion_chunk(
    model: str, delta: Mapping[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": model,
        "choices": [{"index": 0, "delta": dict(delta), "finish_reason": finish_reason}],
    }


def broken_stream(*deltas: str, how: str = "reset", model: str = "alpha") -> Answer:
    """A stream of completion chunks that ends badly after `deltas`.

    `how`: "reset", "close" (a cut chunked body), "silence", or "end": a clean end of the body
    without a finish reason and without [DONE].
    """
    events = [completion_chunk(model, {"content": text}) for text in deltas]
    then = "keep" if how == "end" else how
    return sse(*events, done=False, whole=how == "end", then=then)
