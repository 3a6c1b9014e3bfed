"""An answer of an upstream, read piece by piece.

In: what a connection heard. Out: status, headers, the body's bytes, or the fault that broke it.
The rules that live only here: bytes that arrived are given before the fault that came after
them; a body without its proper end is a fault, never a short body.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from openbr.errors import UpstreamError, UpstreamProtocolError, UpstreamUnavailableError

MAX_DROPPED = 64 * 1024
"""Bytes of a released body that are waited for; reading more costs more than a new connection."""


class Source(Protocol):
    """The connection that an answer comes from."""

    def resume(self) -> None: ...

    def abort(self, error: UpstreamError) -> None: ...


class UpstreamResponse:
    """An answer whose body is still on its way, or whole.

    Threads: the event loop's only; one reader.
    """

    __slots__ = (
        "_connection",
        "_dropped",
        "_is_released",
        "_is_whole",
        "_loop",
        "_pieces",
        "_waiter",
        "arrived",
        "error",
        "headers",
        "heard_at",
        "is_heard",
        "is_lost",
        "status",
        "unread",
    )

    def __init__(self, connection: Source, loop: asyncio.AbstractEventLoop) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.arrived: asyncio.Future[None] = loop.create_future()
        """Done when there is a status or an error. Only then is the response handed out."""
        self.error: UpstreamError | None = None
        self.is_heard = False
        """Whether any byte came back."""
        self.is_lost = False
        """Whether the other side closed the connection before the answer was whole."""
        self.heard_at = 0.0
        self.unread = 0
        self._waiter: asyncio.Future[None] | None = self.arrived
        self._loop = loop
        self._connection: Source | None = connection
        self._pieces: list[bytes] = []
        self._is_whole = False
        self._is_released = False
        self._dropped = 0

    def header(self, name: bytes) -> bytes | None:
        """The first header of this lower-case name."""
        for found, value in self.headers:
            if found == name:
                return value
        return None

    async def next(self) -> bytes:
        """The next piece of the body, b"" at its complete end.

        A cancelled call loses nothing: close() afterwards, or call again.
        Raises: UpstreamError when the body broke or a limit of time was reached.
        """
        pieces = self._pieces
        while not pieces:
            if self._is_whole:
                return b""
            if self.error is not None:
                raise self.error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.unread = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    def take_whole(self, max_bytes: int) -> bytes | None:
        """The whole body where it has arrived and is not larger; else None, and read() it is."""
        if not self._is_whole or self.unread > max_bytes:
            return None
        pieces, self._pieces = self._pieces, []
        self.unread = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self, max_bytes: int) -> bytes:
        """The whole body. A failed or cancelled read gives the connection up.

        Raises: UpstreamProtocolError beyond max_bytes, UpstreamError as next() does.
        """
        whole = self.take_whole(max_bytes)
        if whole is not None:
            return whole
        parts: list[bytes] = []
        size = 0
        try:
            declared = self.header(b"content-length")
            if declared is not None and not self._is_whole and int(declared) > max_bytes:
                raise self._too_large(max_bytes)
            while part := await self.next():
                parts.append(part)
                size += len(part)
                if size > max_bytes:
                    raise self._too_large(max_bytes)
        except BaseException:
            self.close()
            raise
        return b"".join(parts)

    def close(self) -> None:
        """Give up: the socket closes at once, unless the answer was whole. Idempotent."""
        if self._connection is not None:
            self._connection.abort(UpstreamUnavailableError("the answer was given up"))
            self._pieces.clear()

    def release(self) -> None:
        """Nobody reads on: what is left of the body is dropped as it comes, if it is little, and
        the connection is kept; the idle and total timeouts go on. Idempotent."""
        self._pieces.clear()
        self.unread = 0
        self._is_released = True
        if self._connection is not None:
            self._connection.resume()

    def _too_large(self, max_bytes: int) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            f"the answer is larger than {max_bytes} bytes", upstream_status=self.status
        )

    # For the connection.

    def add(self, data: bytes) -> None:
        if self._is_released:
            self._dropped += len(data)
            if self._dropped > MAX_DROPPED:
                self.close()
            return
        self._pieces.append(data)
        self.unread += len(data)

    def finish(self, error: UpstreamError | None = None) -> None:
        """The body is whole, or broke. The connection is no longer this response's."""
        self._connection = None
        if error is None:
            self._is_whole = True
        elif self.error is None:
            self.error = error
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
