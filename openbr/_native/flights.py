"""One computation for each missing key, however many threads ask for it.

In: a cache, a key and a factory. Out: the factory's value, stored in the cache. The rules that
live only here: the threads that wait get the value of the one that computes, even when the cache
is too small to keep it; when that one fails, the next one tries; a factory that waits for itself,
directly or through other threads, is told so instead of waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, RLock, get_ident
from typing import Any, Protocol


class _Cache(Protocol):
    def peek(self, key: Any, default: Any = None, /) -> Any: ...
    def set(
        self, key: Any, value: Any, *, ttl_s: float | None = None, size: int | None = None
    ) -> bool: ...


_MISSING = object()


class _Flight:
    __slots__ = ("hash", "key", "landed", "owner", "value")

    def __init__(self, key: object, key_hash: int, owner: int) -> None:
        self.key = key
        self.hash = key_hash
        self.owner = owner
        self.landed = Event()
        self.value: Any = _MISSING


class Flights:
    """The computations that are running for one cache.

    Threads: any. The lock is held while `__eq__` of a key runs, and never while a factory does.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._running: list[_Flight] = []
        self._waiting: dict[int, _Flight] = {}

    def compute(
        self,
        cache: _Cache,
        key: Any,
        factory: Callable[[], Any],
        ttl_s: float | None,
        size: int | None,
    ) -> Any:
        """Run the factory and store its value, or wait for the thread that is doing so.

        Raises: whatever the factory raises; RuntimeError if it would wait for itself.
        """
        me = get_ident()
        key_hash = hash(key)
        while True:
            with self._lock:
                flight = self._find(key, key_hash)
                mine = flight is None
                if flight is None:
                    flight = _Flight(key, key_hash, me)
                    self._running.append(flight)
                elif self._waits_for(flight, me):
                    raise RuntimeError("get_or_set: the factory waits for its own key")
                else:
                    self._waiting[me] = flight
            if mine:
                return self._fly(flight, cache, factory, ttl_s, size)
            try:
                flight.landed.wait()
            finally:
                self._waiting.pop(me, None)
            if flight.value is not _MISSING:
                return flight.value

    def _fly(
        self,
        flight: _Flight,
        cache: _Cache,
        factory: Callable[[], Any],
        ttl_s: float | None,
        size: int | None,
    ) -> Any:
        try:
            # Another thread may have landed between our miss and our start.
            value = cache.peek(flight.key, _MISSING)
            if value is _MISSING:
                value = factory()
                cache.set(flight.key, value, ttl_s=ttl_s, size=size)
            flight.value = value
            return value
        finally:
            with self._lock:
                self._running.remove(flight)
            flight.landed.set()

    def _find(self, key: object, key_hash: int) -> _Flight | None:
        for flight in tuple(self._running):
            if flight.hash == key_hash and (flight.key is key or flight.key == key):
                return flight
        return None

    def _waits_for(self, flight: _Flight | None, me: int) -> bool:
        """True if `flight` cannot land before thread `me` goes on."""
        while flight is not None:
            if flight.owner == me:
                return True
            flight = self._waiting.get(flight.owner)
        return False
