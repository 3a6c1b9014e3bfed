"""The C library's heap: one arena, and given back when nobody has asked for anything for a while.

In: the end of the last request. Out: freed pages. The rules that live only here: mallopt runs
before there are threads; a trim happens once after the last request and then not again, so that an
idle process sleeps. Where the C library is not glibc, nothing happens.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

from openbr import ultra

TRIM_AFTER_S = 10.0


def keep_one_arena() -> None:
    """One heap for all threads. After a churn of 2,000 bodies up to 2 MB in 16 threads a process
    held 84 MB by default (eight heaps a core), 67 with one heap, and 35 when that was trimmed."""
    ultra.limit_heap_arenas(1)


def spare_what_stays() -> None:
    """Take what the start has made out of the collector's sight: a full collection that walks it
    stops every stream for 8 ms, one that does not for microseconds (30,000 objects)."""
    gc.freeze()


def trim(give_back: Callable[[], object] = ultra.trim_heap) -> None:
    """Collect garbage, then give back: the app knows more to give than the free heap."""
    gc.collect()
    give_back()


class IdleTrim:
    """Calls `action` once when `after_s` have passed since `rest()` without new work.

    Threads: event loop only. One timer at most, and none once it has acted; a busy server re-arms
    it when it fires, not at every request.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_busy: Callable[[], bool],
        action: Callable[[], None] = trim,
        after_s: float = TRIM_AFTER_S,
    ) -> None:
        self._loop = loop
        self._is_busy = is_busy
        self._action = action
        self._after_s = after_s
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def rest(self) -> None:
        """The last request has finished."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._after_s, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._is_busy():
            return  # the end of that work calls rest() again
        left = self._since + self._after_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            self._action()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
