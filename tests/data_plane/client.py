"""A client that speaks HTTP/1.1 over one socket, and hides nothing of what comes back.

In: a gateway and the fields of a chat. Out: an Answer, whole, or piece by piece. Every wait has a
deadline.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from gateway_process import GatewayProcess

DEADLINE_S = 20.0
CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """`pieces`: the chunks of the body as they came. `complete`: its end was there."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def cache(self) -> str | None:
        return self.headers.get("x-openbr-cache")

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def is_stream(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Payloads of a stream that holds nothing but data lines, and ends with [DONE]."""
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == "" and all(block.startswith("data: ") for block in blocks)
        assert blocks.pop() == "data: [DONE]"
        return [json.loads(block[6:]) for block in blocks]

    def text(self) -> str:
        """What the model said, whichever form it came in."""
        if not self.is_stream:
            said: str = self.json()["choices"][0]["message"]["content"]
            return said
        choices = [choice for event in self.events() for choice in event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    def models(self) -> set[str]:
        """Every name that the answer gives to who answered."""
        told = self.events() if self.is_stream else [self.json()]
        return {self.headers["x-openbr-model"], *(one["model"] for one in told)}

    def usages(self) -> list[Any]:
        told = self.events() if self.is_stream else [self.json()]
        return [one["usage"] for one in told if one.get("usage") is not None]


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat that is deterministic unless `temperature` says otherwise."""
    return {
        "model": "fake/alpha",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        **fields,
    }


def encode(body: Any, path: str = CHAT, **headers: str) -> bytes:
    """A whole request; bytes are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = {"host": "localhost", "content-length": str(len(data)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in said.items())
    method = "POST" if data else "GET"
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left = 0  # bytes of the body, or -1: as chunks

    @classmethod
    async def connect(cls, gateway: GatewayProcess, receive_bytes: int = 0) -> Self:
        """receive_bytes: the socket's buffer, where it matters how much fits into it."""
        one = socket.socket()
        if receive_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", gateway.port))
        limit = receive_bytes or 1 << 16
        return cls(*await asyncio.open_connection(sock=one, limit=limit))

    async def send(self, body: Any, **headers: str) -> None:
        self._writer.write(encode(body, **headers))
        await self._writer.drain()

    async def head(self) -> Answer:
        """The next answer, without its body."""
        async with asyncio.timeout(DEADLINE_S):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        self._left = int(headers.get("content-length", -1))
        return Answer(int(first.split(" ")[1]), headers)

    async def piece(self, answer: Answer) -> bytes:
        """The next piece of the body; b"" at its end, whole or not."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                piece = await self._piece(answer)
            except (asyncio.IncompleteReadError, ConnectionError):
                return b""
        if piece:
            answer.pieces.append(piece)
        return piece

    async def _piece(self, answer: Answer) -> bytes:
        if self._left >= 0:
            piece = await self._reader.readexactly(self._left)
            self._left = 0
            answer.complete = True
            return piece
        line = await self._reader.readline()
        if not line:
            return b""
        piece = (await self._reader.readexactly(int(line, 16) + 2))[:-2]
        answer.complete = not piece
        return piece

    async def rest(self, answer: Answer) -> Answer:
        while not answer.complete and await self.piece(answer):
            pass
        return answer

    async def answer(self) -> Answer:
        return await self.rest(await self.head())

    async def ask(self, body: Any, **headers: str) -> Answer:
        await self.send(body, **headers)
        return await self.answer()

    def leave(self) -> None:
        """Hang up, whatever is still to come."""
        self._writer.transport.abort()


@asynccontextmanager
async def clients(
    gateway: GatewayProcess, count: int = 1, **options: int
) -> AsyncIterator[list[Client]]:
    made = [await Client.connect(gateway, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            one.leave()


async def ask(gateway: GatewayProcess, body: Any, **headers: str) -> Answer:
    async with clients(gateway) as (client,):
        return await client.ask(body, **headers)


async def told_so_far(gateway: GatewayProcess) -> None:
    """Return when the gateway has handled what was written to it before.

    A new connection is taken up in one turn of its loop, read in the next, answered in a third;
    in each of them the bytes that were there before are read as well.
    """
    for _ in range(3):
        answer = await ask(gateway, b"", path="/healthz")
        assert answer.status == 200
