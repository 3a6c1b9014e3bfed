"""One request and its answer: ASGI's messages on one side, bytes on the other.

In: the pieces of a body, and what the app sends. Out: ASGI messages, and writes on a transport.
The rules that live only here: nothing in a header can end its line; a head that knows its length
leaves together with its body, in one write; a streamed head leaves at once; a client that speaks
HTTP/1.0 gets no chunks, its answer ends with the connection.

In place of uvicorn's RequestResponseCycle, which looks at each header twice with a regular
expression and keeps an event and two loggers a request: with the timers that went with it, 15 of
the 63 µs that a proxied chat took without its sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from openbr.api.http import new_request_id, send_error
from openbr.errors import OpenbrError

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

logger = logging.getLogger(__name__)

HIGH_WATER = 256 * 1024
"""Bytes of a request's body that may wait for the app before the socket is left unread."""

_CONTROLS = bytes(c for c in range(32) if c not in b"\t") + b"\x7f"
_BODILESS = frozenset({204, 304})
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


class Transport(Protocol):
    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def is_closing(self) -> bool: ...


class Cycle:
    """Threads: event loop only."""

    __slots__ = (
        "_date",
        "_has_news",
        "_head",
        "_is_bodiless",
        "_is_chunked",
        "_left",
        "_waiter",
        "body",
        "disconnected",
        "expects_100",
        "flow",
        "keep_alive",
        "loop",
        "more_body",
        "on_response",
        "response_complete",
        "response_started",
        "scope",
        "task",
        "transport",
    )

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        transport: Transport,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
        on_response: Callable[[], None],
        date: bytes,
        keep_alive: bool,
        expects_100: bool,
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.loop = loop
        self.on_response = on_response
        self.keep_alive = keep_alive
        self.expects_100 = expects_100
        self.task: asyncio.Task[None] | None = None
        self.body: bytes | bytearray = b""
        self.more_body = True
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._date = date
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._is_bodiless = False
        self._is_chunked = False
        self._left: int | None = None

    # The connection calls

    def add_body(self, data: bytes) -> None:
        if not self.body:
            self.body = data
        else:
            if type(self.body) is bytes:
                self.body = bytearray(self.body)
            self.body += data
        if len(self.body) > HIGH_WATER:
            self.flow.pause_reading()
        self.wake()

    def end_body(self) -> None:
        self.more_body = False
        self.wake()

    def disconnect(self) -> None:
        self.disconnected = True
        self.wake()

    def wake(self) -> None:
        """There is something to receive."""
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The app calls

    async def receive(self) -> MutableMapping[str, Any]:
        if self.expects_100:
            self.expects_100 = False
            if not self.response_started and not self.transport.is_closing():
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._has_news and not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._has_news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Raises: RuntimeError for a message out of its order, or a header that is none."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"an answer begins with its start, not with {kind}")
            self._start(message["status"], message.get("headers", ()))
        elif self.response_complete or kind != "http.response.body":
            raise RuntimeError(f"{kind} is not what comes next in an answer")
        else:
            self._write(message.get("body", b""), message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        lines = [STATUS_LINE[status], self._date]
        said: list[bytes] = []
        left: int | None = None
        is_chunked = False
        for name, value in headers:
            if name in _FRAMING:
                if name == b"content-length":
                    left = int(value)
                elif name == b"transfer-encoding":
                    is_chunked = value == b"chunked"
                else:
                    if b"close" in value.lower():
                        self.keep_alive = False
                    continue  # said once, below
            said += (name, value)
            lines += (name, b": ", value, b"\r\n")
        _check(b"".join(said))
        is_bodiless = status in _BODILESS or self.scope["method"] == "HEAD"
        if left is None and not is_bodiless and not is_chunked:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # the connection's end is the body's
            else:
                is_chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        self.response_started = True
        self.expects_100 = False
        self._is_chunked = is_chunked
        self._is_bodiless = is_bodiless
        self._left = left
        if left is None and not is_bodiless:
            self.transport.write(b"".join(lines))
        else:
            self._head = b"".join(lines)

    def _write(self, body: bytes, more_body: bool) -> None:
        if self._is_bodiless:
            body = b""
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more_body):
                raise RuntimeError("the body is not as long as its content-length says")
        elif self._is_chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more_body:
                body += b"0\r\n\r\n"
        if self._head:
            body, self._head = self._head + body, b""
        if body:
            self.transport.write(body)
        if not more_body:
            self.response_complete = True
            self.wake()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


async def run(
    cycle: Cycle, app: ASGI3Application, finish: Callable[[asyncio.Task[None] | None], None]
) -> None:
    """One request. An answer that the app leaves unfinished is how it cuts a broken stream, and a
    cancelled task is a client that left. `finish` is told of the task at its end: a callback of
    the task would be one more turn of the loop."""
    try:
        await app(cycle.scope, cycle.receive, cycle.send)  # type: ignore[arg-type]
        if not cycle.response_complete:
            await _end(cycle)
    except asyncio.CancelledError:
        cycle.transport.close()
    except Exception:
        logger.exception("a defect in openbr")
        await _end(cycle)
    finally:
        cycle.on_response = _nothing  # breaks the ring of cycle and connection
        finish(cycle.task)


async def _end(cycle: Cycle) -> None:
    if not cycle.response_started and not cycle.disconnected:
        await send_error(cycle.send, OpenbrError("openbr gave no answer"), new_request_id())
    elif not cycle.response_complete:
        cycle.transport.close()


def _check(said: bytes) -> None:
    if len(said.translate(None, _CONTROLS)) != len(said):
        raise RuntimeError("a header holds a character that could end its line")


def _nothing() -> None:
    pass
