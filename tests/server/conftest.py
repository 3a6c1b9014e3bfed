"""A server on a loopback socket in the test's own loop, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from openbr.server.connection import Connection
from openbr.server.lifecycle import Server
from openbr.server.sockets import open_sockets
from openbr.server.state import Limits

DEADLINE_S = 10.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection. Every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_bytewise(self, data: bytes) -> None:
        """As many packets as bytes, or close to it."""
        for i in range(len(data)):
            self.writer.write(data[i : i + 1])
            await asyncio.sleep(0)

    async def line(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readline()

    async def answer(self, *, is_head: bool = False) -> Answer:
        """The next answer, whole; one whose end is missing is not `complete`."""
        async with asyncio.timeout(DEADLINE_S):
            return await self._answer(is_head)

    async def _answer(self, is_head: bool) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            headers[name] = value
        answer = Answer(int(head[0].split(" ")[1]), headers, b"")
        if is_head:
            return answer
        if "content-length" in headers:
            answer.body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            await self._read_chunks(answer)
        return answer

    async def _read_chunks(self, answer: Answer) -> None:
        while size := int(await self.reader.readline() or b"-1", 16):
            if size < 0:
                answer.complete = False
                return
            answer.body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    async def end(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


@dataclass
class Running:
    """A server at work. `clients` are closed when the test ends."""

    server: Server
    port: int
    task: asyncio.Task[None]
    clients: list[Client] = field(default_factory=list)

    async def connect(self, **options: Any) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    def connections(self) -> list[Connection]:
        return [c for c in self.server.server_state.connections if isinstance(c, Connection)]

    async def ask(self, data: bytes) -> Answer:
        client = await self.connect()
        await client.send(data)
        return await client.answer()


@contextlib.asynccontextmanager
async def running(app: Any, **options: Any) -> AsyncIterator[Running]:
    """`limits` may be a dict of the ones that matter."""
    limits = options.pop("limits", {})
    options.setdefault("drain_s", 5.0)
    sockets = open_sockets("127.0.0.1", 0)
    started = asyncio.Event()
    server = Server(app, limits=Limits(**limits), on_started=started.set, **options)
    task = asyncio.create_task(server.serve(sockets))
    ready = asyncio.ensure_future(started.wait())
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if task.done():
        for one in sockets:
            one.close()
        await task
    found = Running(server, sockets[0].getsockname()[1], task)
    try:
        yield found
    finally:
        for client in found.clients:
            await client.close()
        server.stop()
        async with asyncio.timeout(DEADLINE_S):
            await task


async def eventually(is_so: Callable[[], object]) -> None:
    """Let the loop turn until it is so, within the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.001)


class App:
    """An ASGI application that notes what reaches it. `/v1/hang` and `/ui/hang` answer never,
    `/slow` when `go` is set, `/early` without reading, `/broken` and `/cut` badly."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, list[tuple[bytes, bytes]]]] = []
        self.cancelled: list[tuple[object, ...]] = []
        self.disconnected: list[str] = []
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        path = scope["path"]
        self.requests.append((scope["method"], path, list(scope["headers"])))
        self.entered.set()
        try:
            handler: Callable[..., Awaitable[None]] = getattr(
                self, path.rpartition("/")[2] or "echo", self.echo
            )
            await handler(scope, receive, send)
        except asyncio.CancelledError as exc:
            self.cancelled.append(exc.args)

    async def live(self, receive: Any, send: Any) -> None:
        for what in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{what}"
            self.events.append(what)
            await send({"type": f"lifespan.{what}.complete"})

    async def body(self, receive: Any, path: str = "") -> bytes:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.append(path)
                return body
            body += message["body"]
            if not message["more_body"]:
                return body

    async def say(self, send: Any, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        length = (b"content-length", b"%d" % len(body))
        start = {"type": "http.response.start", "status": 200, "headers": [length, *headers]}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = await self.body(receive, scope["path"])
        names = [name.decode() for name, _ in scope["headers"]]
        said = {"path": scope["path"], "body": body.decode("latin-1"), "headers": names}
        await self.say(send, json.dumps(said).encode())

    async def hang(self, scope: Any, receive: Any, send: Any) -> None:
        await self.body(receive, scope["path"])
        message = await receive()
        assert message["type"] == "http.disconnect"
        self.disconnected.append(scope["path"])

    async def slow(self, scope: Any, receive: Any, send: Any) -> None:
        await self.body(receive)
        await self.go.wait()
        await self.say(send, b"slow")

    async def stream(self, scope: Any, receive: Any, send: Any) -> None:
        await self.body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.go.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async def flood(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async def early(self, scope: Any, receive: Any, send: Any) -> None:
        await self.say(send, b"no need to read that")

    async def early_close(self, scope: Any, receive: Any, send: Any) -> None:
        await self.say(send, b"no need to read that", (b"connection", b"close"))

    async def cut(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half an ans", "more_body": True})

    async def broken(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a defect")

    async def silent(self, scope: Any, receive: Any, send: Any) -> None:
        pass


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """asyncio.run on each kind of loop."""
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(scenario)

    return run
