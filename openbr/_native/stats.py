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
