"""The server itself: sockets, parsing of requests, the record of what happened.

Not here: what an answer says (answers.py) and OpenAI's shapes (openai.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import httptools

DEADLINE_S = 10.0


@dataclass
class Request:
    """A request as it arrived. `headers` has lower-case names; the last of equals wins."""

    method: str
    path: str
    headers: dict[str, str]
    header_list: list[tuple[str, str]]
    body: bytes
    connection: Connection
    received_at: float = field(default_factory=time.monotonic)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Connection:
    """One accepted socket. `closed_at` (time.monotonic) and `closed_by` are None while it lives."""

    number: int
    opened_at: float
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0
    received_bytes: int = 0
    is_blocked: bool = False
    closed_at: float | None = None
    closed_by: str | None = None


class Gate:
    """Holds an answer back until the test says so. Any thread may open it or release permits."""

    def __init__(self) -> None:
        self._permits = 0
        self._is_open = False
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def release(self, permits: int = 1) -> None:
        with self._lock:
            self._permits += permits
            waiters, self._waiters = self._waiters, []
        _wake(waiters)

    def open(self) -> None:
        self._is_open = True
        self.release(0)

    async def wait(self) -> None:
        """Take one permit; an open gate needs none."""
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self._is_open:
                    return
                if self._permits:
                    self._permits -= 1
                    return
                future: asyncio.Future[None] = loop.create_future()
                self._waiters.append((loop, future))
            await future


def _wake(waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]) -> None:
    for loop, future in waiters:
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda f=future: None if f.done() else f.set_result(None))


class Exchange:
    """One request and the socket that its answer goes to."""

    def __init__(self, upstream: FakeUpstream, socket_: _Socket, request: Request) -> None:
        self.upstream = upstream
        self.request = request
        self._socket = socket_
        self.kept = True

    async def send(self, data: bytes) -> None:
        """Write, and wait while the client does not read."""
        self._socket.write(data)
        self._socket.connection.sent_bytes += len(data)
        await self._socket.drained()

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def close(self) -> None:
        self.kept = False
        self._socket.hang_up("upstream")

    def reset(self) -> None:
        """Close with RST: what was sent and not yet read is lost to the client."""
        self.kept = False
        self._socket.reset()

    def half_close(self) -> None:
        self.kept = False
        self._socket.transport.write_eof()

    def stop_reading(self) -> None:
        """Leave what the client still sends unread."""
        self._socket.transport.pause_reading()

    async def silence(self) -> None:
        """Say nothing until the client hangs up or the server stops."""
        self.kept = False
        await asyncio.get_running_loop().create_future()


Answer = Callable[[Exchange], Awaitable[None]]


class FakeUpstream:
    """See the module docstring.

    `tls`: a server-side SSLContext. `reading`: a Gate; until it opens nothing is read from the
    clients. `early`: answer when a request's head is there, before its body.
    Threads: the recorded facts may be read from any thread; they only grow.
    """

    def __init__(
        self,
        *answers: Answer,
        tls: ssl.SSLContext | None = None,
        reading: Gate | None = None,
        early: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        self.answers: list[Answer] = list(answers)
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.errors: list[BaseException] = []
        self.port = 0
        self._host = host
        self._tls = tls
        self._reading = reading
        self._early = early
        self._sockets: set[_Socket] = set()
        self._server: asyncio.Server | None = None
        self._condition = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def open_connections(self) -> list[Connection]:
        return [c for c in self.connections if c.closed_at is None]

    async def answer(self, exchange: Exchange) -> None:
        """What a request gets. Subclasses may look at `exchange.request`."""
        number = self.requests.index(exchange.request)
        if not self.answers:
            raise AssertionError(f"no answer for {exchange.request.method}")
        await self.answers[min(number, len(self.answers) - 1)](exchange)

    # Waiting for facts.

    def wait(self, fact: Callable[[Self], Any], timeout_s: float = DEADLINE_S) -> None:
        """Block this thread until `fact(self)` is true. Not for the loop the server runs in."""
        with self._condition:
            if not self._condition.wait_for(lambda: fact(self), timeout_s):
                raise TimeoutError(f"not so within {timeout_s} s; {self._state()}")

    async def until(self, fact: Callable[[Self], Any], timeout_s: float = DEADLINE_S) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    future: asyncio.Future[None] = loop.create_future()
                    self._waiters.append((loop, future))
                    if fact(self):
                        return
                    await future
        except TimeoutError:
            raise TimeoutError(f"not so within {timeout_s} s; {self._state()}") from None

    def _state(self) -> str:
        return f"{len(self.requests)} requests, connections: {self.connections}"

    def changed(self) -> None:
        """Facts changed: let those who wait look again."""
        with self._condition:
            self._condition.notify_all()
        waiters, self._waiters = self._waiters, []
        _wake(waiters)

    # Life.

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Socket(self), self._host, self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        sockets = list(self._sockets)
        for one in sockets:
            one.transport.abort()
        for one in sockets:
            await one.gone()
        self._server = None
        if self.errors:
            raise self.errors[0]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        ready = threading.Event()
        failed: list[BaseException] = []

        async def serve() -> None:
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()
            self._stop = lambda: loop.call_soon_threadsafe(stopped.set) and None
            async with self:
                ready.set()
                await stopped.wait()

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as exc:
                failed.append(exc)
            finally:
                ready.set()

        self._failed = failed
        self._thread = threading.Thread(target=run, name="fake-upstream", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            raise failed[0]
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._thread is not None and self._stop is not None
        if self._thread.is_alive():
            self._stop()
        self._thread.join(DEADLINE_S)
        if self._failed and exc[0] is None:
            raise self._failed[0]


class _Socket(asyncio.Protocol):
    """One accepted connection: parses requests, runs one answer after the other."""

    def __init__(self, upstream: FakeUpstream) -> None:
        self.upstream = upstream
        self.connection = Connection(len(upstream.connections), time.monotonic())
        self._parser = httptools.HttpRequestParser(self)
        self._queue: asyncio.Queue[Request | None] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self._headers: list[tuple[str, str]] = []
        self._url = b""
        self._request: Request | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        # Blocked as soon as anything waits. Not 0: a TLS transport would never call it empty.
        transport.set_write_buffer_limits(high=1, low=0)
        with contextlib.suppress(OSError):
            # A small buffer, so that a client that stops reading is felt here soon.
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024
            )
        self.upstream.connections.append(self.connection)
        self.upstream._sockets.add(self)
        self._task = asyncio.get_running_loop().create_task(self._answer_all())
        self._reader: asyncio.Task[None] | None = None
        if self.upstream._reading is not None:
            # Not at once: uvloop begins to read after this callback.
            asyncio.get_running_loop().call_soon(transport.pause_reading)
            self._reader = asyncio.get_running_loop().create_task(self._read_later())
        self.upstream.changed()

    async def _read_later(self) -> None:
        assert self.upstream._reading is not None
        await self.upstream._reading.wait()
        if not self.transport.is_closing():
            self.transport.resume_reading()

    async def _answer_all(self) -> None:
        while (request := await self._queue.get()) is not None:
            exchange = Exchange(self.upstream, self, request)
            try:
                await self.upstream.answer(exchange)
            except ConnectionError:
                return
            except BaseException as exc:
                if not isinstance(exc, asyncio.CancelledError):
                    self.upstream.errors.append(exc)
                    self.hang_up("upstream")
                raise
            if not exchange.kept:
                return

    def write(self, data: bytes) -> None:
        if self.transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self.transport.write(data)

    async def drained(self) -> None:
        await self._writable.wait()
        if self.transport.is_closing():
            raise ConnectionResetError("the client is gone")

    def pause_writing(self) -> None:
        self.connection.is_blocked = True
        self._writable.clear()
        self.upstream.changed()

    def resume_writing(self) -> None:
        self.connection.is_blocked = False
        self._writable.set()
        self.upstream.changed()

    def hang_up(self, by: str) -> None:
        self.connection.closed_by = self.connection.closed_by or by
        self.transport.close()

    def reset(self) -> None:
        self.connection.closed_by = "upstream"
        linger = struct.pack("ii" if hasattr(socket, "AF_UNIX") else "hh", 1, 0)
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
        self.transport.abort()

    async def gone(self) -> None:
        tasks = [task for task in (self._task, self._reader) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def data_received(self, data: bytes) -> None:
        self.connection.received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as exc:
            self.upstream.errors.append(exc)
            self.hang_up("upstream")
        self.upstream.changed()

    def eof_received(self) -> bool:
        self.connection.closed_by = self.connection.closed_by or "client"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.closed_at = time.monotonic()
        self.connection.closed_by = self.connection.closed_by or "client"
        self._writable.set()
        self._task.cancel()
        if self._reader is not None:
            self._reader.cancel()
        self.upstream._sockets.discard(self)
        self.upstream.changed()

    # httptools callbacks.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        headers = {name.lower(): value for name, value in self._headers}
        self._request = Request(
            self._parser.get_method().decode(),
            self._url.decode("latin-1"),
            headers,
            self._headers,
            b"",
            self.connection,
        )
        self._headers, self._url, self._body = [], b"", bytearray()
        if self.upstream._early:
            self._arrived()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        assert self._request is not None
        self._request.body = bytes(self._body)
        if not self.upstream._early:
            self._arrived()

    def _arrived(self) -> None:
        assert self._request is not None
        self.connection.requests.append(self._request)
        self.upstream.requests.append(self._request)
        self._queue.put_nowait(self._request)
