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
        mine = _Flight(key, hash(key), get_ident())
        while True:
            # Begun inside the `try`: an interrupt must not leave a flight that never lands.
            try:
                flight = self._start_or_join(mine)
                if flight is mine:
                    # Another thread may have landed between our miss and our start.
                    value = cache.peek(key, _MISSING)
                    if value is _MISSING:
                        value = factory()
                        cache.set(key, value, ttl_s=ttl_s, size=size)
                    mine.value = value
                    return value
                flight.landed.wait()
            finally:
                self._end(mine)
            if flight.value is not _MISSING:
                return flight.value

    def _start_or_join(self, mine: _Flight) -> _Flight:
        with self._lock:
            flight = self._find(mine)
            if flight is None:
                self._running.append(mine)
                return mine
            if self._waits_for(flight, mine.owner):
                raise RuntimeError("get_or_set: the factory waits for its own key")
            self._waiting[mine.owner] = flight
            return flight

    def _end(self, mine: _Flight) -> None:
        with self._lock:
            self._waiting.pop(mine.owner, None)
            if mine in self._running:
                self._running.remove(mine)
                mine.landed.set()

    def _find(self, mine: _Flight) -> _Flight | None:
        for flight in tuple(self._running):
            if flight.hash == mine.hash and (flight.key is mine.key or flight.key == mine.key):
                return flight
        return None

    def _waits_for(self, flight: _Flight | None, me: int) -> bool:
        """True if `flight` cannot land before thread `me` goes on."""
        # Who waited for one that has landed may not have woken up yet, but waits no more.
        while flight is not None and not flight.landed.is_set():
            if flight.owner == me:
                return True
            flight = self._waiting.get(flight.owner)
        return False
