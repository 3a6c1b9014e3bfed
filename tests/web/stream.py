"""Reads an event stream of the pages while it is being written, as a browser would."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self

from web.world import World

DEADLINE_S = 5.0


@dataclass
class Event:
    id: str | None = None
    name: str = ""
    data: str = ""


@dataclass
class Reader:
    """`async with Reader(world, path) as reader: event = await reader.event()`."""

    world: World
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    _text: str = ""
    _messages: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    async def __aenter__(self) -> Self:
        path, _, query = self.path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1:18789"),
                (b"hx-request", b"true"),
                (b"accept-language", b"en"),
                *((k.encode(), v.encode()) for k, v in self.headers.items()),
            ],
            "client": ("127.0.0.1", 50000),
            "state": {"caller": self.world.caller},
        }
        self._leave = asyncio.Event()

        async def receive() -> Any:
            await self._leave.wait()
            return {"type": "http.disconnect"}

        self._task = asyncio.ensure_future(self.world.app(scope, receive, self._messages.put))
        start = await self._next()
        self.status = start["status"]
        self.answer_headers = {k.decode(): v.decode() for k, v in start["headers"]}
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave.set()
        async with asyncio.timeout(DEADLINE_S):
            await self._task

    async def _next(self) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await self._messages.get()

    async def event(self) -> Event | None:
        """The next event; None at the end of the stream."""
        while "\n\n" not in self._text:
            message = await self._next()
            self._text += message.get("body", b"").decode()
            if not message.get("more_body") and "\n\n" not in self._text:
                return None
        block, _, self._text = self._text.partition("\n\n")
        event, data = Event(), []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                event.id = value
            elif name == "event":
                event.name = value
            elif name == "data":
                data.append(value)
        event.data = "\n".join(data)
        return event

    async def rest(self) -> list[Event]:
        events = []
        while (event := await self.event()) is not None:
            events.append(event)
        return events
