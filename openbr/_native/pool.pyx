# cython: language_level=3, binding=False, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Buffers and objects to use again, compiled. What it does: see pool_py.py.

In: sizes, or a factory. Out: buffers and objects, lent until they are released. The rules that
live only here: a lent buffer keeps its pool alive, an idle one is kept by its pool and knows none;
an idle buffer object is lent again only if nobody else holds a reference to it, else its memory
moves to a new object, so that a name left from its last use never reaches into the next one.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t

from openbr._native.buffer cimport openbr_small_int, show, unusual_size_from

from types import GenericAlias

from openbr._native.limits import MAX_BYTES, parse_callable, parse_whole
from openbr._native.stats import PoolStats

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject*) noexcept

cdef extern from *:
    """
    /* The number of the smallest size class with room for `size`: 0 is 64 bytes, 1 is 128, ... */
    static inline int openbr_class_of(Py_ssize_t size) {
    #if defined(__GNUC__) || defined(__clang__)
        return size <= 64 ? 0 : 58 - __builtin_clzll((unsigned long long)size - 1);
    #else
        int number = 0;
        while (((Py_ssize_t)64 << number) < size) number++;
        return number;
    #endif
    }
    """
    int openbr_class_of(Py_ssize_t size) noexcept

cdef object _MISSING = object()

cdef enum:
    CLASSES = 43                # 64 bytes to 2**48
    MAX_COUNT = 1073741824      # 2**30


cdef inline Py_ssize_t room_of(int number) noexcept:
    """Bytes of a buffer of that size class."""
    return <Py_ssize_t>64 << number


# Refusals, apart from the functions that are called often, to keep those short.


cdef int refuse_type(object buffer) except -1:
    raise TypeError(f"buffer must be a PooledBuffer, not {type(buffer).__name__}")


cdef int refuse_release(ObjectPool pool, PooledBuffer buffer) except -1:
    if buffer.owner == NULL:
        raise ValueError("this buffer is released already")
    if buffer.owner != <PyObject*>pool:
        raise ValueError("this buffer is of another pool")
    raise BufferError("the buffer cannot be released: a view of its memory exists")


