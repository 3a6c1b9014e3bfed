"""OpenAI's chat dialect on the wire: what an event, a body and a model list say. No I/O.

In: bytes of an upstream. Out: the few fields that matter, decoded strictly; the rest stays raw.
The rule that lives only here: `model` becomes the deployment's full id by a splice where that is
sound, and by decoding and encoding where it is not.

Source: OpenAI API reference, "Chat" and "Streaming", read 2026-11.
"""

from __future__ import annotations

from typing import Any

import msgspec

from openbr.errors import UpstreamProtocolError
from openbr.providers.base import Completion, refusal
from openbr.records import Answer, Deployment, Model, Usage
from openbr.secret import Secret

DONE = b"[DONE]"
SOUND = frozenset({"stop", "tool_calls", "function_call"})
"""Finish reasons of an answer that ended by itself. The others cut it: length, content_filter."""
_MAX_NAMES = 256


class Delta(msgspec.Struct):
    content: str | list[msgspec.Raw] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    call: dict[str, msgspec.Raw] | None = msgspec.field(name="function_call", default=None)


class Choice(msgspec.Struct):
    delta: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class UsageFields(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    def record(self) -> Usage:
        details = self.prompt_tokens_details
        return Usage(
            self.prompt_tokens or 0,
            self.completion_tokens or 0,
            (details.cached_tokens or 0) if details is not None else 0,
        )


class Event(msgspec.Struct):
    model: str | None = None
    choices: list[Choice] | None = None
    usage: UsageFields | None = None
    error: Any = None


class Message(msgspec.Struct):
    """An object; what it holds is the caller's to read."""


class BodyChoice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None


class Body(msgspec.Struct):
    choices: list[BodyChoice] | None = None
    model: str | None = None
    usage: UsageFields | None = None
    error: Any = None


class ListedModel(msgspec.Struct):
    id: str
    created: int | float | None = None
    context_length: int | None = None
    max_model_len: int | None = None
    meta: dict[str, Any] | None = None


class ModelList(msgspec.Struct):
    data: list[ListedModel] | None


decode_event = msgspec.json.Decoder(Event).decode
decode_body = msgspec.json.Decoder(Body).decode
decode_list = msgspec.json.Decoder(ModelList).decode
decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_options = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
encode = msgspec.json.Encoder().encode
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ModelName:
    """Puts a deployment's full id in place of the upstream's `model`, without a rebuild.

    A `"model":"name"` outside a string can only be a key, and inside one its quotes would be
    escaped; what stands before it must end a token. Anything unusual is decoded and encoded.
    """

    __slots__ = ("_compact", "_name", "_new", "_spaced")

    def __init__(self, full_id: str) -> None:
        self._new = b'"model":' + encode(full_id)
        self._name: str | None = None
        self._compact = self._spaced = b""

    def put(self, payload: bytes, name: str | None) -> bytes:
        if name is None:
            return payload
        if name != self._name:
            self._name = name
            encoded = encode(name)
            self._compact, self._spaced = b'"model":' + encoded, b'"model": ' + encoded
        for old in (self._compact, self._spaced):
            at = payload.find(old)
            if at > 0 and payload[at - 1] in b"{, \t" and payload.count(b'"model"') == 1:
                return payload[:at] + self._new + payload[at + len(old) :]
        fields = decode_fields(payload)
        fields["model"] = msgspec.Raw(self._new[8:])
        return encode(fields)


class ModelNames:
    """A ModelName for each full id that was asked lately."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[str, ModelName] = {}

    def get(self, full_id: str) -> ModelName:
        made = self._made.get(full_id)
        if made is None:
            if len(self._made) >= _MAX_NAMES:  # ids may come from callers
                self._made.clear()
            made = self._made[full_id] = ModelName(full_id)
        return made


def read_completion(
    body: bytes, deployment: Deployment, key: Secret | None, name: ModelName
) -> Completion:
    """Check a chat.completion and name the deployment in it.

    Shape: {"model", "choices": [{"message", "finish_reason"}, ...], "usage"?}, at least one choice.
    Raises: UpstreamProtocolError, or what its `error` says.
    """
    provider = deployment.provider
    try:
        body.decode() if not body.isascii() else None
        read = decode_body(body)
    except UNREADABLE as exc:
        raise UpstreamProtocolError(
            f"{provider} answered with something that is not a completion", provider=provider
        ) from exc
    if read.error is not None:
        raise refusal(error_status(read.error), body, (), provider=provider, key=key)
    choices, usage = read.choices, read.usage
    if not choices:
        raise UpstreamProtocolError(f"{provider} answered without any choice", provider=provider)
    reason = choices[0].finish_reason
    answer = Answer(deployment, read.model, reason, None if usage is None else usage.record())
    answer.is_sound = reason in SOUND and (
        len(choices) == 1 or all(choice.finish_reason in SOUND for choice in choices)
    )
    if read.model is None:  # it has none, or null
        body = encode({**decode_fields(body), "model": deployment.model})
    else:
        body = name.put(body, read.model)
    return Completion(body, answer)


def ask_for_usage(raw: msgspec.Raw | None) -> msgspec.Raw:
    """stream_options that ask for the usage, whatever else they hold."""
    options = None if raw is None else _decode_options(raw)
    return _WITH_USAGE if not options else msgspec.Raw(encode({**options, "include_usage": True}))


def encode_usage(first: bytes, usage: Usage) -> bytes:
    """The event that tells the usage, for a stream whose first event was `first`."""
    fields: dict[str, Any] = dict(decode_fields(first))
    for name in ("usage", "obfuscation"):
        fields.pop(name, None)
    counts: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    if usage.cached_tokens:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    return encode({**fields, "choices": [], "usage": counts})


def error_status(error: Any) -> int:
    """The status of an error that came with a 200: its own code if it has one, else 502."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def read_models(body: bytes, provider: str) -> tuple[Model, ...]:
    """Shape: {"data": [{"id", "created"?, "context_length"? or "max_model_len"?}]}.

    Raises: UpstreamProtocolError for anything else.
    """
    try:
        listed = decode_list(body).data or []
    except UNREADABLE as exc:
        raise UpstreamProtocolError(
            f"{provider}: the model list is not one: check that base_url ends where /models begins",
            provider=provider,
        ) from exc
    return tuple(
        Model(
            provider=provider,
            upstream_model=one.id,
            created_at=int(one.created or 0),
            context_tokens=one.context_length or one.max_model_len or _trained(one.meta),
        )
        for one in listed
        if one.id
    )


def _trained(meta: dict[str, Any] | None) -> int | None:
    """llama.cpp says its context in meta.n_ctx_train."""
    value = (meta or {}).get("n_ctx_train")
    return value if isinstance(value, int) else None
