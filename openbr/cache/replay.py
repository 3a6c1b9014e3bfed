"""An answer's events -> its body, and back, in OpenAI's chat dialect. No I/O.

In: whole events (`data: {...}` and a blank line, the last one [DONE]), or a chat.completion. Out:
the other one, as a fresh answer would have said it. The rules that live only here: what an answer
is made of is never lost (every choice, parallel tool calls, fields that nobody here knows); texts
that come in pieces are joined, what comes once stays; numbers keep their digits.

Source: OpenAI API reference, "Chat" and "Streaming", read 2026-11; `reasoning_content` is what
DeepSeek, llama.cpp and vLLM add, `obfuscation` is padding of OpenAI's events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from openbr.providers.openai_wire import SOUND, encode_usage
from openbr.records import Usage

Tree = dict[str, Any]

DONE = b"data: [DONE]\n\n"
_OF_AN_EVENT = frozenset({"choices", "usage", "object", "obfuscation"})
_ONCE = frozenset({"role", "id", "type", "name", "format"})
UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What reading an event or a body may raise: an adapter does not look into every field."""
_SECOND_CHOICE = (b'"index":1', b'"index": 1')


class _Delta(msgspec.Struct):
    content: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Choices(msgspec.Struct):
    """What is read of an event or a body to tell its text and its end."""

    choices: list[_Choice] | None = None


_decode = msgspec.json.Decoder(float_hook=msgspec.Raw).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(_Choices).decode
_encode = msgspec.json.Encoder().encode


def payloads(events: bytes) -> Iterator[bytes]:
    """The JSON of each event. What is not data, and [DONE], is not among them."""
    for event in events.split(b"\n\n"):
        if event.startswith(b"data: ") and event != b"data: [DONE]":
            yield event[6:]


def read_text(events: bytes) -> str:
    """The visible text, as the batches of a ChatStream tell it."""
    texts = []
    for payload in payloads(events):
        for choice in _decode_choices(payload).choices or ():
            if choice.delta is not None and isinstance(choice.delta.content, str):
                texts.append(choice.delta.content)
    return "".join(texts)


def has_sound_end(events: bytes, finish_reason: str | None) -> bool:
    """Whether every choice finished, and by itself. `finish_reason`: the last one that was said.

    With one choice, which is nearly always, that one tells it all and nothing is decoded.
    """
    if finish_reason not in SOUND:
        return False
    if not any(sign in events for sign in _SECOND_CHOICE):
        return True
    ends: dict[int, str | None] = {}
    try:
        for payload in payloads(events):
            for choice in _decode_choices(payload).choices or ():
                ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    except UNREADABLE:
        return False
    return bool(ends) and all(end in SOUND for end in ends.values())


def has_sound_end_body(body: bytes) -> bool:
    try:
        choices = _decode_choices(body).choices or []
    except UNREADABLE:
        return False
    return bool(choices) and all(choice.finish_reason in SOUND for choice in choices)


def is_usage_event(payload: bytes) -> bool:
    """Whether an event tells the usage and nothing else."""
    fields = _decode_fields(payload)
    usage, choices = fields.get("usage"), fields.get("choices")
    has_usage = usage is not None and bytes(usage) != b"null"
    is_bare = choices is None or bytes(choices).translate(None, b" \t\r\n") in (b"[]", b"null")
    return has_usage and is_bare


def encode_usage_event(event: bytes, usage: Usage) -> bytes:
    """The event that tells the usage, for a stream that began with `event` and did not bring it."""
    return b"data: %b\n\n" % encode_usage(next(payloads(event), b"{}"), usage)


# Body -> events.


def events_of(body: bytes) -> tuple[bytes, int, bytes]:
    """The events that say the same as a chat.completion: all but the one with the usage, how many
    of their last bytes follow that one, and that one (b"" if the body has no usage)."""
    tree: Tree = _decode(body)
    head = _head_of(tree)
    choices = tree.get("choices") or []
    out = []
    for number, choice in enumerate(choices):
        said = {k: v for k, v in choice.items() if k not in ("message", "finish_reason", "index")}
        index = choice.get("index", number)
        delta = _delta_of(choice.get("message") or {})
        first = {"index": index, "delta": delta, **said, "finish_reason": None}
        out.append(_event({**head, "choices": [first]}))
    for number, choice in enumerate(choices):
        index = choice.get("index", number)
        last = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}
        out.append(_event({**head, "choices": [last]}))
    out.append(DONE)
    usage = tree.get("usage")
    usage_event = _event({**head, "choices": [], "usage": usage}) if usage is not None else b""
    return b"".join(out), len(DONE), usage_event


