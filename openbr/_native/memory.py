"""Every arena, pool and cache of an app under one roof.

In: parts and their names. Out: what they hold, and memory given back. The rules that live only
here: a part is known by weak reference, so being known keeps nothing alive; and giving memory back
takes nothing away that anybody still counts on, living cache entries and arenas least of all.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeVar

from openbr._native import trim_heap
from openbr._native.stats import ArenaStats, CacheStats, PoolStats

Stats = ArenaStats | CacheStats | PoolStats


class _Part(Protocol):
    def stats(self) -> Any: ...


P = TypeVar("P", bound=_Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What `trim` gave up: dead cache entries, idle buffers and objects, the bytes of the buffers.

    `heap` says whether the C library gave memory back to the system.
    """

    entries: int
    idle: int
    idle_bytes: int
    heap: bool


class MemoryManager:
    """Arenas, pools and caches by name, to look at and to trim together.

    There is one for each app, and each part is added to it: nothing is global, so that two apps
    in one process do not see each other's.

    Threads: every method may be called by any; `stats` and `trim` go from part to part.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._parts: dict[str, weakref.ref[Any]] = {}

    def add(self, name: str, part: P) -> P:
        """Know a part as long as somebody else holds it. Returns the part.

        Raises: ValueError if a part of that name is alive; TypeError if it has no `stats`.
        """
        if not callable(getattr(part, "stats", None)):
            raise TypeError(f"part must be an arena, a pool or a cache, not {type(part).__name__}")
        with self._lock:
            known = self._parts.get(name)
            if known is not None and known() is not None:
                raise ValueError(f"there is a part named {name!r}")
            self._parts[name] = weakref.ref(part)
        return part

    def remove(self, name: str) -> None:
        """Forget a part, dead or alive.

        Raises: KeyError.
        """
        with self._lock:
            del self._parts[name]

    def stats(self) -> dict[str, Stats]:
        """The stats of each living part, in the order they were added."""
        return {name: part.stats() for name, part in self._living()}

    def trim(self) -> Trimmed:
        """Drop dead cache entries and idle buffers and objects, then give memory to the system.

        Raises: what the first on_evict that failed raised, when all is done.
        """
        entries = idle = idle_bytes = 0
        failures = []
        for _, part in self._living():
            try:
                if hasattr(part, "expire"):
                    entries += part.expire()
                elif hasattr(part, "trim"):
                    before = part.stats()
                    part.trim()
                    idle += before.idle
                    idle_bytes += before.idle_bytes
            except Exception as exc:  # of a callback: the other parts have memory to give too
                failures.append(exc)
        heap = trim_heap()
        if failures:
            raise failures[0]
        return Trimmed(entries=entries, idle=idle, idle_bytes=idle_bytes, heap=heap)

    def _living(self) -> list[tuple[str, Any]]:
        with self._lock:
            found = [(name, reference()) for name, reference in self._parts.items()]
            for name, part in found:
                if part is None:
                    del self._parts[name]
        return [(name, part) for name, part in found if part is not None]
