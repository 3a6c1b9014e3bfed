"""A loopback HTTP server that answers what a test tells it to, faults included.

In: *answers*, coroutines that write to an Exchange; ready-made ones are below. Out: a server at
`.url`, and a record of what reached it: `.requests`, `.connections`, who closed and when.

In the loop of the test, or in a thread of its own (same class, same answers):

    async with FakeUpstream(reply({"ok": True})) as upstream:
        ... upstream.url                                # http://127.0.0.1:PORT
        await upstream.until(lambda u: u.connections[0].closed_at)   # no sleeps: wait for facts

    with FakeUpstream(sse({"n": 1}, {"n": 2}), reset()) as upstream:
        upstream.wait(lambda u: len(u.requests) == 2)   # the n-th request gets the n-th answer,
                                                        # the last answer repeats

    with OpenAIUpstream(models=["alpha"], deltas=["Hel", "lo"], gate=Gate()) as upstream:
        base_url = upstream.base_url                    # .../v1
        upstream.gate.release(1)                        # let one delta through; .open() lets all

Ready-made answers
    reply(body, status=, headers=)        JSON (or bytes) with a content-length
    chunked(*parts, gate=)                chunked body; with a gate, a permit for each part
    sse(*events, gate=, done=)            the same as `data:` events, then [DONE]
    raw(data, *, then=)                   these very bytes; then "keep", "close", "reset", "silence"
    sliced(data, size=1)                  the bytes in many small writes, then keep
    reset(data=b"") close(data=b"") half_close(data=b"") silence(data=b"")
    cut_chunked(*parts)                   chunked, closed without the last chunk
    lying_length(body, declared)          a content-length that is not true, then close
    throttled(data, bytes_per_s)          a slow line
    delayed(seconds, answer)  held(gate, answer)
    redirect(location)  flood(piece)      a body that never ends, and counts what left
Places that never answer: `refused()` and `black_hole()` are context managers that give a URL.

Your own answer:

    async def answer(exchange: Exchange) -> None:
        await exchange.send(head(200, {"content-length": "2"}))
        await gate.wait()
        await exchange.send(b"ok")
"""

from .answers import (
    CHUNKED,
    EVENTS,
    LAST_CHUNK,
    black_hole,
    chunk,
    chunked,
    close,
    cut_chunked,
    delayed,
    error,
    event,
    flood,
    half_close,
    head,
    held,
    lying_length,
    raw,
    redirect,
    refused,
    reply,
    reset,
    response,
    silence,
    sliced,
    sse,
    throttled,
)
from .openai import (
    OpenAIUpstream,
    broken_stream,
    completion,
    completion_chunk,
    usage_of,
)
from .server import Answer, Connection, Exchange, FakeUpstream, Gate, Request

__all__ = [
    "CHUNKED",
    "EVENTS",
    "LAST_CHUNK",
    "Answer",
    "Connection",
    "Exchange",
    "FakeUpstream",
    "Gate",
    "OpenAIUpstream",
    "Request",
    "black_hole",
    "broken_stream",
    "chunk",
    "chunked",
    "close",
    "completion",
    "completion_chunk",
    "cut_chunked",
    "delayed",
    "error",
    "event",
    "flood",
    "half_close",
    "head",
    "held",
    "lying_length",
    "raw",
    "redirect",
    "refused",
    "reply",
    "reset",
    "response",
    "silence",
    "sliced",
    "sse",
    "throttled",
    "usage_of",
]
