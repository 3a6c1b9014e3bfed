"""POST /v1/chat/completions: OpenAI's chat dialect, in and out.

In: a JSON body. Out: a chat.completion, or its events. The rules that live only here: the body
is strict JSON and an object; of its fields only those that route it are read, the others pass
as they came; a request never chooses an address, a key or a header; `model` names the deployment
that answered.

Source: OpenAI API reference, "Chat", read 2026-11.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from openbr.api.http import Exchange, encode_error, encode_json, read_body, send_json
from openbr.config import LimitsConfig
from openbr.errors import InvalidRequestError, OpenbrError
from openbr.gateway import Gateway
from openbr.records import Answer, ChatRequest
from openbr.stream import relay

_FORBIDDEN = frozenset({"api_base", "base_url", "api_key", "extra_headers"})
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
_MAX_MADE = 256
_NO_CACHE = (b"cache-control", b"no-cache")
_NO_BUFFER = (b"x-accel-buffering", b"no")
_CACHE = {word: (b"x-openbr-cache", word.encode()) for word in ("hit", "miss", "join", "bypass")}


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# What each read field must be; the decoder's own message says what was found instead.
_TYPES: Mapping[str, Any] = {
    "model": msgspec.json.Decoder(str).decode,
    "stream": msgspec.json.Decoder(bool | None).decode,
    "temperature": msgspec.json.Decoder(float | None).decode,
    "top_p": msgspec.json.Decoder(float | None).decode,
    "n": msgspec.json.Decoder(int | None).decode,
    "seed": msgspec.json.Decoder(int | None).decode,
    "max_tokens": msgspec.json.Decoder(int | None).decode,
    "max_completion_tokens": msgspec.json.Decoder(int | None).decode,
    "stream_options": msgspec.json.Decoder(_StreamOptions | None).decode,
}
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ChatEndpoint:
    """Threads: event loop only."""

    def __init__(self, gateway: Gateway, limits: LimitsConfig) -> None:
        self._gateway = gateway
        self._limits = limits
        self._told = Told()

    async def __call__(self, exchange: Exchange) -> None:
        received_at = time.monotonic()
        body = await read_body(exchange, self._limits.max_body)
        request = parse_request(body, exchange.request_id, exchange.head.cache_control, received_at)
        if not request.stream:
            completion = await self._gateway.complete(request, exchange.caller)
            await send_json(
                exchange, completion.body, headers=self._told.headers(completion.answer)
            )
            return
        stream = await self._gateway.chat(request, exchange.caller)
        request_id = (b"x-request-id", exchange.request_id.encode())
        await relay(
            stream,
            exchange.send,
            [_EVENT_STREAM, _NO_CACHE, _NO_BUFFER, request_id, *self._told.headers(stream.answer)],
            _error_event,
        )


def parse_request(
    body: bytes,
    request_id: str = "",
    cache_control: str | None = None,
    received_at: float = 0.0,
) -> ChatRequest:
    """Read what routes a request. Raises: InvalidRequestError with `param`.

    Shape: {"model": text, "messages": [{...}, ...], "stream"?: boolean, ...}.
    """
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look into what stays raw
        fields = _decode_fields(body)
    except _UNREADABLE as exc:
        raise InvalidRequestError(f"the body is not a JSON object: {_why(exc)}") from exc
    if not _FORBIDDEN.isdisjoint(fields):
        name = min(_FORBIDDEN.intersection(fields))
        raise InvalidRequestError(f"{name} cannot be chosen by a request", param=name)
    said: dict[str, Any] = {}
    name = ""
    try:
        for name, raw in fields.items():
            decode = _TYPES.get(name)
            if decode is not None:
                said[name] = decode(raw)
    except _UNREADABLE as exc:
        raise InvalidRequestError(f"{name}: {_why(exc)}", param=name) from exc
    model = said.get("model")
    if not model:
        raise InvalidRequestError(
            'model is missing: send a model of /v1/models, or "default"'
            if model is None
            else "model is empty",
            param="model",
        )
    _check_messages(fields.get("messages"))
    options = said.get("stream_options")
    return ChatRequest(
        model,
        bool(said.get("stream")),
        fields,
        request_id,
        said.get("temperature") == 0 or said.get("seed") is not None,  # is_deterministic
        options is not None and options.include_usage is True,  # include_usage
        cache_control,
        received_at,
    )


def build_request(
    model: str, messages: Sequence[Mapping[str, str]], request_id: str = "", **fields: Any
) -> ChatRequest:
    """A streamed request of our own, as the pages send it."""
    body = {"model": model, "messages": messages, "stream": True, **fields}
    return parse_request(encode_json(body), request_id)


def _check_messages(raw: msgspec.Raw | None) -> None:
    """A list that begins with an object; what is inside is for the upstream to judge."""
    if raw is None:
        raise InvalidRequestError("messages is missing", param="messages")
    text = bytes(memoryview(raw)[:64])
    if text.startswith(b"[{"):
        return
    text = text.lstrip()
    if not text.startswith(b"["):
        raise InvalidRequestError("messages must be a list", param="messages")
    inner = text[1:].lstrip()
    if inner.startswith(b"]"):
        raise InvalidRequestError("messages is empty", param="messages")
    if inner and not inner.startswith(b"{"):
        raise InvalidRequestError("messages must hold objects", param="messages[0]")


def _why(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    if isinstance(exc, UnicodeDecodeError):
        return f"not UTF-8 at byte {exc.start}"
    return str(exc)


class Told:
    """The headers that say who answered. Those of a deployment are made once."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[tuple[bytes, bytes], tuple[bytes, bytes]]] = {}

    def headers(self, answer: Answer) -> list[tuple[bytes, bytes]]:
        deployment = answer.deployment
        made = self._made.get(deployment.model)
        if made is None:
            if len(self._made) >= _MAX_MADE:  # names of models may come from callers
                self._made.clear()
            made = self._made[deployment.model] = (
                (b"x-openbr-model", _text(deployment.model)),
                (b"x-openbr-provider", _text(deployment.provider)),
            )
        headers = [*made, _CACHE[answer.cache]]
        said = answer.upstream_model
        if said is not None and said != deployment.upstream_model:
            headers.append((b"x-openbr-upstream-model", _text(said)))
        if answer.fallback is not None:
            headers.append((b"x-openbr-fallback", answer.fallback.encode()))
        return headers


def _text(value: str) -> bytes:
    """A header value: what is not printable ASCII becomes '?'; nothing can end the line."""
    if value.isascii() and value.isprintable():
        return value.encode()
    return bytes(c if 32 <= c < 127 else 63 for c in value.encode("ascii", "replace"))


def _error_event(error: OpenbrError) -> bytes:
    return b"data: " + encode_error(error) + b"\n\n"