def _head_of(tree: Tree) -> Tree:
    """What every event of an answer repeats, in the order of a body or an event."""
    kept = {k: v for k, v in tree.items() if k == "object" or k not in _OF_AN_EVENT}
    return {**kept, "object": "chat.completion.chunk"}


def _delta_of(message: Tree) -> Tree:
    delta = {"role": "assistant", **message}
    if calls := message.get("tool_calls"):
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls)]
    return delta


def _event(tree: Tree) -> bytes:
    return b"data: " + _encode(tree) + b"\n\n"


# Events -> body.


def body_of(events: bytes) -> bytes:
    """The chat.completion that says the same as the events."""
    folder = EventFolder()
    folder.feed(events)
    return folder.body()


class EventFolder:
    """Joins events to a body. `feed` takes whole events, any number at a time."""

    __slots__ = ("_choices", "_head", "_usage")

    def __init__(self) -> None:
        self._head: Tree = {}
        self._choices: dict[int, Tree] = {}
        self._usage: Any = None

    def feed(self, events: bytes) -> None:
        for payload in payloads(events):
            tree: Tree = _decode(payload)
            for name, value in tree.items():
                if name in _OF_AN_EVENT:
                    continue
                if value is not None or name not in self._head:
                    # The first event names the answer; of what is told later the last counts.
                    is_named = name in ("id", "created", "model") and self._head.get(name)
                    self._head[name] = self._head[name] if is_named else value
            if tree.get("usage") is not None:
                self._usage = tree["usage"]
            for choice in tree.get("choices") or ():
                kept = self._choices.setdefault(choice.get("index", 0), {})
                _merge(kept, {k: v for k, v in choice.items() if k != "finish_reason"})
                if choice.get("finish_reason") is not None:
                    kept["finish_reason"] = choice["finish_reason"]

    def body(self) -> bytes:
        head = dict(self._head)
        tree: Tree = {"id": head.pop("id", None), "object": "chat.completion"}
        for name in ("created", "model"):
            if name in head:
                tree[name] = head.pop(name)
        tree["choices"] = [_choice_of(n, self._choices[n]) for n in sorted(self._choices)]
        if self._usage is not None:
            tree["usage"] = self._usage
        return _encode({**tree, **head})


def _choice_of(index: int, kept: Tree) -> Tree:
    message = {"role": "assistant", "content": None, **(kept.get("delta") or {})}
    message["role"] = message["role"] or "assistant"
    if calls := message.get("tool_calls"):
        # A body has its calls in order, and no numbers on them.
        message["tool_calls"] = [{k: v for k, v in c.items() if k != "index"} for c in calls]
    if not message["content"] and (calls or message.get("function_call")):
        message["content"] = None
    rest = {k: v for k, v in kept.items() if k not in ("index", "delta", "finish_reason")}
    return {
        "index": index,
        "message": message,
        "logprobs": None,
        **rest,
        "finish_reason": kept.get("finish_reason"),
    }


def _merge(kept: Tree, new: Tree) -> None:
    """Add a piece. Texts are joined, lists too; what is numbered is joined by its number."""
    for name, value in new.items():
        old = kept.get(name)
        if old is None:
            kept[name] = _numbered([], value) if _is_numbered(value) else value
        elif value is None or (name in _ONCE and old):
            continue
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(value, list) or isinstance(old, list):
            old_list, new_list = _as_parts(old), _as_parts(value)
            numbered = _is_numbered(new_list) and (not old_list or _is_numbered(old_list))
            kept[name] = _numbered(old_list, new_list) if numbered else old_list + new_list
        elif isinstance(old, str) and isinstance(value, str):
            kept[name] = old + value
        else:
            kept[name] = value


def _as_parts(value: Any) -> list[Any]:
    """A content may begin as a text and go on as a list of parts."""
    if isinstance(value, list):
        return value
    return [{"type": "text", "text": value}] if value else []


def _is_numbered(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and isinstance(one.get("index"), int) for one in value)
    )


def _numbered(old: list[Any], new: list[Any]) -> list[Any]:
    by_number: dict[int, Tree] = {one["index"]: one for one in old}
    for one in new:
        _merge(by_number.setdefault(one["index"], {"index": one["index"]}), one)
    return [by_number[number] for number in sorted(by_number)]
