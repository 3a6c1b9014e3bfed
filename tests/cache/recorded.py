"""Answers as providers stream them and as they send them whole: the same one in both forms."""

from __future__ import annotations

from typing import Any

from tests.cache.fakes import COUNTS, DONE, HEAD, USAGE_EVENT, chunk, event

BODY_HEAD: dict[str, Any] = {
    "id": HEAD["id"],
    "object": "chat.completion",
    "created": HEAD["created"],
    "model": HEAD["model"],
}


def body(*choices: dict[str, Any]) -> dict[str, Any]:
    return {**BODY_HEAD, "choices": list(choices), "usage": COUNTS, "system_fingerprint": "fp_1"}


def choice(
    message: dict[str, Any], finish: str = "stop", index: int = 0, **more: Any
) -> dict[str, Any]:
    message = {"role": "assistant", **message}
    return {"index": index, "message": message, "logprobs": None, **more, "finish_reason": finish}


def call(index: int, **function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": function}]}


def begin(index: int, id: str, name: str) -> dict[str, Any]:
    return {
        "tool_calls": [
            {
                "index": index,
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
        ]
    }


def whole_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOKENS = [
    {"token": "Ol", "logprob": -1e-05, "bytes": [79, 108], "top_logprobs": []},
    {"token": "á", "logprob": -0.25, "bytes": [195, 161], "top_logprobs": []},
]

RECORDED: dict[str, tuple[list[bytes], dict[str, Any]]] = {
    "text": (
        [
            chunk({"role": "assistant", "content": "", "refusal": None}),
            chunk({"content": "Olá, "}),
            chunk({"content": 'o "mundo"\n'}),
            chunk({}, "stop"),
        ],
        body(choice({"content": 'Olá, o "mundo"\n', "refusal": None})),
    ),
    "reasoning": (
        [
            chunk({"role": "assistant", "content": None, "reasoning_content": "Let me "}),
            chunk({"content": None, "reasoning_content": "think."}),
            chunk({"content": "42", "reasoning_content": None}),
            chunk({"content": ""}, "stop", stop_reason=None),
        ],
        body(choice({"content": "42", "reasoning_content": "Let me think."}, stop_reason=None)),
    ),
    "parallel tools": (
        [
            chunk({"role": "assistant", "content": None}),
            chunk(begin(0, "call_a", "find_city")),
            chunk(call(0, arguments='{"na')),
            chunk(begin(1, "call_b", "weather")),
            chunk(call(0, arguments='me":"São Paulo"}')),
            chunk(call(1, arguments='{"day":')),
            chunk(call(1, arguments="1}")),
            chunk({}, "tool_calls"),
        ],
        body(
            choice(
                {
                    "content": None,
                    "tool_calls": [
                        whole_call("call_a", "find_city", '{"name":"São Paulo"}'),
                        whole_call("call_b", "weather", '{"day":1}'),
                    ],
                },
                "tool_calls",
            )
        ),
    ),
    "two choices": (
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"role": "assistant", "content": ""}, index=1),
            chunk({"content": "heads"}),
            chunk({"content": "ta"}, index=1),
            chunk({}, "stop"),
            chunk({"content": "ils"}, index=1),
            chunk({}, "stop", index=1),
        ],
        body(choice({"content": "heads"}), choice({"content": "tails"}, index=1)),
    ),
    "old function call": (
        [
            chunk({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}),
            chunk({"function_call": {"arguments": "{}"}}),
            chunk({}, "function_call"),
        ],
        body(
            choice(
                {"content": None, "function_call": {"name": "f", "arguments": "{}"}},
                "function_call",
            )
        ),
    ),
    "refusal": (
        [
            chunk({"role": "assistant", "content": None, "refusal": "I can"}),
            chunk({"refusal": "not."}),
            chunk({}, "stop"),
        ],
        body(choice({"content": None, "refusal": "I cannot."})),
    ),
    "logprobs": (
        [
            chunk({"role": "assistant", "content": "Ol"}, logprobs={"content": TOKENS[:1]}),
            chunk({"content": "á"}, logprobs={"content": TOKENS[1:]}),
            chunk({}, "stop"),
        ],
        body({**choice({"content": "Olá"}), "logprobs": {"content": TOKENS}}),
    ),
    "unknown fields": (
        [
            event({**HEAD, "obfuscation": "x7", "choices": [], "prompt_filter": [{"ok": True}]}),
            chunk({"role": "assistant", "content": "a", "annotations": [{"n": 1}]}),
            chunk({"content": "b", "annotations": [{"n": 2}]}),
            chunk({"reasoning_details": [{"index": 0, "type": "t", "text": "x"}]}),
            chunk({"reasoning_details": [{"index": 0, "type": "t", "text": "y"}]}),
            event({**HEAD, "service_tier": "default", "choices": []}),
            chunk({}, "stop", content_filter={"hate": False}),
        ],
        {
            **body(
                choice(
                    {
                        "content": "ab",
                        "annotations": [{"n": 1}, {"n": 2}],
                        "reasoning_details": [{"index": 0, "type": "t", "text": "xy"}],
                    },
                    content_filter={"hate": False},
                )
            ),
            "prompt_filter": [{"ok": True}],
            "service_tier": "default",
        },
    ),
    "parts": (
        [
            chunk({"role": "assistant", "content": "a"}),
            chunk({"content": [{"type": "thinking", "thinking": "hm"}]}),
            chunk({"content": "b"}),
            chunk({}, "stop"),
        ],
        body(
            choice(
                {
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "text", "text": "b"},
                    ]
                }
            )
        ),
    ),
}


def recorded_batches(name: str, with_usage: bool = True) -> list[bytes]:
    return [*RECORDED[name][0], *([USAGE_EVENT] if with_usage else []), DONE]
