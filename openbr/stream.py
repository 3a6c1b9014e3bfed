"""Room 6, out: a completion's batches of events -> the caller's socket.

In: an ASGI `send` and a stream of ready SSE bytes. Out: a started, fed and properly ended
answer. The rules that live only here: a keep-alive comment after 15 s of silence, only between
events and with a single newline (a blank line after a comment breaks a widely used client); an
answer that breaks after its first content ends with an error event and a cut body, because
clients take a clean end for a whole answer; the upstream is closed when the caller leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from openbr.errors import OpenbrError

CLIENT_GONE = "client gone"
"""The cancel message of a request whose caller hung up; the server sends it, the app expects it."""

KEEP_ALIVE_S = 15.0
KEEP_ALIVE = b": keep-alive\n"

Message = Mapping[str, Any]
Send = Callable[[Any], Awaitable[None]]


class EventStream(Protocol):
    """What a room hands over to be sent: whole events at a time, then b""."""

    async def next(self) -> bytes: ...

    def close(self) -> None: ...


async def relay(
    events: EventStream,
    send: Send,
    headers: list[tuple[bytes, bytes]],
    encode_error: Callable[[OpenbrError], bytes],
) -> bool:
    """Send a whole streamed answer; False when it broke and the body must stay unfinished.

    The caller of this function returns without completing the response then, and the server
    cuts the connection: that is how a client learns that the answer is not whole.
    """
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    pulse = _Pulse(send)
    try:
        while batch := await events.next():
            await pulse.send(batch)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True
    except OpenbrError as exc:
        await pulse.send(encode_error(exc))
        return False
    finally:
        pulse.stop()
        events.close()


class _Pulse:
    """Sends batches, and a comment when none came for a while.

    One timer for a stream, re-armed only when it fires: a busy stream pays one comparison.
    """

    __slots__ = ("_beat", "_last", "_loop", "_send", "_sending", "_timer")

    def __init__(self, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._sending = False
        self._last = self._loop.time()
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._check)
        self._beat: asyncio.Task[None] | None = None

    async def send(self, batch: bytes) -> None:
        self._last = self._loop.time()
        self._sending = True
        await self._send({"type": "http.response.body", "body": batch, "more_body": True})
        self._sending = False

    def _check(self) -> None:
        rest = self._last + KEEP_ALIVE_S - self._loop.time()
        if rest <= 0 and not self._sending:
            self._last = self._loop.time()
            self._beat = self._loop.create_task(self.send(KEEP_ALIVE))
        self._timer = self._loop.call_later(rest if rest > 0 else KEEP_ALIVE_S, self._check)

    def stop(self) -> None:
        self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()
