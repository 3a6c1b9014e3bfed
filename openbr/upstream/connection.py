"""One keep-alive connection to an upstream: a request out, an answer in.

In: a request's bytes. Out: an UpstreamResponse, fed as bytes arrive. The rules that live only here:
what of an answer is accepted, when silence becomes a timeout, how much may wait unread, and when
a connection may be used again.

A small answer costs its caller one await: head and body come in one read, the response is whole
when `arrived` is done, and the connection is back in its pool before its caller runs.

Time: one timer a connection, armed at most once for each deadline and never cancelled when a
request ends well; when it fires it looks what is due and goes to sleep for the rest. A busy
connection pays a comparison a request instead of a timer for each limit.

    idle --send--> waiting --head--> reading --whole--> idle
            (body being written)         \\--fault, close()--> gone
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from openbr.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from openbr.upstream.request import Timeouts
from openbr.upstream.response import UpstreamResponse

MAX_HEAD = 64 * 1024
"""Largest head of an answer, in bytes."""
MAX_UNREAD = 256 * 1024
"""Bytes of a body that may wait for their reader before the socket is left unread."""
WRITE_PIECE = 256 * 1024
"""A larger request body is written in such pieces, each when the one before has left."""

_CODINGS = (b"transfer-encoding", b"content-encoding")


class ConnectionPool(Protocol):
    """Who a connection tells about itself. `name` is host and port, for people."""

    name: str

    def opened(self, connection: Connection) -> None: ...

    def take_back(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """A socket that speaks HTTP/1.1, one request at a time.

    Threads: the event loop's only.
    """

    __slots__ = (
        "_bytes_of_head",
        "_drained",
        "_fault",
        "_headers",
        "_is_bodyless",
        "_is_complete",
        "_is_kept",
        "_is_open",
        "_is_read_paused",
        "_is_write_paused",
        "_is_writing",
        "_loop",
        "_parser",
        "_pool",
        "_request_at",
        "_response",
        "_timeouts",
        "_timer",
        "_timer_at",
        "_total_at",
        "_transport",
        "_until_close",
        "idle_since",
        "is_reused",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: ConnectionPool) -> None:
        self._loop = loop
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._response: UpstreamResponse | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._bytes_of_head = 0
        self._fault: UpstreamError | None = None
        self._is_open = False
        self._is_bodyless = False
        self._is_complete = False
        self._is_kept = False
        self._until_close = False
        self._is_read_paused = False
        self._is_write_paused = False
        self._is_writing = False
        self._drained: asyncio.Future[None] | None = None
        self._timeouts: Timeouts
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._request_at = 0.0
        self._total_at = 0.0
        self.idle_since = 0.0
        self.is_reused = False

    @property
    def is_usable(self) -> bool:
        return self._is_open and self._transport is not None and not self._transport.is_closing()

    # A request.

    def send(
        self, head: bytes, timeouts: Timeouts, total_at: float, *, is_bodyless: bool = False
    ) -> UpstreamResponse:
        """Write a request's head, with its body unless write_body() follows.

        `is_bodyless`: the answer has no body whatever its head says (HEAD).
        The response's `arrived` is to be awaited before anything else is done with it.
        """
        assert self._transport is not None and self._response is None
        loop = self._loop
        self._response = response = UpstreamResponse(self, loop)
        self._is_bodyless = is_bodyless
        self._is_complete = False
        self._is_kept = False
        self._until_close = False
        self._bytes_of_head = 0
        self._headers = []
        self._timeouts = timeouts
        self._request_at = now = loop.time()
        self._total_at = total_at
        self._transport.write(head)
        self._arm(min(now + timeouts.first_byte_s, total_at))
        return response

    async def write_body(self, body: bytes) -> None:
        """Write a large body at the pace of its reader; stop when an answer refuses it early."""
        transport, response = self._transport, self._response
        assert transport is not None and response is not None
        view = memoryview(body)
        self._is_writing = True
        self._arm(min(self._request_at + self._timeouts.idle_s, self._total_at))
        for at in range(0, len(body), WRITE_PIECE):
            if self._is_write_paused:
                self._drained = self._loop.create_future()
                try:
                    await self._drained
                finally:
                    self._drained = None
            if response.status >= 300 or self._response is not response:
                return  # not all was sent: _is_writing keeps this connection from being reused
            transport.write(view[at : at + WRITE_PIECE])
            self._request_at = self._loop.time()
        self._is_writing = False
        self._arm(min(self._request_at + self._timeouts.first_byte_s, self._total_at))

    def resume(self) -> None:
        """The reader took what was there."""
        if self._is_read_paused:
            self._is_read_paused = False
            if self._response is not None:
                self._response.heard_at = self._loop.time()
            if self.is_usable:
                assert self._transport is not None
                self._transport.resume_reading()

    def abort(self, error: UpstreamError) -> None:
        """Close the socket now, without flushing; whoever waits for the answer gets `error`."""
        self._is_open = False
        response, self._response = self._response, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        if response is not None:
            response.finish(error)
        self._wake_writer()

    # Transport callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            # Nothing was asked: it must not become the next request's answer.
            if self._is_open:
                self.abort(UpstreamProtocolError("spoke without being asked"))
            return
        response.is_heard = True
        response.heard_at = self._loop.time()
        was_waiting = not response.status
        if was_waiting:
            self._bytes_of_head += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._refuse(response, exc)
            return
        if self._fault is not None:
            self.abort(self._fault)
        elif self._is_complete:
            self._finish(response)
        elif response.status:
            if was_waiting:
                self._arm(min(response.heard_at + self._timeouts.idle_s, self._total_at))
                self._wake_writer()
            if response.unread > MAX_UNREAD and not self._is_read_paused:
                assert self._transport is not None
                self._is_read_paused = True
                self._transport.pause_reading()
            response.wake()
        elif self._bytes_of_head > MAX_HEAD:
            self.abort(self._head_too_large())

    def eof_received(self) -> bool:
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self._pool.forget(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._request_at = self._loop.time()
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # Ends of an answer.

    def _finish(self, response: UpstreamResponse) -> None:
        """The answer is whole: free the connection before its reader runs."""
        self._response = None
        is_quiet = not (self._is_writing or self._is_read_paused)
        if self._is_kept and is_quiet and self.is_usable:
            self.is_reused = True
            self.idle_since = response.heard_at
            self._pool.take_back(self)
            response.finish()
        else:
            response.finish()
            self.abort(UpstreamUnavailableError("not kept"))

    def _ended(self, exc: Exception | None) -> None:
        """The other side hung up."""
        self._is_open = False
        response = self._response
        if response is None:
            self.abort(UpstreamUnavailableError("closed while idle"))
            return
        if self._until_close and exc is None and self._fault is None:
            self._finish(response)
            return
        response.is_lost = True
        reason = f" ({exc})" if exc is not None and str(exc) else ""
        if response.status:
            error: UpstreamError = UpstreamUnavailableError(
                f"{self._pool.name} closed the connection in the middle of its answer{reason}",
                upstream_status=response.status,
            )
        else:
            error = UpstreamUnavailableError(
                f"{self._pool.name} closed the connection before it answered{reason}"
            )
        self.abort(error)

    def _refuse(self, response: UpstreamResponse, exc: Exception) -> None:
        """The parser stopped. What was whole before that stays whole."""
        if self._fault is not None:
            self.abort(self._fault)
        elif self._is_complete:
            self._is_kept = False
            self._finish(response)
        else:
            # The parser's words hold nothing of the answer itself.
            self.abort(
                UpstreamProtocolError(
                    f"{self._pool.name} sent an answer that is not HTTP: {exc}",
                    upstream_status=response.status or None,
                )
            )

    def _head_too_large(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"{self._pool.name} sent a head larger than {MAX_HEAD // 1024} KiB"
        )

    # Time.

    def _arm(self, at: float) -> None:
        """Make sure that the timer fires at `at` or before."""
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        response = self._response
        if response is None:
            return  # idle: the pool closes idle connections
        now = self._loop.time()
        due, what = self._due(response, now)
        # A loop counts in milliseconds and may be a hair early.
        if now < min(due, self._total_at) - 0.001:
            self._arm(min(due, self._total_at))
            return
        if now >= self._total_at - 0.001:
            what = "total timeout: its answer was not whole in time"
        self.abort(
            UpstreamTimeoutError(
                f"{self._pool.name}: {what}", upstream_status=response.status or None
            )
        )

    def _due(self, response: UpstreamResponse, now: float) -> tuple[float, str]:
        timeouts = self._timeouts
        if response.status:
            if response.unread or self._is_read_paused:
                return now + timeouts.idle_s, ""  # our reader is slow, not the upstream
            due = max(response.heard_at, self._request_at) + timeouts.idle_s
            return due, f"idle timeout: silent for {timeouts.idle_s:g} s inside its answer"
        if self._is_writing:
            due = self._request_at + timeouts.idle_s
            return due, f"idle timeout: read nothing of the request for {timeouts.idle_s:g} s"
        due = self._request_at + timeouts.first_byte_s
        return due, f"first-byte timeout: did not answer within {timeouts.first_byte_s:g} s"

    # Parser callbacks. They note faults instead of raising: the parser swallows exceptions.

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._is_kept = False  # bytes after the answer: not the next one's beginning

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is None or response.status:
            return  # trailers are dropped
        name = name.lower()
        if name in _CODINGS:
            self._check_coding(name, value.strip().lower())
        self._headers.append((name, value.strip()))

    def _check_coding(self, name: bytes, coding: bytes) -> None:
        """Only chunked, once, and no compression: we asked for none, and a bomb stays packed."""
        sound = (b"chunked",) if name == b"transfer-encoding" else (b"identity", b"")
        repeated = sound[0] == b"chunked" and any(name == n for n, _ in self._headers)
        if coding not in sound or repeated:
            shown = coding[:40].decode("latin-1", "replace")
            self._fault = UpstreamProtocolError(
                f"{self._pool.name} sent an answer with {name.decode()} {shown!r}, "
                "which was not asked for",
                upstream_status=self._parser.get_status_code(),
            )

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None or self._is_complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            if status < 100 or status == 101:
                self._fault = UpstreamProtocolError(
                    f"{self._pool.name} answered with status {status}, which was not asked for"
                )
            return
        headers = self._headers
        # Many bytes are no fault yet: much of the body may have come along.
        if self._bytes_of_head > MAX_HEAD and _size(headers) > MAX_HEAD:
            self._fault = self._head_too_large()
            return
        response.status = status
        response.headers = headers
        self._is_kept = self._parser.should_keep_alive()
        if self._is_bodyless:
            self._is_complete = True
            self._is_kept = False  # the parser waits for a body that does not come
        elif not self._is_kept and status not in (204, 304):
            self._until_close = not any(
                name in (b"content-length", b"transfer-encoding") for name, _ in headers
            )

    def on_body(self, data: bytes) -> None:
        response = self._response
        if response is not None and not self._is_complete and self._fault is None:
            response.add(data)

    def on_message_complete(self) -> None:
        response = self._response
        if response is not None and response.status:
            self._is_complete = True


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
