"""What can be asked of the C library's heap, by ctypes: the twin of heap.pyx.

In: nothing. Out: whether it was done. The rule that lives only here: where the C library is not
glibc nothing is done, and nothing is wrong.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from openbr._native.limits import parse_whole

_M_ARENA_MAX = -8  # malloc.h


@cache
def _glibc() -> Any:
    """The functions of the running program, if they are glibc's; else None."""
    try:
        import ctypes

        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  AttributeError where it is another library
        return library
    except (ImportError, OSError, TypeError, AttributeError):
        return None


def trim_heap() -> bool:
    """Give free memory back to the system. False where that cannot be done, or there was none."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


def limit_heap_arenas(count: int, /) -> bool:
    """Share `count` heaps among all threads; to be called before there are any.

    More heaps are faster for many threads that allocate all the time, and each keeps its own free
    memory. False where the C library has no such setting.
    """
    count = parse_whole("count", count, 1, 1024)
    library = _glibc()
    return library is not None and bool(library.mallopt(_M_ARENA_MAX, count))
