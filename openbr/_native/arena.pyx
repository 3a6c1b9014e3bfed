# cython: language_level=3, binding=False, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Memory taken in many pieces and given back at once, compiled. What it does: see arena_py.py.

In: sizes, and bytes to collect. Out: buffers, and the collected bytes as one. The rules that live
only here: a buffer keeps its arena alive and knows in which life of it, by number, it was made;
the arena counts the views that exist and knows nothing else of its buffers.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from openbr._native.buffer cimport openbr_small_int, show, unusual_size_from

from openbr._native.limits import MAX_BYTES, parse_whole
from openbr._native.stats import ArenaStats

cdef extern from *:
    """
    /* Buffer objects come and go faster than PyObject_Init and what Cython does around it: some
       stay as they are, with no reference to them, until they are wanted again. Where Python
       itself counts its objects, none is kept. */
    #if defined(Py_DEBUG) || defined(Py_TRACE_REFS) || defined(Py_GIL_DISABLED)
    #define OPENBR_SPARES 0
    #else
    #define OPENBR_SPARES 64
    #endif
    static PyObject *openbr_spares[OPENBR_SPARES + 1];
    static int openbr_spare_count = 0;

    static inline PyObject *openbr_take_spare(void) {
        PyObject *one;
        if (openbr_spare_count == 0) return NULL;
        one = openbr_spares[--openbr_spare_count];
        Py_SET_REFCNT(one, 1);
        return one;
    }
    static inline void openbr_keep_spare(PyObject *one) {
        if (openbr_spare_count < OPENBR_SPARES) openbr_spares[openbr_spare_count++] = one;
        else Py_TYPE(one)->tp_free(one);
    }
    static void openbr_dealloc_with(PyObject *cls, void (*dealloc)(PyObject *)) {
        ((PyTypeObject *)cls)->tp_dealloc = dealloc;
    }
    """
    PyObject* openbr_take_spare() noexcept
    void openbr_keep_spare(PyObject*) noexcept
    void openbr_dealloc_with(object cls, void (*dealloc)(PyObject*) noexcept)

cdef enum:
    ALIGNMENT = 16
    MIN_CHUNK = 64

cdef struct Chunk:              # 32 bytes, so that what follows is aligned
    Chunk* next
    size_t size
    size_t _unused[2]

cdef struct Extent:             # a run of appended bytes
    char* start
    size_t size


cdef inline size_t round_up(size_t size) noexcept:
    return (size + ALIGNMENT - 1) & ~<size_t>(ALIGNMENT - 1)


cdef inline char* bytes_of(Chunk* chunk) noexcept:
    return <char*>chunk + sizeof(Chunk)


@cython.final
@cython.no_gc
cdef class ArenaBuffer:
    """Writable memory of a MemoryArena, by the buffer protocol; what is in it at first is not said.

    Gone when the arena is reset: then its length is 0, and a view of it raises ValueError.
    Threads: as safe as the memory it is; nobody orders what is written to it.
    """

    cdef:
        PyObject* arena         # a MemoryArena, and a reference to it; NULL: half-built
        char* start
        Py_ssize_t size         # bytes
        uint64_t life           # of the arena; a reset begins the next

    def __init__(self):
        raise TypeError(f"{type(self).__name__} objects are made by their owner")

    def __len__(self):
        return self.size if is_alive(self) else 0

    def __repr__(self):
        return f"<ArenaBuffer of {len(self)} bytes>"

    def __buffer__(self, flags, /):
        """A view. Python calls it from 3.12 on only if it must; here for type checkers and 3.11."""
        return memoryview(self)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if not is_alive(self):
            raise ValueError("this buffer is gone: it was released, or its arena was reset")
        show(view, self, self.start, &self.size, flags)
        (<MemoryArena>self.arena).exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        (<MemoryArena>self.arena).exports -= 1


cdef inline bint is_alive(ArenaBuffer buffer) noexcept:
    return buffer.arena != NULL and buffer.life == (<MemoryArena>buffer.arena).life


cdef void drop_buffer(PyObject* buffer) noexcept:
    """tp_dealloc of ArenaBuffer."""
    cdef PyObject* arena = (<ArenaBuffer>buffer).arena
    (<ArenaBuffer>buffer).arena = NULL
    openbr_keep_spare(buffer)
    if arena != NULL:
        Py_DECREF(<object>arena)


