"""The yardstick: a plain ASGI pass-through on the gateway's own stack, without any feature.

    python bench/pass_through.py UPSTREAM_PORT PORT
    python bench/pass_through.py --joined UPSTREAM_PORT PORT

In: requests. Out: the same to the upstream, and its answers back. The rules that live only here: it
is correct (heads, keep-alive, streams, a stale connection, a reader slower than the upstream, an
answer cut short) and beyond that does nothing, so that what openbr costs above it is what openbr's
features cost. A streamed answer goes on chunk by chunk, as the upstream framed it; `--joined` sends
what arrived together as one chunk, which is as little as can be done with a burst. It imports
nothing of the bench: it is a process that is measured.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvicorn

MAX_UNREAD = 256 * 1024
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding")
    + (b"upgrade", b"host", b"content-length", b"expect")
)


class Lost(Exception):
    """The upstream closed the connection, or never accepted it. Nothing of an answer came."""


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    __slots__ = (
        "headers",
        "is_complete",
        "is_kept",
        "is_lost",
        "is_paused",
        "loop",
        "parser",
        "parts",
        "status",
        "transport",
        "unread",
        "waiter",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parser = httptools.HttpResponseParser(self)
        self.is_lost = self.is_paused = False
        self.waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.unread = self.status = 0
        self.is_complete = self.is_kept = False
        self.transport.write(request)

    async def wait(self) -> None:
        """Until there is something new to send on. Raises: Lost."""
        if not self.is_lost and not self.is_complete and not self.parts:
            self.waiter = self.loop.create_future()
            await self.waiter
        if self.is_lost and not self.is_complete and not self.parts:
            raise Lost

    def take(self) -> list[bytes]:
        parts, self.parts = self.parts, []
        self.unread = 0
        if self.is_paused:
            self.is_paused = False
            self.transport.resume_reading()
        return parts

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
            return
        if self.unread > MAX_UNREAD and not self.is_paused:
            self.is_paused = True
            self.transport.pause_reading()
        if self.waiter is not None and (self.parts or self.is_complete):
            self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.wake()

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in HOP_BY_HOP or name == b"content-length":
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)
        self.unread += len(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # a provisional answer; the one that counts follows
            self.headers = []
            return
        self.is_complete = True
        self.is_kept = self.parser.should_keep_alive()


class PassThrough:
    def __init__(self, port: int, is_joined: bool) -> None:
        self.port = port
        self.is_joined = is_joined
        self.host = b"host: 127.0.0.1:%d\r\n" % port
        self.idle: list[Connection] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            parts = [body]
            while message.get("more_body"):
                message = await receive()
                parts.append(message.get("body", b""))
            body = b"".join(parts)
        if message["type"] == "http.disconnect":
            return
        try:
            connection = await self.ask(self.encode(scope, body))
        except (Lost, OSError):
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": b"the upstream cannot be reached"})
            return
        await self.relay(connection, send)

    def encode(self, scope: Any, body: bytes) -> bytes:
        target = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target), self.host]
        lines += [b"%b: %b\r\n" % one for one in scope["headers"] if one[0] not in HOP_BY_HOP]
        if body or scope["method"] == "POST":
            lines.append(b"content-length: %d\r\n" % len(body))
        lines += (b"\r\n", body)
        return b"".join(lines)

    async def ask(self, request: bytes) -> Connection:
        """A connection with the beginning of an answer. One that was kept may be stale, so what
        is lost on it before anything came is asked again. Raises: Lost, OSError."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_lost:
                continue
            connection.send(request)
            try:
                await connection.wait()
            except Lost:
                continue
            return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(loop), "127.0.0.1", self.port
        )
        connection.send(request)
        await connection.wait()
        return connection

    async def relay(self, connection: Connection, send: Any) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": connection.status,
                    "headers": connection.headers,
                }
            )
            while True:
                is_complete = connection.is_complete
                parts = connection.take()
                last = parts.pop() if parts else b""
                if self.is_joined and parts:
                    last = b"".join(parts) + last
                else:
                    for part in parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send(
                    {"type": "http.response.body", "body": last, "more_body": not is_complete}
                )
                if is_complete:
                    break
                await connection.wait()
        except Lost:
            return  # uvicorn cuts the answer, so the client sees that it is not whole
        except BaseException:
            connection.transport.abort()
            raise
        if connection.is_kept and not connection.is_lost:
            self.idle.append(connection)
        else:
            connection.transport.close()


if __name__ == "__main__":
    *flags, upstream_port, port = sys.argv[1:]
    uvicorn.run(
        PassThrough(int(upstream_port), "--joined" in flags),
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="error",
        access_log=False,
    )