@cython.final
@cython.freelist(64)
cdef class PooledBuffer:
    """Writable memory lent by an ObjectPool, by the buffer protocol; its first content is not said.

    Gone when it is released: then its length is 0, and a view of it raises ValueError.
    Threads: as safe as the memory it is; nobody orders what is written to it.
    """

    cdef:
        PyObject* owner         # the ObjectPool while lent, and a reference to it; else NULL
        char* start             # NULL: the memory has moved on
        Py_ssize_t size         # bytes asked for
        Py_ssize_t exports      # views that exist
        int number              # of the size class
        PyObject* older         # while idle, in its class, released before this one
        PyObject* newer
        uint64_t turn           # when it was released, by the pool's `returned`

    def __init__(self):
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    def __dealloc__(self):
        PyMem_Free(self.start)
        if self.owner != NULL:
            (<ObjectPool>self.owner).returned += 1
            Py_DECREF(<object>self.owner)

    def __len__(self):
        return self.size if self.owner != NULL else 0

    def __repr__(self):
        return f"<PooledBuffer of {len(self)} bytes>"

    def __buffer__(self, flags, /):
        """A view. Python calls it from 3.12 on only if it must; here for type checkers and 3.11."""
        return memoryview(self)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.owner == NULL:
            raise ValueError("this buffer is gone: it was released, or its arena was reset")
        show(view, self, self.start, &self.size, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1


@cython.final
@cython.no_gc
cdef class ObjectPool:
    """Buffers to use again: no zeroing, and no new memory from the system, for those of one size.

    max_buffers, max_bytes: bounds on what is kept idle; what is lent is not bounded.

    Threads: every method is atomic. A buffer may be released by another thread than took it.
    """

    cdef:
        PyObject* newest[CLASSES]       # idle, a reference held to each; `older` leads on
        PyObject* oldest[CLASSES]
        size_t idle
        size_t hits                     # between the two: adjacent, the compiler updates both at
        size_t idle_bytes               # once and then waits for its own writes, 3 ns a call
        size_t misses
        size_t max_buffers
        size_t max_bytes
        uint64_t returned               # released, or never to be
        size_t discarded
        object __weakref__

    def __cinit__(self, max_buffers=100, *, max_bytes=33554432):
        self.max_buffers = parse_whole("max_buffers", max_buffers, 1, MAX_COUNT)
        self.max_bytes = parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)

    def __dealloc__(self):
        self._drop_all()

    def __repr__(self):
        return f"<ObjectPool of at most {self.max_buffers} idle buffers>"

    def __sizeof__(self):
        return object.__sizeof__(self) + self.idle_bytes

    def acquire(self, n, /):
        """A buffer of n bytes, to be given back by `release`.

        Raises: TypeError, ValueError (n < 1), OverflowError, MemoryError.
        """
        cdef Py_ssize_t size = openbr_small_int(n)
        if size < 1:
            size = unusual_size_from(n)
        return self._acquire(size)

    def release(self, buffer, /):
        """Take a buffer back. It is gone for the caller.

        Raises: TypeError (not a buffer of a pool), ValueError (released already, or of another
        pool), BufferError while a view of it exists. Nothing changes then.
        """
        if type(buffer) is not PooledBuffer:
            refuse_type(buffer)
        self._release(<PooledBuffer>buffer)

    def borrow(self, n, /):
        """`with pool.borrow(n) as buffer:` acquires at the start and releases at the end."""
        cdef Loan loan = Loan.__new__(Loan)
        loan.size = openbr_small_int(n)
        if loan.size < 1:
            loan.size = unusual_size_from(n)
        loan.pool = self
        return loan

    def trim(self):
        """Drop every idle buffer. The bytes that this freed."""
        cdef size_t freed = self.idle_bytes
        self._drop_all()
        return freed

    def stats(self):
        """Counts since the pool was made, and what is lent and idle now."""
        return PoolStats(
            hits=self.hits,
            misses=self.misses,
            in_use=self.hits + self.misses - self.returned,
            idle=self.idle,
            idle_bytes=self.idle_bytes,
            discarded=self.discarded,
        )

    cdef inline PooledBuffer _acquire(self, Py_ssize_t size):
        cdef int number = openbr_class_of(size)
        cdef PyObject* kept = self.newest[number]
        cdef PooledBuffer buffer
        if kept != NULL and Py_REFCNT(kept) == 1:
            self._unlink(kept)
            buffer = <PooledBuffer>kept
            Py_DECREF(buffer)           # what the pool held; `buffer` has one of its own
            self.hits += 1
        else:
            buffer = self._make(number, kept)
        buffer.size = size
        buffer.owner = <PyObject*>self
        Py_INCREF(self)
        return buffer

    cdef PooledBuffer _make(self, int number, PyObject* kept):
        """A new buffer object, with the memory of an idle one if there is one."""
        cdef PooledBuffer buffer = PooledBuffer.__new__(PooledBuffer)
        buffer.number = number
        if kept != NULL:
            self._unlink(kept)
            buffer.start = (<PooledBuffer>kept).start
            (<PooledBuffer>kept).start = NULL
            Py_DECREF(<object>kept)
            self.hits += 1
        else:
            buffer.start = <char*>PyMem_Malloc(room_of(number))
            if buffer.start == NULL:
                raise MemoryError
            self.misses += 1
        return buffer

    cdef inline int _release(self, PooledBuffer buffer) except -1:
        cdef size_t room
        if buffer.owner != <PyObject*>self or buffer.exports > 0:
            return refuse_release(self, buffer)
        buffer.owner = NULL
        Py_DECREF(self)                 # not the last: the caller has one
        self.returned += 1
        room = room_of(buffer.number)
        if room > self.max_bytes:
            PyMem_Free(buffer.start)
            buffer.start = NULL
            self.discarded += 1
            return 0
        Py_INCREF(buffer)
        self._link(buffer)
        while self.idle > self.max_buffers or self.idle_bytes > self.max_bytes:
            self._drop(self._longest_idle())
            self.discarded += 1
        return 0

    cdef inline void _link(self, PooledBuffer buffer) noexcept:
        cdef int number = buffer.number
        buffer.older = self.newest[number]
        buffer.newer = NULL
        if buffer.older != NULL:
            (<PooledBuffer>buffer.older).newer = <PyObject*>buffer
        else:
            self.oldest[number] = <PyObject*>buffer
        self.newest[number] = <PyObject*>buffer
        buffer.turn = self.returned
        self.idle += 1
        self.idle_bytes += room_of(number)

    cdef inline void _unlink(self, PyObject* kept) noexcept:
        cdef PyObject* older = (<PooledBuffer>kept).older
        cdef PyObject* newer = (<PooledBuffer>kept).newer
        cdef int number = (<PooledBuffer>kept).number
        if newer != NULL:
            (<PooledBuffer>newer).older = older
        else:
            self.newest[number] = older
        if older != NULL:
            (<PooledBuffer>older).newer = newer
        else:
            self.oldest[number] = newer
        self.idle -= 1
        self.idle_bytes -= room_of(number)

    cdef PyObject* _longest_idle(self) noexcept:
        cdef PyObject* found = NULL
        cdef PyObject* kept
        cdef int number
        for number in range(CLASSES):
            kept = self.oldest[number]
            if kept != NULL and (
                found == NULL or (<PooledBuffer>kept).turn < (<PooledBuffer>found).turn
            ):
                found = kept
        return found

    cdef void _drop(self, PyObject* kept) noexcept:
        """Free an idle buffer's memory; the object may live on in somebody's hands, without it."""
        self._unlink(kept)
        PyMem_Free((<PooledBuffer>kept).start)
        (<PooledBuffer>kept).start = NULL
        Py_DECREF(<object>kept)

    cdef void _drop_all(self) noexcept:
        cdef int number
        for number in range(CLASSES):
            while self.newest[number] != NULL:
                self._drop(self.newest[number])


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Loan:
    """A buffer for the length of a `with` block; made by `ObjectPool.borrow`.

    Leaving the block by an exception while a view exists leaves the buffer to that view; without
    an exception it raises BufferError.
    Threads: one.
    """

    cdef:
        ObjectPool pool
        PooledBuffer buffer
        Py_ssize_t size

    def __init__(self):
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    def __enter__(self):
        if self.buffer is not None:
            raise RuntimeError("this loan has begun already")
        if self.pool is None:
            raise RuntimeError("this loan has no pool")
        self.buffer = self.pool._acquire(self.size)
        return self.buffer

    def __exit__(self, kind, error, traceback, /):
        cdef PooledBuffer buffer = self.buffer
        if buffer is None:
            raise RuntimeError("this loan has not begun")
        self.buffer = None
        try:
            self.pool._release(buffer)
        except (BufferError, ValueError):
            if error is None:
                raise


