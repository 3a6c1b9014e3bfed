"""Events to a caller: kept alive in silence, ended soundly, or visibly broken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openbr import stream
from openbr.errors import OpenbrError, StreamInterruptedError
from openbr.stream import KEEP_ALIVE, relay


class Events:
    """Batches that a test hands out; an exception among them is raised."""

    def __init__(self, *batches: bytes | Exception) -> None:
        self.queue: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        for batch in batches:
            self.queue.put_nowait(batch)
        self.is_closed = False

    async def next(self) -> bytes:
        batch = await self.queue.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def close(self) -> None:
        self.is_closed = True


class Caller:
    """Receives an answer; `body` grows as it comes."""

    def __init__(self) -> None:
        self.body = b""
        self.start: Any = None
        self.is_complete = False
        self.changed = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def send(self, message: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.body += message["body"]
            self.is_complete = not message["more_body"]
        self.changed.set()

    async def until(self, body: bytes) -> None:
        async with asyncio.timeout(5):
            while self.body != body:
                await self.changed.wait()
                self.changed.clear()


def encode(error: OpenbrError) -> bytes:
    return b"error: " + error.message.encode()


def test_a_sound_answer() -> None:
    async def main() -> None:
        events, caller = Events(b"a", b"b", b""), Caller()
        assert await relay(events, caller.send, [(b"x", b"y")], encode)
        assert caller.start["status"] == 200 and caller.start["headers"] == [(b"x", b"y")]
        assert (caller.body, caller.is_complete, events.is_closed) == (b"ab", True, True)

    asyncio.run(main())


def test_a_broken_answer_stays_unfinished() -> None:
    async def main() -> None:
        events, caller = Events(b"a", StreamInterruptedError("cut")), Caller()
        assert not await relay(events, caller.send, [], encode)
        assert (caller.body, caller.is_complete) == (b"aerror: cut", False)
        assert events.is_closed

    asyncio.run(main())


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.05)

    async def main() -> None:
        events, caller = Events(b"a"), Caller()
        task = asyncio.create_task(relay(events, caller.send, [], encode))
        await caller.until(b"a" + KEEP_ALIVE + KEEP_ALIVE)
        events.queue.put_nowait(b"b")
        await caller.until(b"a" + KEEP_ALIVE + KEEP_ALIVE + b"b")
        events.queue.put_nowait(b"")
        assert await task
        assert KEEP_ALIVE.endswith(b"\n") and not KEEP_ALIVE.endswith(b"\n\n")

    asyncio.run(main())


def test_a_caller_that_does_not_read_gets_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.02)

    async def main() -> None:
        events, caller = Events(b"a"), Caller()
        task = asyncio.create_task(relay(events, caller.send, [], encode))
        await caller.until(b"a" + KEEP_ALIVE)
        caller.gate = asyncio.Event()
        events.queue.put_nowait(b"b")
        events.queue.put_nowait(b"")
        # Longer than several silences: the timer sees that a batch is on its way.
        _, pending = await asyncio.wait([task], timeout=0.2)
        assert pending
        caller.gate.set()
        assert await task
        assert caller.body.startswith(b"a" + KEEP_ALIVE) and caller.body.endswith(b"b")
        assert caller.body.count(KEEP_ALIVE) <= 3

    asyncio.run(main())


def test_a_caller_that_leaves_closes_the_upstream() -> None:
    async def main() -> None:
        events, caller = Events(b"a"), Caller()
        task = asyncio.create_task(relay(events, caller.send, [], encode))
        await caller.until(b"a")
        task.cancel(stream.CLIENT_GONE)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events.is_closed

    asyncio.run(main())
