"""An answer as the cache keeps it, and as it is given again.

In: what an upstream answered, as events or as a body. Out: the same as events or as a body, with
fresh facts. The rules that live only here: the form in which an answer came is given again byte
for byte, the other one is made once, when it is first asked for; the event that tells the usage
is kept apart, because one caller wants it and the next one does not.
"""

from __future__ import annotations

import msgspec

from openbr.cache.replay import (
    UNREADABLE,
    body_of,
    events_of,
    has_sound_end,
    has_sound_end_body,
    read_text,
)
from openbr.errors import UpstreamProtocolError
from openbr.providers.base import ChatStream, Completion
from openbr.records import Answer, Deployment, Usage

OVERHEAD_BYTES = 640
"""What an entry costs besides its answer: key, slot, facts, the heads of its bytes. Measured with
20,000 entries: 615 bytes as events with their usage, 560 as a body; 830 where the cache is pure."""


class KeptAnswer(msgspec.Struct, gc=False):
    """A whole answer and its facts. `events` and `body` are b"" until that form is there.

    `events` has all events but the one that tells the usage; that one belongs before the last
    `tail_bytes` of them. `kept_at`: monotonic seconds.
    """

    deployment: Deployment
    upstream_model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    fallback: str | None = None
    events: bytes = b""
    tail_bytes: int = 0
    usage_event: bytes = b""
    body: bytes = b""
    kept_at: float = 0.0
    is_sound: bool | None = None

    @classmethod
    def of(
        cls,
        answer: Answer,
        *,
        events: bytes = b"",
        tail_bytes: int = 0,
        usage_event: bytes = b"",
        body: bytes = b"",
    ) -> KeptAnswer:
        return cls(
            answer.deployment,
            answer.upstream_model,
            answer.finish_reason,
            answer.usage,
            answer.fallback,
            events,
            tail_bytes,
            usage_event,
            body,
            0.0,
            answer.is_sound,
        )

    @property
    def size(self) -> int:
        """Bytes in memory, near enough."""
        return OVERHEAD_BYTES + len(self.events) + len(self.usage_event) + len(self.body)

    def is_whole(self) -> bool:
        """Whether every choice came to a sound end of its own, and not to a limit."""
        if self.is_sound is not None:
            return self.is_sound  # its adapter has looked already
        if self.events:
            return has_sound_end(self.events, self.finish_reason)
        return has_sound_end_body(self.body)

    def make_events(self) -> None:
        """Raises: UpstreamProtocolError for a body that nobody could read as a completion."""
        if not self.events:
            try:
                self.events, self.tail_bytes, self.usage_event = events_of(self.body)
            except UNREADABLE as exc:
                raise self._unreadable() from exc

    def make_body(self) -> None:
        """Raises: UpstreamProtocolError for events that nobody could read."""
        if not self.body:
            try:
                self.body = body_of(self.events + self.usage_event)
            except UNREADABLE as exc:
                raise self._unreadable() from exc

    def stream_bytes(self, include_usage: bool) -> bytes:
        """All events. `make_events` comes first."""
        if not include_usage or not self.usage_event:
            return self.events
        head = len(self.events) - self.tail_bytes
        return b"".join((self.events[:head], self.usage_event, self.events[head:]))

    def answer(self, cache: str) -> Answer:
        return Answer(
            self.deployment,
            self.upstream_model,
            self.finish_reason,
            self.usage,
            self.fallback,
            None,
            cache,
        )

    def _unreadable(self) -> UpstreamProtocolError:
        provider = self.deployment.provider
        return UpstreamProtocolError(f"{provider}'s answer cannot be read", provider=provider)

    def stream(self, include_usage: bool, cache: str) -> KeptStream:
        self.make_events()
        return KeptStream(self.answer(cache), self.stream_bytes(include_usage))

    def completion(self, cache: str) -> Completion:
        self.make_body()
        return Completion(self.body, self.answer(cache))


class KeptStream(ChatStream):
    """A whole answer in one batch."""

    def __init__(self, answer: Answer, events: bytes) -> None:
        self.answer = answer
        self._rest = events
        self._given = b""

    @property
    def text(self) -> str:  # type: ignore[override]
        """Read when it is asked for: only the pages do."""
        return read_text(self._given)

    async def next(self) -> bytes:
        self._given, self._rest = self._rest, b""
        return self._given

    def close(self) -> None:
        self._rest = b""
