"""Inputs of the benches: fixed by a seed, sized like real traffic.

In: sizes. Out: keys, requests, bytes. The rule that lives only here: the same call gives the same
input on every machine and in every run.
"""

from __future__ import annotations

import json
import random
import re
from bisect import bisect
from itertools import accumulate

SEED = 20261123
_WORDS = (
    "the a of and to in model answer token cache gateway please explain why is it that when we "
    "'quoted' \"double\" back\\slash coração São Paulo ação naïve Привет 你好 line\nbreak tab\t"
)
_WORD_LIST = re.split(" ", _WORDS)


def make_keys(count: int) -> list[str]:
    """Like digests in hexadecimal, which is what most caches are asked for."""
    rng = random.Random(SEED)
    return [f"{rng.getrandbits(128):032x}" for _ in range(count)]


def make_shuffled(keys: list[str], count: int) -> list[str]:
    """`count` requests that go through all keys, again and again, each time in another order."""
    rng = random.Random(SEED + 1)
    requests: list[str] = []
    while len(requests) < count:
        requests += rng.sample(keys, len(keys))
    return requests[:count]


def make_zipf(keys: list[str], count: int) -> list[str]:
    """Requests where the n-th most wanted key is asked for 1/n as often as the first."""
    rng = random.Random(SEED + 2)
    bounds = list(accumulate(1 / n for n in range(1, len(keys) + 1)))
    return [keys[bisect(bounds, rng.random() * bounds[-1])] for _ in range(count)]


def make_bytes(size: int) -> bytes:
    return random.Random(SEED + size).randbytes(size)


def make_chat(size: int) -> bytes:
    """The body of a chat request of about `size` bytes: a talk, settings, and a tool."""
    rng = random.Random(SEED + size)
    messages = [{"role": "system", "content": "You answer in one sentence."}]
    body = {
        "model": "local/smollm2-135m",
        "messages": messages,
        "temperature": 0.7,
        "max_tokens": 256,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "find_city",
                    "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
                },
            }
        ],
    }
    length = len(json.dumps(body))
    role = "user"
    while length < size:
        words = rng.choices(_WORD_LIST, k=min(120, max(8, (size - length) // 7)))
        message = {"role": role, "content": " ".join(words)}
        messages.append(message)
        length += len(json.dumps(message, ensure_ascii=False).encode()) + 2
        role = "assistant" if role == "user" else "user"
    return json.dumps(body, ensure_ascii=False).encode()


def make_chunks(count: int) -> list[bytes]:
    """Events of a streamed answer, as an upstream sends them."""
    rng = random.Random(SEED + 3)
    return [
        b"data: "
        + json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1790000000,
                "model": "m",
                "choices": [{"index": 0, "delta": {"content": rng.choice(_WORD_LIST) + " "}}],
            }
        ).encode()
        + b"\n\n"
        for _ in range(count)
    ]
