"""One client's connection: uvicorn's httptools protocol, made strict and made to let go.

In: bytes. Out: requests for the app; for what is no request, one JSON error and the end of the
connection. The rules that live only here are limits on clients: what two parsers could read
differently is refused; a head has a size and a time; trailers are no headers; a refusal never
overtakes the answers before it; a `/v1` request is cancelled when its client leaves.

Kept from uvicorn: the parser's setup, pipelining, flow control. A connection waits with one timer;
its keep-alive timer is armed once and looks, when it fires, how long nothing was asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from openbr.api.http import encode_error, new_request_id, send_error
from openbr.errors import InvalidRequestError, OpenbrError, RequestError, ServiceUnavailableError
from openbr.server.cycle import Cycle, run
from openbr.server.state import State

logger = logging.getLogger(__name__)

_WATCHED = frozenset({b"host", b"transfer-encoding", b"expect"})
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_TLS_HELLO = b"\x16\x03"


class _RefusedError(Exception):
    """Raised in a callback of the parser to stop it; carries what the client is told."""

    def __init__(self, error: OpenbrError) -> None:
        super().__init__(error)
        self.error = error


class _Exit:
    """The transport as a request's cycle sees it: its close is gentle (`Connection._leave`)."""

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
        self.access_log = self.config.access_log
        self._is_over = False
        self._in_head = False
        self._in_body = False
        self._hosts = 0
        self._host = b""
        # Bytes since the last whole head or piece of a body: a head so far, or framing.
        self._unframed = 0
        self._body_moved = False
        self._plain_head = b""
        self.cycle: Cycle | None = None  # type: ignore[assignment]
        self.pipeline: deque[tuple[Cycle, Any]] = deque()  # type: ignore[assignment]
        self._running: Cycle | None = None
        self._idle_since = 0.0
        self._refused: OpenbrError | None = None
        self._deaf = False
        self._leaving = False
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unwritten = 0

    # The transport calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._exit = _Exit(transport, self._leave)
        excess = len(self.connections) - self._limits.max_connections
        self._is_over = excess > 0
        if excess > self._limits.max_spare:
            transport.abort()
        else:
            self._wait(self._limits.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = self._deaf = True
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        self.pipeline.clear()
        for cycle in (self._running, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnect()
        self.resume_writing()
        self._cancel_task()
        self.parser = None  # type: ignore[assignment]
        self._exit.close = _nothing  # breaks the ring, so that no collection is needed
        self.server_state.lose_connection()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unframed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._parse_plain(data[exc.args[0] :])
        except httptools.HttpParserError as exc:
            if data.startswith(_TLS_HELLO) and self.cycle is None:
                self.server_state.tell_of_tls()
            self._refuse(_why(exc))
        else:
            if self._unframed > self._limits.max_head_bytes:
                self._refuse(_too_large())
            elif self._in_body:
                assert self.cycle is not None
                if self._timer is None and not self.cycle.response_complete:
                    self._wait(self._limits.body_s, self._check_body)
            elif self._is_idle():
                self._await_request()

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
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._hosts = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer: the request was let in by what its head said
        name = name.lower()
        if name in _WATCHED:
            self._check_header(name, value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        version = parser.get_http_version()
        self._check_head(version)
        if parser.should_upgrade():
            self._plain_head = self._encode_plain_head()
            return
        if self._timer is not None:
            self._stop_waiting()
        self._in_head = False
        self._in_body = True
        self._unframed = 0
        state = self.server_state
        running = self.cycle
        path, raw_path, query = state.split_url(self.url)
        self.cycle = cycle = Cycle(
            {
                "type": "http",
                "asgi": _ASGI,
                "http_version": version,
                "method": parser.get_method().decode("ascii"),
                "scheme": self.scheme,
                "path": path,
                "raw_path": raw_path,
                "query_string": query,
                "root_path": "",
                "headers": self.headers,
                "server": self.server,
                "client": self.client,
                "state": self.app_state.copy(),
            },
            self._exit,
            self.flow,
            self.loop,
            self.on_response_complete,
            state.date_line,
            version != "1.0"
            and parser.should_keep_alive()
            and not (self._is_over or state.draining),
            self.expect_100_continue,
        )
        if running is None or running.response_complete:
            self._start_asgi_task(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._unframed = 0
        self._body_moved = True
        cycle = self.cycle
        assert cycle is not None
        if not cycle.response_complete:
            cycle.add_body(body)

    def on_message_complete(self) -> None:
        if self._plain_head:
            return  # it begins again
        if self._timer is not None:
            self._stop_waiting()
        self._in_body = False
        self._unframed = 0
        assert self.cycle is not None
        self.cycle.end_body()

    def _encode_plain_head(self) -> bytes:
        """The request as if no upgrade had been asked. A client may always be refused one (RFC
        9110, 7.8), but the parser drops the body of a request that asks, and the HTTP client of
        Java asks for h2c whenever it is not told otherwise."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                options = [word.strip() for word in value.lower().split(b",")]
                value = b", ".join(w for w in options if w not in (b"upgrade", b"http2-settings"))
            if name not in (b"upgrade", b"http2-settings") and value:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _parse_plain(self, rest: bytes) -> None:
        head, self._plain_head = self._plain_head, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._unframed = 0
        self.data_received(head + rest)

    # The cycle calls

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._leaving:
            return
        if self._refused is not None and not self.pipeline:
            self._send_refusal(self._refused)
        elif self._exit.is_closing():
            return
        else:
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(self.pipeline.pop()[0])
            elif self._in_body:
                # The answer came before the whole body: the rest is dropped, for a while.
                self._wait(self._limits.body_rest_s, self._leave)
            else:
                self._await_request()

    def _start_asgi_task(self, cycle: Cycle) -> None:  # type: ignore[override]
        self._running = cycle
        app = _say_overloaded if self._is_over else self.app
        if self.access_log:
            app = _logged(app)
        cycle.task = task = self.loop.create_task(run(cycle, app, self.server_state.finish_task))
        self.tasks.add(task)

    # The server calls

    def shutdown(self) -> None:
        """The running answer is the last one. An idle connection stays, so that whoever asks
        meanwhile is told that this gateway is stopping, and not cut off in between."""
        for cycle in (self._running, self.cycle):
            if cycle is not None:
                cycle.keep_alive = False

    def close(self) -> None:
        self._leave()

    def abort(self) -> None:
        self.transport.abort()

    # Waiting

    def _is_idle(self) -> bool:
        """Whether no request is being answered and none is queued."""
        running = self._running
        return (running is None or running.response_complete) and not self.pipeline

    def _await_request(self) -> None:
        if self._in_head or self._unframed:
            if self._timer is None:
                self._wait(self._limits.head_s, self._head_is_late)
            return
        self._stop_waiting()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self._limits.keep_alive_s, self.timeout_keep_alive_handler
            )

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Armed once and not at every request: it looks how long nothing was asked."""
        self.timeout_keep_alive_task = None
        if not self._is_idle() or self._in_head or self._in_body or self._unframed:
            return  # the end of that arms it again
        rest = self._idle_since + self._limits.keep_alive_s - self.loop.time()
        if rest > 0.001:
            self.timeout_keep_alive_task = self.loop.call_later(
                rest, self.timeout_keep_alive_handler
            )
        else:
            self._leave()

    def _head_is_late(self) -> None:
        self._timer = None
        if self._in_head or self._unframed:
            message = f"the request's head was not whole after {self._limits.head_s:g} s"
            self._refuse(_error(408, "head_timeout", message))
        else:
            self._leave()

    def _check_body(self) -> None:
        self._timer = None
        if self._body_moved or self.flow.read_paused:
            self._body_moved = False
            self._wait(self._limits.body_s, self._check_body)
        else:
            message = f"nothing came of the request's body for {self._limits.body_s:g} s"
            self._refuse(_error(408, "body_timeout", message))

    def _watch_writing(self) -> None:
        self._unwritten = self.transport.get_write_buffer_size()
        if self._write_timer is None and self._unwritten:
            self._write_timer = self.loop.call_later(self._limits.write_s, self._check_writing)

    def _check_writing(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() < self._unwritten:
            self._watch_writing()
        else:
            self.transport.abort()

    # Refusing and leaving

    def _check_header(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
            self._host = value
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif value.lower() != b"chunked" or self.parser.get_http_version() == "1.0":
            raise _RefusedError(_bad("transfer-encoding may only be chunked, in HTTP/1.1"))

    def _check_head(self, version: str) -> None:
        if version != "1.1" and version != "1.0":
            raise _RefusedError(_bad(f"HTTP/{version} is not spoken here"))
        if self._hosts > 1 or (self._hosts == 0 and version == "1.1"):
            raise _RefusedError(_bad("a request has one Host header"))
        if self._unframed > self._limits.max_head_bytes:
            # That counts all that came with the head, so look closer.
            size = len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
            if size > self._limits.max_head_bytes:
                raise _RefusedError(_too_large())
        if len(self.headers) > self._limits.max_headers:
            raise _RefusedError(_too_large())
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise _RefusedError(_bad("too many requests at once on one connection"))
        if not self.url.startswith(b"/") and self.url != b"*":
            authority = self.url.partition(b"://")[2].partition(b"/")[0]
            if not authority or authority.lower() != self._host.lower():
                raise _RefusedError(_bad("this is no proxy: ask for a path"))

    def _refuse(self, error: OpenbrError) -> None:
        """Read no more. Finish the answers that stand before this refusal, then send it."""
        self._deaf = True
        self._stop_waiting()
        if self._in_body:
            broken = self.cycle
            assert broken is not None
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            elif broken.response_complete or broken.response_started:
                broken.disconnected = not broken.response_complete
                broken.wake()
                self._cancel_task()
                self._leave()
                return
            else:
                broken.disconnect()
                self._cancel_task()
                self._send_refusal(error)
                return
        if self._is_idle():
            self._send_refusal(error)
        else:
            self._refused = error

    def _send_refusal(self, error: OpenbrError) -> None:
        logger.debug("refused what %s sent: %s", self.client, error)
        self.transport.write(_encode_refusal(error, self.server_state.date_line))
        self._leave()

    def _leave(self) -> None:
        """Close, but so that the client gets what was written: a socket closed with unread input
        is reset, and a reset destroys an answer on its way."""
        if self._leaving:
            return
        is_input_left = self._in_body or self._in_head or self._unframed or self._deaf
        self._leaving = self._deaf = True
        self._unset_keepalive_if_required()
        self._stop_waiting()
        self.pipeline.clear()
        if is_input_left:
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._wait(self._limits.body_rest_s, self.transport.abort)
        else:
            self.transport.close()
            self._watch_writing()

    def _cancel_task(self) -> None:
        cycle = self._running
        if cycle is None or cycle.task is None or cycle.task.done():
            return
        if cycle.scope["path"].startswith("/v1/"):
            self.server_state.leave(cycle.task)


def _nothing() -> None:
    pass


def _logged(app: Any) -> Any:
    """An app whose requests are told, as they are answered."""

    async def logged(scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                where = f"{scope['client'][0]}:{scope['client'][1]}" if scope["client"] else ""
                logger.debug(
                    '%s "%s %s" %d', where, scope["method"], scope["path"], message["status"]
                )
            await send(message)

        await app(scope, receive, tell)

    return logged


async def _say_overloaded(scope: Any, receive: Any, send: Any) -> None:
    error = ServiceUnavailableError(
        "too many connections to this gateway", code="overloaded", retry_after_s=1
    )
    await send_error(send, error, new_request_id(), is_head=scope["method"] == "HEAD")


def _why(exc: httptools.HttpParserError) -> OpenbrError:
    if isinstance(exc.__context__, _RefusedError):
        return exc.__context__.error
    if isinstance(exc, httptools.HttpParserCallbackError):
        return _bad("this is no request that openbr can read")
    return _bad(f"this is not HTTP/1.1: {exc}")


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_http")


def _too_large() -> OpenbrError:
    return _error(431, "headers_too_large", "the request's headers are too large")


def _error(status: int, code: str, message: str) -> OpenbrError:
    error = RequestError(message, code=code)
    error.status = status
    return error


def _encode_refusal(error: OpenbrError, date_line: bytes) -> bytes:
    body = encode_error(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", new_request_id().encode()),
        (b"connection", b"close"),
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b%b%b\r\n%b" % (STATUS_LINE[error.status], date_line, lines, body)
