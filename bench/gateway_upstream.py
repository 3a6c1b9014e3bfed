"""The upstream of the gateway bench where there is no compiler: `gateway_upstream.c`, in Python.

    python bench/gateway_upstream.py PORT

In: requests. Out: the answers that the C file's head lists, byte for byte the same. No rule lives
only here. It takes about twice the CPU time, but from the core of the load, not the gateway's.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import suppress

import uvloop

PERIOD_S = 0.02
NAMES = ("fast", "burst", "paced", "slow", "large", "echo", "fail", "cut")
ANSWER = "Brasilia is the capital of Brazil; the city was founded on 21 April 1960."
USAGE = '"usage":{"prompt_tokens":24,"completion_tokens":12,"total_tokens":36}'
WHOLE = (
    '{"id":"chatcmpl-bench00000000000000000001","object":"chat.completion",'
    '"created":1790000000,"model":"%s","system_fingerprint":"fp_bench",'
    '"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null},'
    '"logprobs":null,"finish_reason":"stop"}],' + USAGE + "}"
)
EVENT = (
    'data: {"id":"chatcmpl-bench00000000000000000001","object":"chat.completion.chunk",'
    '"created":1790000000,"model":"%s","choices":[%s]%s}\n\n'
)
CHOICE = '{"index":0,"delta":{%s},"finish_reason":%s}'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
FAILURE = '{"error":{"message":"as asked","type":"server_error","param":null,"code":null}}'
MAX_NUMBER = 1_000_000
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_MODEL = re.compile(rb'"model"[: ]*"(?:[^"]*/)?([^"/-]*)-?(\d*)"')


def encode_body(status: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def encode_chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def encode_event(model: str, delta: str, finish: str = "null") -> bytes:
    return encode_chunk(EVENT % (model, CHOICE % (delta, finish), ""))


def encode_start(model: str) -> bytes:
    return STREAM_HEAD + encode_event(model, '"role":"assistant","content":""')


def encode_end(model: str, with_usage: bool) -> bytes:
    usage = encode_chunk(EVENT % (model, "", "," + USAGE)) if with_usage else b""
    last = encode_chunk("data: [DONE]\n\n") + b"0\r\n\r\n"
    return encode_event(model, "", '"stop"') + usage + last


FAST = encode_body("200 OK", WHOLE % ("fast", ANSWER))
MODELS = encode_body(
    "200 OK",
    '{"object":"list","data":['
    + ",".join(
        f'{{"id":"{name}","object":"model","created":1,"owned_by":"bench"}}' for name in NAMES
    )
    + "]}",
)


class Counts:
    requests = streams = 0


class Connection(asyncio.Protocol):
    """Requests are answered in turn: while one takes its time, the others wait in `buffer`."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.buffer = b""
        self.is_busy = self.is_last = False
        self.timer: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        self.advance()

    def advance(self) -> None:
        while self.buffer and not self.is_busy and not self.is_last:
            end = self.buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head = self.buffer[:end]
            found = _LENGTH.search(head)
            size = end + (int(found[1]) if found else 0)
            if len(self.buffer) < size:
                return
            body, self.buffer = self.buffer[end:size], self.buffer[size:]
            self.is_last = b"HTTP/1.0\r\n" in head or b"connection: close" in head.lower()
            if b"\r\ntransfer-encoding:" in head.lower():
                self.is_last = True
                self.transport.write(encode_body("400 Bad Request", "{}"))
            else:
                self.answer(head, body)
            if self.is_last and not self.is_busy:
                self.transport.close()

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST "):
            self.answer_chat(body)
        elif head.startswith(b"GET /v1/models"):
            self.transport.write(MODELS)
        elif head.startswith(b"GET /stats"):
            self.transport.write(encode_body("200 OK", f'{{"requests":{self.counts.requests}}}'))
        else:
            self.transport.write(encode_body("404 Not Found", "{}"))

    def answer_chat(self, body: bytes) -> None:
        self.counts.requests += 1
        found = _MODEL.search(body)
        model = found[1].decode() if found else "fast"
        number = min(int(found[2]), MAX_NUMBER) if found and found[2] else None
        if model == "fail":
            status = 503 if number is None else number
            self.transport.write(encode_body(f"{status} As Asked", FAILURE))
        elif re.search(rb'"stream"[: ]*true', body):
            self.answer_stream(model, number, bool(re.search(rb'"include_usage"[: ]*true', body)))
        elif model == "slow":
            delay_s = (20 if number is None else number) / 1000
            self.wait(self.loop.time() + delay_s, self.end, FAST)
        elif model == "large":
            content = "b" * ((100 if number is None else number) << 10)
            self.transport.write(encode_body("200 OK", WHOLE % (model, content)))
        elif model == "echo":
            self.transport.write(encode_body("200 OK", WHOLE % (model, f"{len(body)} bytes")))
        else:
            self.transport.write(FAST)

    def answer_stream(self, model: str, number: int | None, with_usage: bool) -> None:
        delta = encode_event(model, '"content":"Brazil "')
        if model == "paced":
            self.counts.streams += 1
            share = self.counts.streams * 0.6180339887 % 1  # who begins together must not tick so
            self.transport.write(encode_start(model))
            left = 100 if number is None else number
            due = self.loop.time() + PERIOD_S * share
            self.wait(due, self.pace, due, left, with_usage)
        elif model == "cut":
            self.is_last = True
            self.transport.write(encode_start(model) + delta * 3)
        else:
            usual = 200 if model == "burst" else 10
            deltas = delta * (usual if number is None else number)
            self.transport.write(encode_start(model) + deltas + encode_end(model, with_usage))

    def pace(self, due: float, left: int, with_usage: bool) -> None:
        """One chunk. `due`: when it was to leave; the next ones do not drift with what is late."""
        if left:
            stamp = encode_event("paced", f'"content":"@{time.monotonic_ns()} "')
            self.transport.write(stamp)
        if left > 1:
            due += PERIOD_S
            self.wait(due, self.pace, due, left - 1, with_usage)
        else:
            self.end(encode_end("paced", with_usage))

    def wait(self, when: float, then: object, *values: object) -> None:
        self.is_busy = True
        self.timer = self.loop.call_at(when, then, *values)  # type: ignore[arg-type]

    def end(self, last: bytes) -> None:
        self.is_busy = False
        self.transport.write(last)
        if self.is_last:
            self.transport.close()
        else:
            self.advance()


async def main(port: int) -> None:
    counts = Counts()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(counts), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(main(int(sys.argv[1])))
