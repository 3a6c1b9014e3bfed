"""What each class of the native layer says of itself.

In: nothing. Out: frozen records, the same for the compiled classes and their twins. The rule
that lives only here: what a hit rate is, and that it is 0.0 before the first request.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """`entries` and `bytes` count the living; `bytes` is 0 when the cache is not bound by them."""

    entries: int
    max_entries: int
    bytes: int
    max_bytes: int | None
    hits: int
    misses: int
    evictions: int
    expirations: int
    rejections: int

    @property
    def hit_rate(self) -> float:
        """Hits among all requests, 0.0 to 1.0."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaStats:
    """`allocated` bytes in `chunks`, `used` of them handed out or appended since the last reset."""

    allocated: int
    used: int
    high_water: int
    chunks: int
    resets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A hit is a request that an idle buffer served; `discarded` ones did not fit the bounds.

    Without bytes to count (an InstancePool), `idle_bytes` is 0.
    """

    hits: int
    misses: int
    in_use: int
    idle: int
    idle_bytes: int
    discarded: int

    @property
    def hit_rate(self) -> float:
        """Hits among all requests, 0.0 to 1.0."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
