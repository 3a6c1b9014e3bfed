"""Ready-made answers, sound and broken, and the bytes that they are made of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .server import Answer, Exchange, Gate


def head(status: int, headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> bytes:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    return f"HTTP/1.1 {status} Words\r\n{lines}\r\n".encode("latin-1")


def response(body: Any = b"", status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer with a true content-length; anything but bytes becomes JSON."""
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = {"content-type": kind, "content-length": str(len(data)), **(headers or {})}
    return head(status, said) + data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CHUNKED = {"transfer-encoding": "chunked"}
EVENTS = {"content-type": "text/event-stream", **CHUNKED}


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return b"data: " + text.encode() + b"\n\n"


def reply(body: Any = b"", status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    data = response(body, status, headers)
    return lambda exchange: exchange.send(data)


def error(
    status: int,
    message: str = "broken",
    *,
    type: str = "server_error",
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """An error in OpenAI's shape."""
    said = {"message": message, "type": type, "param": None, "code": code}
    return reply({"error": said}, status, headers)


def raw(data: bytes, *, then: str = "keep") -> Answer:
    async def answer(exchange: Exchange) -> None:
        if data:
            await exchange.send(data)
        await _end(exchange, then)

    return answer


async def _end(exchange: Exchange, then: str) -> None:
    if then == "close":
        exchange.close()
    elif then == "reset":
        exchange.reset()
    elif then == "half_close":
        exchange.half_close()
        await exchange.silence()
    elif then == "silence":
        await exchange.silence()
    else:
        assert then == "keep", then


def reset(data: bytes = b"") -> Answer:
    return raw(data, then="reset")


def close(data: bytes = b"") -> Answer:
    return raw(data, then="close")


def half_close(data: bytes = b"") -> Answer:
    return raw(data, then="half_close")


def silence(data: bytes = b"") -> Answer:
    return raw(data, then="silence")


def chunked(
    *parts: bytes,
    headers: Mapping[str, str] | None = None,
    gate: Gate | None = None,
    then: str = "keep",
    whole: bool = True,
) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(head(200, {**CHUNKED, **(headers or {})}))
        for part in parts:
            if gate is not None:
                await gate.wait()
            await exchange.chunk(part)
        if whole:
            await exchange.send(LAST_CHUNK)
        await _end(exchange, then)

    return answer


def cut_chunked(*parts: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    return chunked(*parts, headers=headers, whole=False, then="close")


def sse(
    *events: Any,
    gate: Gate | None = None,
    done: bool = True,
    whole: bool = True,
    then: str = "keep",
) -> Answer:
    parts = [event(one) for one in events]
    if done:
        parts.append(event("[DONE]"))
    return chunked(
        *parts, headers={"content-type": "text/event-stream"}, gate=gate, whole=whole, then=then
    )


def sliced(data: bytes, size: int = 1) -> Answer:
    async def answer(exchange: Exchange) -> None:
        for at in range(0, len(data), size):
            await exchange.send(data[at : at + size])
            await asyncio.sleep(0)

    return answer


def throttled(data: bytes, bytes_per_s: float, size: int = 64) -> Answer:
    async def answer(exchange: Exchange) -> None:
        for at in range(0, len(data), size):
            await exchange.send(data[at : at + size])
            await asyncio.sleep(size / bytes_per_s)

    return answer


def lying_length(body: bytes, declared: int) -> Answer:
    return close(head(200, {"content-length": str(declared)}) + body)


def delayed(seconds: float, answer: Answer) -> Answer:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await answer(exchange)

    return late


def held(gate: Gate, answer: Answer) -> Answer:
    async def later(exchange: Exchange) -> None:
        await gate.wait()
        await answer(exchange)

    return later


def redirect(location: str, status: int = 302) -> Answer:
    return reply(b"", status, {"location": location})


def flood(piece: bytes = b"x" * 65536) -> Answer:
    """A chunked body without end; `connection.sent_bytes` says how much was accepted."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(head(200, CHUNKED))
        while True:
            await exchange.chunk(piece)
            await asyncio.sleep(0)

    return answer


@contextlib.contextmanager
def refused() -> Iterator[str]:
    """The URL of a port that is taken and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a port where connecting hangs: its queue is full and nobody accepts."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"
