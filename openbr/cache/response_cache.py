"""Room 4: find the answer, or join the call that will bring it, or make that call.

In: a key, and how to ask the upstream. Out: a ChatStream or a Completion that says hit, join or
miss. The rules that live only here: which requests have a key; what is never kept: an error, an
answer that broke or was cut by a limit, another deployment's answer, one that is too large; a
caller's answers are that caller's, unless the operator shares them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openbr import ultra
from openbr.cache.control import find_max_age
from openbr.cache.flight import Flight, FlightName, FlightStream
from openbr.cache.kept import OVERHEAD_BYTES, KeptAnswer
from openbr.cache.key import has_repeated_names, request_key
from openbr.config import CacheConfig
from openbr.errors import ServiceUnavailableError, UpstreamProtocolError
from openbr.providers.base import ChatStream, Completion
from openbr.records import Caller, ChatRequest, Deployment

if TYPE_CHECKING:
    from openbr.cache.disk import DiskTier

OPENAI_CHAT = "openai-chat"
MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of an answer that is still kept, however large the cache; a smaller cache keeps answers
up to an eighth of it."""
_MAX_ENTRIES, _MAX_BYTES = 1 << 30, 1 << 48  # of any cache
_SHARED = "shared"


class ResponseCacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """Requests by what became of them, since the start; what is kept now, in memory and on disk
    (`disk_bytes` is None where there is no disk tier); calls that others may join now."""

    hits: int
    joins: int
    misses: int
    entries: int
    bytes: int
    max_bytes: int
    evictions: int
    expirations: int
    in_flight: int
    disk_bytes: int | None


