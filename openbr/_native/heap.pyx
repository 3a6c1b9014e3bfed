# cython: language_level=3, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""What can be asked of the C library's heap, compiled: ctypes would cost a megabyte for it.

In: nothing. Out: whether it was done. What it does: see heap_py.py.
"""

from openbr._native.limits import parse_whole

cdef extern from *:
    """
    #if defined(__linux__) && defined(__GLIBC__)
    #include <malloc.h>
    static int openbr_trim(void) { return malloc_trim(0); }
    static int openbr_limit(int count) { return mallopt(M_ARENA_MAX, count); }
    #else
    static int openbr_trim(void) { return 0; }
    static int openbr_limit(int count) { (void)count; return 0; }
    #endif
    """
    int openbr_trim() noexcept nogil
    int openbr_limit(int count) noexcept


def trim_heap():
    """Give free memory back to the system. False where that cannot be done, or there was none."""
    cdef int done
    with nogil:
        done = openbr_trim()
    return done != 0


def limit_heap_arenas(count, /):
    """Share `count` heaps among all threads; to be called before there are any.

    More heaps are faster for many threads that allocate all the time, and each keeps its own free
    memory. False where the C library has no such setting.
    """
    return openbr_limit(parse_whole("count", count, 1, 1024)) != 0
