"""The bounded cache, in plain Python: the specification of lru.pyx, and its stand-in.

In: hashable keys, any values. Out: the values again, until they are evicted or expire. The rules
that live only here: the order of eviction, what counts as dead, and what a key that misbehaves
(`__eq__` that raises, or that calls back into the cache) can and cannot do.

Order. "lru": the entry whose last `get`, `set` or `touch` is longest ago goes first, dead or
alive. "sieve": a hand walks from the oldest entry to the newest and over again; an entry used
since the hand last passed is spared, the first one not used goes. The hand keeps its place.

Kept as two queues, `_ahead` of the hand and `_behind` it, oldest first; "lru" has the first only.
Entries are found by hash in `_table`, those of one hash chained by `link`: `__eq__` of a key runs
in `_find` and nowhere else, so nothing is half-changed when it does.
"""

from __future__ import annotations

import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import RLock
from typing import Any, Generic, NoReturn, TypeVar, final

from openbr._native.flights import Flights
from openbr._native.limits import (
    MAX_BYTES,
    MAX_ENTRIES,
    parse_callable,
    parse_policy,
    parse_seconds,
    parse_whole,
)
from openbr._native.stats import CacheStats

K = TypeVar("K")
V = TypeVar("V")

_MISSING: Any = object()
_RESTARTS = 100
_COARSE: int | None = getattr(time, "CLOCK_MONOTONIC_COARSE", None)


def _coarse_clock() -> float:
    """Monotonic seconds, in steps of a few milliseconds where the system has such a clock."""
    return time.monotonic() if _COARSE is None else time.clock_gettime(_COARSE)


class _Entry:
    __slots__ = ("alive", "deadline", "hash", "key", "link", "size", "value", "visited")

    def __init__(self, key: Any, key_hash: int, value: Any, deadline: float, size: int) -> None:
        self.key = key
        self.hash = key_hash
        self.value = value
        self.deadline = deadline
        self.size = size
        self.visited = False
        self.alive = True
        self.link: _Entry | None = None