class ResponseCache:
    """Threads: event loop only."""

    def __init__(
        self,
        config: CacheConfig,
        *,
        clock: Callable[[], float] | None = None,
        disk: DiskTier | None = None,
    ) -> None:
        self._mode = config.mode
        self._is_shared = config.scope == _SHARED
        self._ttl_s = config.ttl_s
        self._max_bytes = min(config.max_bytes, _MAX_BYTES)
        self._max_entry = min(self._max_bytes // 8, MAX_ANSWER)
        self._clock = clock or time.monotonic
        self._kept = ultra.create_cache(
            min(max(1, self._max_bytes // OVERHEAD_BYTES), _MAX_ENTRIES),
            config.ttl_s,
            max_bytes=max(1, self._max_bytes),
            clock=clock,
        )
        self._disk = disk
        self._flights: dict[FlightName, Flight] = {}
        self._hits = self._joins = self._misses = 0

    @classmethod
    def create(cls, config: CacheConfig, answers_path: Path) -> ResponseCache:
        """With the disk tier, if the configuration has one; else nothing of it is loaded."""
        disk = None
        if config.disk_bytes > 0 and config.mode != "off":
            from openbr.cache.disk import DiskTier

            disk = DiskTier(answers_path, max_bytes=config.disk_bytes, ttl_s=config.ttl_s)
        return cls(config, disk=disk)

    def key(self, request: ChatRequest, caller: Caller, deployment: Deployment) -> bytes | None:
        """What the answer is kept under; None where the cache is not to be asked (bypass)."""
        if self._mode == "off" or not (request.is_deterministic or self._mode == "all"):
            return None
        if request.cache_control is not None and find_max_age(request.cache_control) is None:
            return None
        if self._is_shared and has_repeated_names(request.fields):
            return None
        scope = _SHARED if self._is_shared else caller.key_id
        return request_key(OPENAI_CHAT, deployment.model, scope, request.fields)

    async def chat(
        self,
        key: bytes,
        request: ChatRequest,
        deployment: Deployment,
        open_: Callable[[], Awaitable[ChatStream]],
        chain: tuple[Deployment, ...] = (),
    ) -> ChatStream:
        """Find, join or open a streamed completion; returns with its first content.

        chain: whom `open_` may ask instead when `deployment` fails. Callers share a call only if
        they would also share its failure: one that asked for a model, and no other, must not get
        another's answer because it joined a caller that had a fallback.
        Raises: what `open_` raises, each caller an exception of its own.
        """
        kept = self._find(key, request)
        if kept is None and self._disk is not None:
            kept = await self._fetch(key, request, self._disk)
        if kept is not None and not kept.events:
            kept = self._convert(key, kept, KeptAnswer.make_events)
        if kept is not None:
            self._hits += 1
            return kept.stream(request.include_usage, "hit")
        name = (key, chain)
        flight = self._join(name, request)
        if flight is not None:
            return await FlightStream(flight, request.include_usage, "join").open()
        flight = self._flights[name] = Flight(name, deployment, self._max_entry, self._end)
        await flight.lead(open_)
        return FlightStream(flight, request.include_usage, "miss").begin()

    async def complete(
        self,
        key: bytes,
        request: ChatRequest,
        deployment: Deployment,
        get: Callable[[], Awaitable[Completion]],
        chain: tuple[Deployment, ...] = (),
    ) -> Completion:
        """Find, join or get a whole completion. Raises: as `chat`."""
        kept = self._find(key, request)
        if kept is None and self._disk is not None:
            kept = await self._fetch(key, request, self._disk)
        if kept is not None and not kept.body:
            kept = self._convert(key, kept, KeptAnswer.make_body)
        if kept is not None:
            self._hits += 1
            return kept.completion("hit")
        name = (key, chain)
        flight = self._join(name, request)
        if flight is not None:
            return await FlightStream(flight, request.include_usage, "join").complete()
        flight = self._flights[name] = Flight(name, deployment, self._max_entry, self._end)
        completion = await flight.lead(get)
        completion.answer.cache = "miss"
        return completion

    def spare(self, task: asyncio.Task[None]) -> bool:
        """The caller of this task left. Whether the task is to go on: others wait for its call."""
        return any(flight.spare(task) for flight in self._flights.values())

    def stats(self) -> ResponseCacheStats:
        kept = self._kept.stats()
        return ResponseCacheStats(
            hits=self._hits,
            joins=self._joins,
            misses=self._misses,
            entries=kept.entries,
            bytes=kept.bytes,
            max_bytes=self._max_bytes,
            evictions=kept.evictions,
            expirations=kept.expirations,
            in_flight=len(self._flights),
            disk_bytes=None if self._disk is None else self._disk.used_bytes,
        )

    def caches(self) -> dict[str, ultra.TTLCache[Any, Any]]:
        """By their names in the app's memory."""
        return {"answers": self._kept}

    def clear(self) -> None:
        """Forget every answer. Calls that are under way go on."""
        self._kept.clear()
        if self._disk is not None:
            self._disk.clear()

    def close(self) -> None:
        """End the calls under way and let the disk tier finish its work, a moment's blocking."""
        for flight in list(self._flights.values()):
            flight.fail(ServiceUnavailableError("this gateway is stopping", code="draining"))
        if self._disk is not None:
            self._disk.close()

    def _find(self, key: bytes, request: ChatRequest) -> KeptAnswer | None:
        kept: KeptAnswer | None = self._kept.get(key)
        if kept is None or request.cache_control is None:
            return kept
        # An age of 0 takes nothing that was kept before, not even just now.
        max_age_s = find_max_age(request.cache_control)
        return kept if max_age_s and self._clock() - kept.kept_at <= max_age_s else None

    async def _fetch(self, key: bytes, request: ChatRequest, disk: DiskTier) -> KeptAnswer | None:
        """From the disk. Meanwhile it may have come into memory as well: that one counts."""
        max_age_s = find_max_age(request.cache_control)
        if not max_age_s:
            return None
        found = await disk.find(key)
        kept = self._find(key, request)
        if kept is not None or found is None:
            return kept
        kept, age_s = found
        kept.kept_at = self._clock() - age_s
        if age_s > max_age_s:
            return None
        self._put(key, kept)
        return kept

    def _join(self, name: FlightName, request: ChatRequest) -> Flight | None:
        """The flight that is under way, if there is one and its answer will do.

        Who takes no kept answer takes none that was asked for earlier either.
        """
        if request.cache_control is not None and not find_max_age(request.cache_control):
            for older in [one for one in self._flights if one[0] == name[0]]:
                del self._flights[older]
            flight = None
        else:
            flight = self._flights.get(name)
        if flight is None:
            self._misses += 1
        else:
            self._joins += 1
        return flight

    def _end(self, flight: Flight) -> None:
        """A flight takes no more callers. If it landed well, its answer is kept."""
        if self._flights.get(flight.name) is not flight:
            return  # a newer one was asked for, and its answer will be the one to keep
        del self._flights[flight.name]
        kept = flight.landed
        if kept is None or kept.fallback is not None or kept.deployment != flight.deployment:
            return
        size = kept.size
        if size <= self._max_entry and kept.is_whole():
            kept.kept_at = self._clock()
            key = flight.name[0]
            self._kept.set(key, kept, size=size)
            if self._disk is not None:
                self._disk.keep(key, kept)

    def _convert(
        self, key: bytes, kept: KeptAnswer, make: Callable[[KeptAnswer], None]
    ) -> KeptAnswer | None:
        """The entry with its other form as well, kept so if that is not too large.

        None where nobody can read it: then it is as good as not kept in that form.
        """
        both = msgspec.structs.replace(kept)
        try:
            make(both)
        except UpstreamProtocolError:
            return None
        self._put(key, both)
        return both

    def _put(self, key: bytes, kept: KeptAnswer) -> None:
        """Keep what was kept before for the rest of its life."""
        left_s = kept.kept_at + self._ttl_s - self._clock()
        if left_s > 0 and kept.size <= self._max_entry:
            self._kept.set(key, kept, ttl_s=left_s, size=kept.size)
