"""One client's connection: uvicorn's httptools protocol, made strict and made to let go.

In: bytes. Out: requests for the app; for what is no request, one JSON error and the end of the
connection. The rules that live only here, all of them limits on the client: what two parsers could
read differently is refused; a head has a size and a time; trailers are not headers; a `/v1` request
is cancelled when its client leaves; a refusal never overtakes an answer before it.

Kept from uvicorn: the parser's setup, the scope, keep-alive, pipelining, flow control, the cycle
that turns ASGI messages into bytes. Tests feed raw bytes to all of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from openbr.api.http import encode_error, new_request_id, send_error
from openbr.errors import InvalidRequestError, OpenbrError, RequestError, ServiceUnavailableError
from openbr.server.state import State
from openbr.stream import CLIENT_GONE

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

logger = logging.getLogger(__name__)

_WATCHED = frozenset({b"host", b"transfer-encoding", b"expect"})


class _Refusal(Exception):
    """Raised inside a callback of the parser to stop it; carries what the client is told."""

    def __init__(self, error: OpenbrError) -> None:
        super().__init__(error)
        self.error = error


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_http")


def _with_status(status: int, code: str, message: str) -> OpenbrError:
    error = RequestError(message, code=code)
    error.status = status
    return error


class _Exit:
    """The transport as a request's cycle sees it: closing is gentle.

    A socket that is closed with unread input is reset, and a reset destroys the answer on its way.
    """

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Connection(HttpToolsProtocol):
    """Threads: event loop only."""

    server_state: State

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._limits = self.server_state.limits
        self._is_over = False
        self._in_body = False
        self._leaving = False
        self._hosts = 0
        self._host = b""
        self._unframed = 0
        """Bytes since the last whole head or piece of body: a head so far, or what holds none."""
        self._refused: OpenbrError | None = None
        self._running: RequestResponseCycle | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unwritten = 0

    # The transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self._limits.max_connections
        if excess > self._limits.max_spare:
            self._leaving = True
            transport.abort()
            return
        self._is_over = excess > 0
        self._exit = _Exit(transport, self._leave)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = True
        self._stop_timers()
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)
        self.pipeline.clear()
        self._cancel_running()
        self.server_state.lose_connection()

    def data_received(self, data: bytes) -> None:
        if self._leaving or self._refused is not None:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._unframed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as if it had not been asked, with connection: close. What follows the head
            # would be another protocol.
            self._refused = _bad("openbr speaks HTTP/1.1 only")
            self._end_if_idle()
        except httptools.HttpParserError as exc:
            self._refuse(_reason(exc))
        else:
            if self._unframed > self._limits.max_head_bytes:
                self._refuse(self._too_large())
            elif self._unframed or not self._is_answering():
                self._await_client()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # The parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._hosts = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer: nothing it says was there when the request was let in
        name = name.lower()
        if name in _WATCHED:
            self._watch_header(name, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._check_head()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._in_body = True
        self._unframed = 0
        super().on_headers_complete()
        cycle = self.cycle
        cycle.transport = self._exit  # type: ignore[assignment]
        if self._is_over or self.server_state.draining or self.parser.should_upgrade():
            cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._unframed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._unframed = 0
        super().on_message_complete()

    # The cycle calls

    def on_response_complete(self) -> None:
        if self._leaving or self._refused is not None and not self.pipeline:
            self.server_state.total_requests += 1
            self._end_if_idle()
            return
        super().on_response_complete()
        if self._in_body and self.timeout_keep_alive_task is not None:
            # Answered before the body was whole: its rest is read, for a while, and dropped.
            self._unset_keepalive_if_required()
            self._await_body_rest()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._is_over:
            app = _say_overloaded  # type: ignore[assignment]
        self._running = cycle
        task = self.loop.create_task(_run(cycle, app))
        self._task = task
        self.tasks.add(task)
        task.add_done_callback(self.server_state.finish_task)

    # The server calls

    def shutdown(self) -> None:
        """Begin to drain: the running answer is the last one. An idle connection stays, so that
        whoever asks meanwhile is told, and not cut off between two requests."""
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False

    def abort(self) -> None:
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self._leave()

    # Ours

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _watch_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
            self._host = value
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif value.lower() != b"chunked" or self.parser.get_http_version() == "1.0":
            raise _Refusal(_bad("transfer-encoding may only be chunked, in HTTP/1.1"))

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise _Refusal(_bad(f"HTTP/{version} is not spoken here"))
        if self._hosts > 1 or (not self._hosts and version == "1.1"):
            raise _Refusal(_bad("a request needs one Host header"))
        if self._unframed > self._limits.max_head_bytes:
            # All that has come since the last request, so look closer.
            size = len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
            if size > self._limits.max_head_bytes:
                raise _Refusal(self._too_large())
        if len(self.headers) > self._limits.max_headers:
            raise _Refusal(self._too_large())
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise _Refusal(_bad("too many requests at once on one connection"))
        if not self.url.startswith(b"/") and self.url != b"*":
            authority = self.url.partition(b"://")[2].partition(b"/")[0]
            if authority.lower() != self._host.lower() or not authority:
                raise _Refusal(_bad("this is no proxy: ask for a path"))

    def _too_large(self) -> OpenbrError:
        return _with_status(431, "headers_too_large", "the request's headers are too large")

    def _refuse(self, error: OpenbrError) -> None:
        """Nothing more is read. Answers before it are finished first, then it is sent."""
        self._refused = error
        broken = self.cycle if self._in_body else None
        if broken is not None and not broken.response_complete:
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            else:
                broken.disconnected = True
                broken.message_event.set()
                self._cancel_running()
                if broken.response_started:
                    self._leave()
                    return
                broken.response_complete = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        """Send the refusal, if there is one, and end, once no answer stands before it."""
        if self._is_answering() or self.pipeline or self.transport.is_closing():
            return
        error = self._refused
        if error is not None and not self._leaving:
            if self._running is None or self._running.keep_alive:
                self.transport.write(_encode_refusal(error, self.server_state.default_headers))
            self._leave()

    def _leave(self) -> None:
        """Close once the client has taken what was written, and reading can stop without a reset."""
        if self.transport is None or self.transport.is_closing():
            return
        self._leaving = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if (self._in_body or self._refused is not None) and self.transport.can_write_eof():
            self.transport.write_eof()
            self._await_body_rest()
            return
        self.transport.close()
        self._watch_writing()