@final
class TTLCache(Generic[K, V]):
    """A cache bounded by entries and by bytes, whose entries die at a deadline.

    max_entries: 1 to 2**30. ttl_s: life of an entry; None is for ever.
    max_bytes: bound on the sum of sizes, or None. size_of(key, value) gives a size where `set`
    is not told one; without it, `sys.getsizeof` of the key and of the value, contents not counted.
    on_evict(key, value, reason): told of each entry that leaves unasked, after the call that
    pushed it out has done its work; reason is "full" or "expired". If it raises, that call
    raises, and the further evictions of the same call are not told.
    clock: seconds; dead means `now >= deadline`. None is the system's coarse monotonic clock.

    Threads: every method is atomic, and may be called again from a key's `__eq__` and `__hash__`,
    from destructors of keys and values, and from the callbacks. A key's `__eq__` must not wait
    for another thread that uses the cache. The twin in Python alone has a gap: a signal handler,
    or a destructor run by the cyclic garbage collector, that uses the cache in the middle of
    another call in the same thread can make it keep two entries for one key.
    """

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_behind",
        "_bytes",
        "_clock",
        "_evictions",
        "_expirations",
        "_flights",
        "_hits",
        "_lock",
        "_max_bytes",
        "_max_entries",
        "_misses",
        "_next_deadline",
        "_on_evict",
        "_rejections",
        "_sieve",
        "_size_of",
        "_table",
        "_timed",
        "_ttl_s",
        "_version",
    )

    def __init__(
        self,
        max_entries: int = 1000,
        ttl_s: float | None = None,
        *,
        max_bytes: int | None = None,
        size_of: Callable[[K, V], int] | None = None,
        policy: str = "lru",
        on_evict: Callable[[K, V, str], object] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._max_entries = parse_whole("max_entries", max_entries, 1, MAX_ENTRIES)
        self._ttl_s = parse_seconds("ttl_s", ttl_s)
        self._max_bytes = (
            None if max_bytes is None else parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)
        )
        self._size_of = parse_callable("size_of", size_of)
        self._sieve = parse_policy(policy) == "sieve"
        self._on_evict = parse_callable("on_evict", on_evict)
        self._clock = parse_callable("clock", clock) or _coarse_clock
        self._timed = self._ttl_s != math.inf
        self._lock = RLock()
        self._flights = Flights()
        self._table: dict[int, _Entry] = {}
        self._ahead: OrderedDict[_Entry, None] = OrderedDict()
        self._behind: OrderedDict[_Entry, None] = OrderedDict()
        self._bytes = 0
        self._version = 0  # changes when an entry comes or goes
        self._next_deadline = math.inf  # no entry dies before it
        self._hits = self._misses = 0
        self._evictions = self._expirations = self._rejections = 0

    def __init_subclass__(cls, **kwargs: object) -> NoReturn:
        raise TypeError("TTLCache cannot be subclassed")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("cannot pickle 'TTLCache' object")

    def __repr__(self) -> str:
        return f"<TTLCache of at most {self._max_entries} entries>"

    # What a key asks for.

    def get(self, key: K, default: Any = None, /) -> Any:
        """The value of a living entry, marked as used; else the default."""
        now = self._now()
        dead: list[tuple[_Entry, str]] = []
        with self._lock:
            entry = self._find_living(key, now, dead)
            if entry is not None:
                self._hits += 1
                self._use(entry)
                return entry.value
            self._misses += 1
        self._tell(dead)
        return default

    def peek(self, key: K, default: Any = None, /) -> Any:
        """The value of a living entry, else the default. Changes nothing, counts nothing."""
        now = self._now()
        with self._lock:
            entry = self._find(key, hash(key))
            return default if entry is None or now >= entry.deadline else entry.value

    def set(self, key: K, value: V, *, ttl_s: float | None = None, size: int | None = None) -> bool:
        """Keep a value. False if it is larger than max_bytes: then the key has no value at all.

        ttl_s: life of this entry; None is the cache's, infinity is for ever.
        size: bytes it counts for; None asks size_of. Used only with max_bytes.
        """
        life = self._ttl_s if ttl_s is None else parse_seconds("ttl_s", ttl_s)
        cost = self._cost(key, value, size)
        if life != math.inf:
            self._timed = True
        now = self._now()
        deadline = now + life if life != math.inf else math.inf
        fresh = _Entry(key, hash(key), value, deadline, cost)
        dropped: list[tuple[_Entry, str]] = []
        old_value: Any = None
        with self._lock:
            entry = self._find(key, fresh.hash)
            if self._max_bytes is not None and cost > self._max_bytes:
                self._rejections += 1
                if entry is not None:
                    self._unlink(entry)
                return False
            if entry is not None:
                old_value, entry.value = entry.value, value  # dropped when the lock is open
                entry.deadline = deadline
                self._bytes += cost - entry.size
                entry.size = cost
                self._use(entry)
                self._make_room(0, 0, now, entry, dropped)
            else:
                self._make_room(1, cost, now, None, dropped)
                self._link(fresh)
            self._next_deadline = min(self._next_deadline, deadline)
        del old_value
        self._tell(dropped)
        return True

    def get_or_set(
        self,
        key: K,
        factory: Callable[[], V],
        *,
        ttl_s: float | None = None,
        size: int | None = None,
    ) -> V:
        """The value of a living entry; else what the factory returns, computed once and kept.

        Threads that ask for the same key meanwhile wait for it. One that fails raises to its own
        caller, and the next one tries. Raises: RuntimeError if a factory waits for itself.
        """
        value: Any = self.get(key, _MISSING)
        if value is not _MISSING:
            return value  # type: ignore[no-any-return]
        return self._flights.compute(self, key, factory, ttl_s, size)  # type: ignore[no-any-return]

    def delete(self, key: K, /) -> bool:
        """Drop an entry. True if it was there and alive."""
        return self.pop(key, _MISSING) is not _MISSING

    def pop(self, key: K, /, *default: Any) -> Any:
        """Drop a living entry and return its value; else the default. Counts no hit or miss.

        Raises: KeyError if there is neither.
        """
        if len(default) > 1:
            raise TypeError(f"pop takes one default, not {len(default)}")
        now = self._now()
        dead: list[tuple[_Entry, str]] = []
        with self._lock:
            entry = self._find_living(key, now, dead)
            if entry is not None:
                self._unlink(entry)
                return entry.value
        self._tell(dead)
        if default:
            return default[0]
        raise KeyError(key)

    def touch(self, key: K, /, *, ttl_s: float | None = None) -> bool:
        """Mark a living entry as used and give it a whole new life. True if there is one.

        ttl_s: as in `set`.
        """
        life = self._ttl_s if ttl_s is None else parse_seconds("ttl_s", ttl_s)
        if life != math.inf:
            self._timed = True
        now = self._now()
        dead: list[tuple[_Entry, str]] = []
        with self._lock:
            entry = self._find_living(key, now, dead)
            if entry is not None:
                entry.deadline = now + life if life != math.inf else math.inf
                self._next_deadline = min(self._next_deadline, entry.deadline)
                self._use(entry)
                return True
        self._tell(dead)
        return False

    # The cache as a whole.

    def clear(self) -> None:
        """Drop every entry. Not an eviction: nobody is told."""
        with self._lock:
            gone = (self._table, self._ahead, self._behind)
            for entry in (*self._behind, *self._ahead):
                entry.alive = False
            self._table, self._ahead, self._behind = {}, OrderedDict(), OrderedDict()
            self._bytes = 0
            self._version += 1
            self._next_deadline = math.inf
        del gone

    def expire(self) -> int:
        """Drop the dead and return their number."""
        now = self._now()
        dead: list[tuple[_Entry, str]] = []
        with self._lock:
            self._drop_dead(now, dead)
        self._tell(dead)
        return len(dead)

    def resize(self, max_entries: int | None = None, max_bytes: int | None = None) -> None:
        """Change the bounds; None leaves one as it is. Entries leave in order of eviction.

        Raises: ValueError if the cache was made without max_bytes, so has no sizes.
        """
        if max_entries is not None:
            max_entries = parse_whole("max_entries", max_entries, 1, MAX_ENTRIES)
        if max_bytes is not None:
            max_bytes = parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)
            if self._max_bytes is None:
                raise ValueError("max_bytes must be given when the cache is made")
        now = self._now()
        dropped: list[tuple[_Entry, str]] = []
        with self._lock:
            self._max_entries = max_entries or self._max_entries
            self._max_bytes = max_bytes or self._max_bytes
            self._make_room(0, 0, now, None, dropped)
        self._tell(dropped)

    def stats(self) -> CacheStats:
        """Sizes and counts since the cache was made. Drops the dead first."""
        self.expire()
        with self._lock:
            return CacheStats(
                entries=len(self._ahead) + len(self._behind),
                max_entries=self._max_entries,
                bytes=self._bytes,
                max_bytes=self._max_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                expirations=self._expirations,
                rejections=self._rejections,
            )

    @property
    def max_entries(self) -> int:
        return self._max_entries

    @property
    def max_bytes(self) -> int | None:
        return self._max_bytes

    @property
    def ttl_s(self) -> float | None:
        return None if self._ttl_s == math.inf else self._ttl_s

    @property
    def policy(self) -> str:
        return "sieve" if self._sieve else "lru"

    # The mapping protocol. Lists and iterators show the moment of the call, first to leave first.

    def items(self) -> list[tuple[K, V]]:
        """The living entries, without marking them as used."""
        now = self._now()
        with self._lock:
            entries = (*self._behind, *self._ahead)
            return [(e.key, e.value) for e in entries if not now >= e.deadline]

    def keys(self) -> list[K]:
        """The keys of `items`."""
        return [key for key, _ in self.items()]

    def values(self) -> list[V]:
        """The values of `items`."""
        return [value for _, value in self.items()]

    def __len__(self) -> int:
        """How many live. Drops the dead first: a walk over all entries, if there are any."""
        self.expire()
        return len(self._ahead) + len(self._behind)

    def __iter__(self) -> Iterator[K]:
        return iter(self.keys())

    def __contains__(self, key: object, /) -> bool:
        return self.peek(key, _MISSING) is not _MISSING  # type: ignore[arg-type]

    def __getitem__(self, key: K, /) -> V:
        value: Any = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value  # type: ignore[no-any-return]

    def __setitem__(self, key: K, value: V, /) -> None:
        self.set(key, value)

    def __delitem__(self, key: K, /) -> None:
        self.pop(key)

    # Inside, with the lock held.

    def _find(self, key: Any, key_hash: int) -> _Entry | None:
        """The entry of a key, dead or alive. Runs `__eq__` of keys with the same hash.

        If `__eq__` adds or drops entries, what it said still holds for the entry it was asked
        about; the others are looked for again. So is everything if giving up a key that was
        compared ran a destructor that did so.
        """
        entry = self._table.get(key_hash)
        if entry is None or entry.key is key:
            return entry
        del entry
        for _ in range(_RESTARTS):
            compared: list[_Entry] = []
            entry = self._find_among(key, key_hash, compared)
            version = self._version
            compared.clear()
            if self._version == version:
                return entry
            del entry  # before the next search: it may be the last of a key too
        raise RuntimeError("the cache never stops changing while __eq__ of a key runs")

    def _find_among(self, key: Any, key_hash: int, compared: list[_Entry]) -> _Entry | None:
        """`compared` keeps alive all that was looked at, so that no destructor runs in here."""
        refused: list[Any] = []
        for _ in range(_RESTARTS):
            version = self._version
            entry = self._table.get(key_hash)
            while entry is not None:
                if entry.key is key:
                    return entry
                if all(entry.key is not other for other in refused):
                    compared.append(entry)
                    equal = bool(entry.key == key)
                    if equal and entry.alive:
                        return entry
                    if not equal:
                        refused.append(entry.key)
                    if self._version != version:
                        break
                entry = entry.link
            else:
                return None
        raise RuntimeError("the cache never stops changing while __eq__ of a key runs")

    def _find_living(self, key: Any, now: float, dead: list[tuple[_Entry, str]]) -> _Entry | None:
        entry = self._find(key, hash(key))
        if entry is not None and now >= entry.deadline:
            self._unlink(entry)
            self._expirations += 1
            dead.append((entry, "expired"))
            return None
        return entry

    def _use(self, entry: _Entry) -> None:
        if self._sieve:
            entry.visited = True
        else:
            self._ahead.move_to_end(entry)

    def _link(self, entry: _Entry) -> None:
        entry.link = self._table.get(entry.hash)
        self._table[entry.hash] = entry
        self._ahead[entry] = None
        self._bytes += entry.size
        self._version += 1

    def _unlink(self, entry: _Entry) -> None:
        first = self._table[entry.hash]
        if first is not entry:
            while first.link is not entry:
                assert first.link is not None
                first = first.link
            first.link = entry.link
        elif entry.link is None:
            del self._table[entry.hash]
        else:
            self._table[entry.hash] = entry.link
        entry.alive = False
        queue = self._ahead if entry in self._ahead else self._behind
        del queue[entry]
        if not self._ahead:  # the hand is past the newest entry: it starts again
            self._ahead, self._behind = self._behind, self._ahead
        self._bytes -= entry.size
        self._version += 1
        if not self._table:
            self._next_deadline = math.inf

    def _make_room(
        self,
        more: int,
        cost: int,
        now: float,
        keep: _Entry | None,
        dropped: list[tuple[_Entry, str]],
    ) -> None:
        """Evict until `more` entries of `cost` bytes fit; never `keep`."""
        while len(self._ahead) + len(self._behind) + more > self._max_entries or (
            self._max_bytes is not None and self._bytes + cost > self._max_bytes
        ):
            entry = self._next_victim(keep)
            self._unlink(entry)
            if now >= entry.deadline:
                self._expirations += 1
                dropped.append((entry, "expired"))
            else:
                self._evictions += 1
                dropped.append((entry, "full"))

    def _next_victim(self, keep: _Entry | None) -> _Entry:
        if not self._sieve:
            return next(iter(self._ahead))
        while True:
            if not self._ahead:
                self._ahead, self._behind = self._behind, self._ahead
            entry = next(iter(self._ahead))
            if entry is not keep:
                if not entry.visited:
                    return entry
                entry.visited = False
            del self._ahead[entry]
            self._behind[entry] = None

    def _drop_dead(self, now: float, dead: list[tuple[_Entry, str]]) -> None:
        if now < self._next_deadline:
            return
        for entry in (*self._behind, *self._ahead):
            if now >= entry.deadline:
                self._unlink(entry)
                self._expirations += 1
                dead.append((entry, "expired"))
        entries = (*self._behind, *self._ahead)
        self._next_deadline = min((e.deadline for e in entries), default=math.inf)

    # Inside, with the lock open: these run what the user gave.

    def _now(self) -> float:
        return float(self._clock()) if self._timed else -math.inf

    def _cost(self, key: K, value: V, size: int | None) -> int:
        if size is not None:
            size = parse_whole("size", size, 0, MAX_BYTES)
        if self._max_bytes is None:
            return 0
        if size is not None:
            return size
        if self._size_of is None:
            return sys.getsizeof(key) + sys.getsizeof(value)
        return parse_whole("size_of()", self._size_of(key, value), 0, MAX_BYTES)

    def _tell(self, dropped: list[tuple[_Entry, str]]) -> None:
        if self._on_evict is not None:
            for entry, reason in dropped:
                self._on_evict(entry.key, entry.value, reason)