@cython.final
@cython.no_gc
cdef class MemoryArena:
    """Memory in chunks, handed out in pieces and given back in one go by `reset`.

    chunk_bytes: 64 or more, rounded up to a multiple of 16; 64 KiB is a good size for streams.

    Threads: every method is atomic. The bytes appended by several threads are in the order of
    their calls.
    """

    cdef:
        char* cursor            # in the current chunk; equal to `end`: there is none, or it is full
        char* end
        Chunk* current          # NULL, or of chunk_bytes
        Chunk* others
        size_t chunk_bytes
        size_t allocated        # bytes in chunks
        size_t chunks
        size_t used             # bytes handed out or appended since the last reset
        size_t high_water       # the most bytes ever used, before the last reset
        size_t resets
        size_t exports          # views that exist
        uint64_t life           # a number for the time between two resets
        Extent* extents
        size_t extent_count
        size_t extent_room
        size_t collected        # bytes in extents
        object __weakref__

    def __cinit__(self, chunk_bytes=65536):
        self.chunk_bytes = round_up(
            <size_t>parse_whole("chunk_bytes", chunk_bytes, MIN_CHUNK, MAX_BYTES)
        )

    def __dealloc__(self):
        self._free_others()
        PyMem_Free(self.current)
        PyMem_Free(self.extents)

    def __repr__(self):
        return f"<MemoryArena with chunks of {self.chunk_bytes} bytes>"

    def __sizeof__(self):
        return (
            object.__sizeof__(self)
            + self.allocated
            + self.chunks * sizeof(Chunk)
            + self.extent_room * sizeof(Extent)
        )

    def alloc_buffer(self, n, /):
        """n bytes, aligned to 16.

        Raises: TypeError, ValueError (n < 1), OverflowError, MemoryError.
        """
        cdef Py_ssize_t size = openbr_small_int(n)
        if size < 1:
            size = unusual_size_from(n)
        cdef PyObject* spare = openbr_take_spare()
        cdef ArenaBuffer buffer
        if spare != NULL:
            buffer = <ArenaBuffer>spare
            Py_DECREF(buffer)           # the spare's reference; `buffer` has one of its own
        else:
            buffer = ArenaBuffer.__new__(ArenaBuffer)
        buffer.start = self._take_aligned(<size_t>size)
        if buffer.start == NULL:
            raise MemoryError
        buffer.arena = <PyObject*>self
        Py_INCREF(self)
        buffer.size = size
        buffer.life = self.life
        return buffer

    def append(self, data, /):
        """Collect a copy of data, for `take`.

        Raises: TypeError (not bytes-like), BufferError (not contiguous).
        """
        cdef Py_buffer view
        cdef int failed
        if type(data) is bytes:
            failed = self._append(PyBytes_AS_STRING(data), <size_t>len(<bytes>data))
        else:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            failed = self._append(<char*>view.buf, <size_t>view.len)
            PyBuffer_Release(&view)
        if failed:
            raise MemoryError

    def take(self):
        """All that was appended since the last `take` or `reset`, as one. Its memory stays."""
        cdef bytes taken = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.collected)
        cdef char* target = PyBytes_AS_STRING(taken)
        cdef size_t i
        for i in range(self.extent_count):
            memcpy(target, self.extents[i].start, self.extents[i].size)
            target += self.extents[i].size
        self.extent_count = self.collected = 0
        return taken

    def reset(self):
        """Give all memory back but one chunk. What was handed out is gone; see ArenaBuffer.

        Raises: BufferError while a view of a buffer exists; nothing changes then.
        """
        if self.exports > 0:
            raise BufferError("the arena cannot be reset: a view of its memory exists")
        self.high_water = max(self.high_water, self.used)
        self._free_others()
        PyMem_Free(self.extents)
        self.extents = NULL
        self.extent_count = self.extent_room = self.collected = 0
        self.allocated = self.used = self.chunks = 0
        if self.current != NULL:
            self.cursor = bytes_of(self.current)
            self.end = self.cursor + self.current.size
            self.allocated, self.chunks = self.current.size, 1
        self.life += 1
        self.resets += 1

    def stats(self):
        """What is taken, and the most that ever was."""
        return ArenaStats(
            allocated=self.allocated,
            used=self.used,
            high_water=max(self.high_water, self.used),
            chunks=self.chunks,
            resets=self.resets,
        )

    cdef inline char* _take_aligned(self, size_t size) noexcept:
        """NULL: no memory, nothing changed."""
        cdef size_t needed = round_up(size)
        # Chunks start aligned, so rounding the address is rounding the place in the chunk.
        cdef char* start = <char*>round_up(<size_t>self.cursor)
        cdef Chunk* chunk
        if start < self.end and needed <= <size_t>self.end - <size_t>start:
            self.cursor = start + needed
        elif needed > self.chunk_bytes:
            chunk = self._add_chunk(needed)
            if chunk == NULL:
                return NULL
            start = bytes_of(chunk)
        else:
            if self._next_chunk() < 0:
                return NULL
            start = self.cursor
            self.cursor += needed
        self.used += size
        return start

    cdef int _append(self, const char* data, size_t size) noexcept:
        """-1: no memory, nothing changed but perhaps the number of chunks."""
        cdef size_t fits = min(size, <size_t>self.end - <size_t>self.cursor)
        cdef size_t rest = size - fits
        cdef char* start = self.cursor
        cdef Chunk* chunk
        if size == 0:
            return 0
        if self._reserve_extents() < 0:
            return -1
        if rest > self.chunk_bytes:
            chunk = self._add_chunk(round_up(rest))
            if chunk == NULL:
                return -1
            self._collect(start, data, fits)
            self.cursor += fits
            self._collect(bytes_of(chunk), data + fits, rest)
        else:
            if rest > 0 and self._next_chunk() < 0:
                return -1
            self._collect(start, data, fits)
            if rest > 0:
                self._collect(self.cursor, data + fits, rest)
            self.cursor += rest if rest > 0 else fits
        self.used += size
        return 0

    cdef inline void _collect(self, char* start, const char* data, size_t size) noexcept:
        """Copy, and remember where; beside the last run is the same run."""
        cdef Extent* last
        if size == 0:
            return
        memcpy(start, data, size)
        self.collected += size
        if self.extent_count > 0:
            last = &self.extents[self.extent_count - 1]
            if last.start + last.size == start:
                last.size += size
                return
        self.extents[self.extent_count].start = start
        self.extents[self.extent_count].size = size
        self.extent_count += 1

    cdef int _reserve_extents(self) noexcept:
        """Room for two more. -1: no memory."""
        cdef size_t room
        cdef void* extents
        if self.extent_count + 2 > self.extent_room:
            room = 2 * self.extent_room + 4
            extents = PyMem_Realloc(self.extents, room * sizeof(Extent))
            if extents == NULL:
                return -1
            self.extents, self.extent_room = <Extent*>extents, room
        return 0

    cdef Chunk* _make_chunk(self, size_t size) noexcept:
        cdef Chunk* chunk = <Chunk*>PyMem_Malloc(sizeof(Chunk) + size)
        if chunk != NULL:
            chunk.size = size
            self.allocated += size
            self.chunks += 1
        return chunk

    cdef Chunk* _add_chunk(self, size_t size) noexcept:
        """A chunk of its own; the current one stays. NULL: no memory."""
        cdef Chunk* chunk = self._make_chunk(size)
        if chunk != NULL:
            chunk.next, self.others = self.others, chunk
        return chunk

    cdef int _next_chunk(self) noexcept:
        """A new current chunk. -1: no memory, nothing changed."""
        cdef Chunk* chunk = self._make_chunk(self.chunk_bytes)
        if chunk == NULL:
            return -1
        if self.current != NULL:
            self.current.next, self.others = self.others, self.current
        self.current = chunk
        self.cursor = bytes_of(chunk)
        self.end = self.cursor + chunk.size
        return 0

    cdef void _free_others(self) noexcept:
        cdef Chunk* chunk = self.others
        cdef Chunk* next
        while chunk != NULL:
            next = chunk.next
            PyMem_Free(chunk)
            chunk = next
        self.others = NULL


openbr_dealloc_with(ArenaBuffer, drop_buffer)