@cython.final
cdef class InstancePool:
    """Objects to use again, where making one costs more than resetting it.

    factory() makes one. reset(object) makes a used one as good as new before it is kept; one that
    raises is dropped, and `release` raises that. max_objects: bound on what is kept idle.

    Threads: every method is atomic; factory and reset run outside of it, and may use the pool.
    What is lent and never released stays known to the pool, and alive.
    """

    cdef:
        object factory
        object reset
        list idle
        dict lent               # address -> object
        Py_ssize_t max_objects
        size_t hits
        size_t misses
        size_t discarded
        object __weakref__

    def __cinit__(self, factory, reset=None, *, max_objects=100):
        if factory is None:
            raise TypeError("factory must be a function, not NoneType")
        self.factory = parse_callable("factory", factory)
        self.reset = parse_callable("reset", reset)
        self.max_objects = parse_whole("max_objects", max_objects, 1, MAX_COUNT)
        self.idle = []
        self.lent = {}

    def __repr__(self):
        return f"<InstancePool of at most {self.max_objects} idle objects>"

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    def acquire(self):
        """An object, the one released last or a new one; to be given back by `release`.

        Raises: what factory raises; ValueError if factory returns one that is lent already.
        """
        if self.idle:
            lent = self.idle.pop()
            self.lent[<size_t><PyObject*>lent] = lent
            self.hits += 1
            return lent
        made = self.factory()
        if <size_t><PyObject*>made in self.lent or any([one is made for one in self.idle]):
            raise ValueError("factory must return a new object each time")
        self.lent[<size_t><PyObject*>made] = made
        self.misses += 1
        return made

    def release(self, lent, /):
        """Take an object back.

        Raises: ValueError if it is not lent by this pool; what reset raises.
        """
        if self.lent.pop(<size_t><PyObject*>lent, _MISSING) is _MISSING:
            raise ValueError("this object is not lent by this pool")
        if self.reset is not None:
            self.reset(lent)
        if len(self.idle) < self.max_objects:
            self.idle.append(lent)
        else:
            self.discarded += 1

    def borrow(self):
        """`with pool.borrow() as one:` acquires at the start and releases at the end."""
        cdef InstanceLoan loan = InstanceLoan.__new__(InstanceLoan)
        loan.pool = self
        return loan

    def trim(self):
        """Drop every idle object. How many they were."""
        dropped, self.idle = self.idle, []
        return len(dropped)

    def stats(self):
        """Counts since the pool was made, and what is lent and idle now."""
        return PoolStats(
            hits=self.hits,
            misses=self.misses,
            in_use=len(self.lent),
            idle=len(self.idle),
            idle_bytes=0,
            discarded=self.discarded,
        )


@cython.final
cdef class InstanceLoan:
    """An object for the length of a `with` block; made by `InstancePool.borrow`.

    Threads: one.
    """

    cdef:
        InstancePool pool
        object lent
        bint begun

    def __init__(self):
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    def __enter__(self):
        if self.begun:
            raise RuntimeError("this loan has begun already")
        if self.pool is None:
            raise RuntimeError("this loan has no pool")
        self.lent = self.pool.acquire()
        self.begun = True
        return self.lent

    def __exit__(self, kind, error, traceback, /):
        if not self.begun:
            raise RuntimeError("this loan has not begun")
        lent, self.lent, self.begun = self.lent, None, False
        try:
            self.pool.release(lent)
        except ValueError:
            if error is None:
                raise
