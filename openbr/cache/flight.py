"""One call of an upstream and everybody who waits for its answer.

In: how to ask the upstream; callers who come and go. Out: to each of them the whole answer, from
its beginning. The rules that live only here: the call belongs to nobody, so the first caller may
leave like any other; when the last one leaves, the upstream is let go at once; a failure goes to
each of them as an exception of its own, and nobody asks again; nothing is lost to a slow reader.

Theory of operation. The first caller opens the call in its own task; a task of the flight's own
would cost every answer 4 µs for the sake of the few that are joined. When that caller leaves while
others wait, its task is spared: it goes on for them, with nobody to write to. Only where a task is
cancelled by somebody who does not ask, the call is made again. After the opening, whoever has read
everything asks the upstream for more, and those who come meanwhile wait for that one. If it is
cancelled, the next one asks: `next()` of a ChatStream loses nothing by that.

What has passed is kept while it is small enough to be kept for later. Beyond that a flight takes
no more callers, forgets what all of them have read, and asks for more only while the slowest is
less than MAX_AHEAD behind.

It is kept in a list of the very pieces that were sent, not in a MemoryArena: a caller who joins
late, or reads slowly, needs single pieces before the end, and an arena gives all it has, once. It
would not pay either: to collect 200 chunks (31 KiB) and join them takes 4.5 µs with the list and
5.8 with an arena, which holds 32 KiB meanwhile where the list has 40, but of pieces that the
sockets hold anyway (bench/bench_cache.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from openbr.cache.kept import KeptAnswer
from openbr.cache.replay import (
    DONE,
    UNREADABLE,
    EventFolder,
    encode_usage_event,
    is_usage_event,
    read_text,
)
from openbr.errors import OpenbrError, ServiceUnavailableError, UpstreamProtocolError
from openbr.providers.base import ChatStream, Completion
from openbr.records import Answer, Deployment
from openbr.stream import CLIENT_GONE

MAX_AHEAD = 1024 * 1024
"""Bytes that the fastest reader of a flight too large to be kept may be ahead of the slowest."""
MAX_FOLDED = 64 * 1024 * 1024
"""Bytes of events that are joined to one body for a caller that joined a stream."""

Opened = ChatStream | Completion
_Opened = TypeVar("_Opened", ChatStream, Completion)
FlightName = tuple[bytes, tuple[Deployment, ...]]
"""A request's key, and who may answer in the deployment's place."""


class Flight:
    """Threads: event loop only."""

    __slots__ = (
        "_first",
        "_has_inline_usage",
        "_is_pulling",
        "_is_spared",
        "_leader",
        "_loop",
        "_max_kept",
        "_on_end",
        "_opening",
        "_pieces",
        "_size",
        "_start",
        "_usage_at",
        "_waiters",
        "answer",
        "deployment",
        "error",
        "is_done",
        "is_large",
        "landed",
        "name",
        "readers",
        "stream",
    )

    def __init__(
        self,
        name: FlightName,
        deployment: Deployment,
        max_kept: int,
        on_end: Callable[[Flight], None],
    ) -> None:
        """max_kept: bytes. on_end: called once when nobody can join any more: it landed, failed,
        is too large, or everybody left."""
        self.name = name
        self.deployment = deployment
        self.answer: Answer | None = None
        self.stream: ChatStream | None = None
        self.landed: KeptAnswer | None = None
        """The whole answer; None also at the end of one that was too large."""
        self.error: BaseException | None = None
        self.is_done = False
        self.is_large = False
        self.readers: dict[FlightStream, None] = {}
        self._max_kept = max_kept
        self._on_end: Callable[[Flight], None] | None = on_end
        self._loop = asyncio.get_running_loop()
        self._leader: asyncio.Task[Any] | None = None
        self._is_spared = False
        self._opening: asyncio.Task[None] | None = None
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._is_pulling = False
        self._pieces: list[bytes] = []
        self._first = 0  # the number of the first piece that is still here
        self._size = 0
        self._start = b""  # the first piece, for its id and time
        self._usage_at = -1  # the number of the piece that tells the usage
        self._has_inline_usage = False

    @property
    def is_open(self) -> bool:
        """Whether the upstream has answered: by a stream, an answer, or an error."""
        return self.stream is not None or self.is_done or self.error is not None

    @property
    def end(self) -> int:
        """The number that the next piece will have."""
        return self._first + len(self._pieces)

    async def lead(self, ask: Callable[[], Awaitable[_Opened]]) -> _Opened:
        """Ask the upstream in the first caller's own task. Raises: what `ask` raises.

        If that task is cancelled while others wait, they are asked for again, by a task of the
        flight's own; whoever cancels may `spare` it instead.
        """
        self._leader = asyncio.current_task()
        try:
            opened = await ask()
        except asyncio.CancelledError:
            self._leader = None
            if self.readers and self.error is None:
                self._opening = self._loop.create_task(self._reopen(ask))
            else:
                self.fail(ServiceUnavailableError("the answer was given up before it began"))
            raise
        except Exception as exc:
            self._leader = None
            self.fail(exc)
            raise
        self._leader = None
        self._adopt(opened)
        if self._is_spared:
            raise asyncio.CancelledError(CLIENT_GONE)
        return opened

    def spare(self, task: asyncio.Task[None]) -> bool:
        """The caller of this task left. Whether the task is to go on, for others."""
        if self._leader is not task or not self.readers:
            return False
        self._is_spared = True
        return True

    async def wait(self) -> None:
        """Until something is new. Asks the upstream for more if nobody else does and it may."""
        is_full = self.is_large and self._size >= MAX_AHEAD
        if self.stream is None or self._is_pulling or is_full:
            waiter = self._loop.create_future()
            self._waiters[waiter] = None
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)
            return
        self._is_pulling = True
        try:
            batch = await self.stream.next()
            if batch:
                self._add(batch)
            else:
                self._land()
        except Exception as exc:  # for every reader, not only for the one that asked
            self.fail(exc)
        finally:
            self._is_pulling = False
            self._wake()

    def take(self, reader: FlightStream, include_usage: bool) -> bytes:
        """What the reader has not read yet; b"" where that was nothing for it."""
        at, end = reader.at - self._first, len(self._pieces)
        reader.at = self.end
        if end - at == 1 and self._usage_at != reader.at - 1:
            batch = self._pieces[at]
        else:
            pieces = self._pieces[at:]
            usage_at = self._usage_at - self._first - at
            if not include_usage and usage_at >= 0:
                del pieces[usage_at]
            batch = b"".join(pieces)
        if self.is_large:
            self._forget()
        return batch

    def leave(self, reader: FlightStream) -> None:
        """The reader wants no more. The last one takes the upstream's answer with it."""
        if self.readers.pop(reader, self) is self:
            return
        if self.readers:
            if self.is_large:
                self._forget()
        elif self.error is None:
            if not self.is_done and (self._leader is None or self._is_spared):
                self.fail(ServiceUnavailableError("nobody waits for this answer"))
        elif isinstance(self.error, OpenbrError):
            # Its frames hold this flight: without them nothing is left for the collector. Each
            # reader's copy has the traceback still.
            self.error.__traceback__ = None

    def fail(self, error: BaseException) -> None:
        """End it for everybody. Lets the upstream go."""
        if self.is_done or self.error is not None:
            return
        self.error = error
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._leader is not None:
            self._leader.cancel(CLIENT_GONE)
        if self.stream is not None:
            self.stream.close()
        self._end()
        self._wake()

    async def _reopen(self, ask: Callable[[], Awaitable[Opened]]) -> None:
        try:
            opened = await ask()
        except asyncio.CancelledError:
            self._opening = None
            self.fail(ServiceUnavailableError("the answer was given up before it began"))
            raise
        except Exception as exc:  # handed to those who wait; this task has nobody to tell
            self._opening = None
            self.fail(exc)
            return
        self._opening = None
        self._adopt(opened)

    def _adopt(self, opened: Opened) -> None:
        """The upstream has answered."""
        self.answer = opened.answer
        if isinstance(opened, Completion):
            if self.error is None:
                self.landed = KeptAnswer.of(opened.answer, body=opened.body)
                self.is_done = True
                self._end()
        elif self.error is None:
            self.stream = opened
        else:
            opened.close()  # everybody left while the last step of the opening was due
        if self._waiters:
            self._wake()

    def _add(self, batch: bytes) -> None:
        assert self.stream is not None
        if not self._start:
            self._start = batch
        usage = self.stream.answer.usage
        for piece in self._split(batch) if usage is not None and self._usage_at < 0 else (batch,):
            self._pieces.append(piece)
            self._size += len(piece)
        if not self.is_large and self._size > self._max_kept:
            self.is_large = True
            self._end()
        if self.is_large:
            self._forget()

    def _split(self, batch: bytes) -> list[bytes]:
        """A batch with the event that tells the usage as a piece of its own.

        Called once the usage is known and until that event has passed. An upstream that was not
        asked for it does not send it: one is made, for those callers who want it.
        """
        if b'"choices":[]' in batch or b'"choices": []' in batch:
            pieces = batch.split(b"\n\n")[:-1]
            for number, event in enumerate(pieces):
                if event.startswith(b"data: {") and is_usage_event(event[6:]):
                    self._usage_at = self.end + (number > 0)
                    parts = (pieces[:number], [event], pieces[number + 1 :])
                    return [b"\n\n".join([*part, b""]) for part in parts if part]
        if not batch.endswith(DONE):
            self._has_inline_usage |= b'"usage":{' in batch or b'"usage": {' in batch
        elif not (self._has_inline_usage or b'"usage":{' in batch or b'"usage": {' in batch):
            assert self.stream is not None and self.stream.answer.usage is not None
            before = batch.removesuffix(DONE)
            made = encode_usage_event(self._start, self.stream.answer.usage)
            self._usage_at = self.end + bool(before)
            return [before, made, DONE] if before else [made, DONE]
        return [batch]

    def _land(self) -> None:
        assert self.stream is not None
        self.stream.close()
        if not self.is_large:
            pieces = self._pieces
            at = self._usage_at
            usage_event = pieces[at] if at >= 0 else b""
            others = [*pieces[:at], *pieces[at + 1 :]] if at >= 0 else pieces
            self.landed = KeptAnswer.of(
                self.stream.answer,
                events=b"".join(others),
                tail_bytes=sum(map(len, pieces[at + 1 :])) if at >= 0 else 0,
                usage_event=usage_event,
            )
        self.is_done = True
        self._end()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)

    def _forget(self) -> None:
        """Drop the pieces that every reader has read."""
        number = min((reader.at for reader in self.readers), default=self.end) - self._first
        if number > 0:
            was_full = self._size >= MAX_AHEAD
            self._size -= sum(map(len, self._pieces[:number]))
            del self._pieces[:number]
            self._first += number
            if was_full and self._size < MAX_AHEAD:
                self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class FlightStream(ChatStream):
    """One caller's place in a flight: its own answer, and how far it has read.

    `at`: the number of the piece that it reads next.
    """

    def __init__(self, flight: Flight, include_usage: bool, cache: str) -> None:
        self.answer = Answer(deployment=flight.deployment, cache=cache)
        self.at = 0
        self._flight = flight
        self._include_usage = include_usage
        self._given = b""
        flight.readers[self] = None

    @property
    def text(self) -> str:  # type: ignore[override]
        """Read when it is asked for: only the pages do."""
        return read_text(self._given)

    def begin(self) -> ChatStream:
        """What to read from, once the upstream has answered."""
        landed = self._flight.landed
        if self._flight.stream is None and landed is not None:
            self.close()
            return landed.stream(self._include_usage, self.answer.cache)
        self._meet()
        return self

    async def open(self) -> ChatStream:
        """Wait for the upstream's answer. Returns what to read from.

        Cancelled or failed, it gives up its place. Raises: what the upstream's opening raised.
        """
        flight = self._flight
        try:
            while not flight.is_open:
                await flight.wait()
            if flight.stream is None and flight.error is not None:
                raise _again(flight.error)
            return self.begin()
        except BaseException:
            self.close()
            raise

    async def complete(self) -> Completion:
        """Wait for the whole answer, as a body. Gives up its place, however it ends.

        Raises: what the opening or the stream raised.
        """
        flight = self._flight
        try:
            while flight.landed is None:
                if flight.error is not None:
                    raise _again(flight.error)
                if flight.is_large:
                    return await self._fold()
                await flight.wait()
            return flight.landed.completion(self.answer.cache)
        finally:
            self.close()

    async def next(self) -> bytes:
        flight = self._flight
        while self in flight.readers:
            if self.at < flight.end:
                batch = flight.take(self, self._include_usage)
                if batch:
                    self._learn()
                    self._given = batch
                    return batch
            elif flight.is_done:
                break
            elif flight.error is not None:
                raise _again(flight.error)
            else:
                await flight.wait()
        self._given = b""
        return b""

    def close(self) -> None:
        self._flight.leave(self)

    async def _fold(self) -> Completion:
        """A body from a stream that is too large to be kept: piece by piece."""
        self._meet()
        provider = self.answer.deployment.provider
        folder = EventFolder()
        size = 0
        while batch := await self.next():
            size += len(batch)
            if size > MAX_FOLDED:
                raise UpstreamProtocolError(
                    f"{provider}'s answer is larger than {MAX_FOLDED} bytes", provider=provider
                )
            try:
                folder.feed(batch)
            except UNREADABLE as exc:
                raise UpstreamProtocolError(
                    f"{provider}'s answer cannot be read", provider=provider
                ) from exc
        return Completion(body=folder.body(), answer=self.answer)

    def _meet(self) -> None:
        """Take over who answers."""
        told = self._flight.answer
        if told is not None:
            self.answer.deployment = told.deployment
            self.answer.fallback = told.fallback
            self._learn()

    def _learn(self) -> None:
        """Take over what the upstream's stream has told so far."""
        told, mine = self._flight.answer, self.answer
        if told is not None:
            mine.upstream_model = told.upstream_model
            mine.finish_reason = told.finish_reason
            mine.usage = told.usage


def _again(error: BaseException) -> BaseException:
    """The same failure as an exception of its own: each one that is raised gathers its own
    traceback. What is not ours to copy is raised as it is."""
    if not isinstance(error, OpenbrError):
        return error
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    copy.__suppress_context__ = error.__suppress_context__
    return copy.with_traceback(error.__traceback__)
