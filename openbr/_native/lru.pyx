# cython: language_level=3, binding=False, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The bounded cache, compiled. What it does is written in its twin, lru_py.py; here is how.

In: hashable keys, any values. Out: the values again, until they are evicted or expire. The rule
that lives only here: between two calls that can run Python code (hash, `__eq__`, size_of, clock,
on_evict, a destructor) the table is whole, and no index or pointer into it is kept across one.

An entry is a 40-byte record in one array; an open-addressing table of int32 record numbers, at
most half full, finds it. Prev and next make the order of eviction, free records chain by next.
Sizes and the marks of "sieve" are arrays of their own, made only for the caches that use them.
All of it grows on demand. DECREF comes last.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport Py_EQ, PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

import sys
import time
from types import GenericAlias

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

cdef extern from *:
    """
    #include <time.h>
    #if defined(__linux__) && defined(CLOCK_MONOTONIC_COARSE)
    #define OPENBR_COARSE 1
    static inline double openbr_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
        return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
    }
    #else
    #define OPENBR_COARSE 0
    static inline double openbr_now(void) { return 0.0; }
    #endif
    #ifndef OPENBR_DEBUG
    #define OPENBR_DEBUG 0
    #endif

    /* Cython knows the fields that are Python objects; the records are for us to show to the
       collector and to drop. Weak references must be dead before a destructor of an entry runs:
       it could reach a cache that is half gone. */
    static int (*openbr_visit)(PyObject *, visitproc, void *);
    static void (*openbr_drop)(PyObject *);
    static traverseproc openbr_traverse_fields;
    static inquiry openbr_clear_fields;
    static destructor openbr_dealloc_fields;

    static int openbr_traverse(PyObject *self, visitproc visit, void *arg) {
        int stop = openbr_visit(self, visit, arg);
        return stop ? stop : openbr_traverse_fields(self, visit, arg);
    }
    static int openbr_clear(PyObject *self) {
        openbr_drop(self);
        return openbr_clear_fields(self);
    }
    static void openbr_dealloc(PyObject *self) {
        PyObject_GC_UnTrack(self);
        Py_TRASHCAN_BEGIN(self, openbr_dealloc)
        PyObject_ClearWeakRefs(self);
        openbr_drop(self);
        openbr_dealloc_fields(self);
        Py_TRASHCAN_END
    }
    static void openbr_adopt(PyObject *cls, int (*visit)(PyObject *, visitproc, void *),
                             void (*drop)(PyObject *)) {
        PyTypeObject *type = (PyTypeObject *)cls;
        openbr_visit = visit;
        openbr_drop = drop;
        openbr_traverse_fields = type->tp_traverse;
        openbr_clear_fields = type->tp_clear;
        openbr_dealloc_fields = type->tp_dealloc;
        type->tp_traverse = openbr_traverse;
        type->tp_clear = openbr_clear;
        type->tp_dealloc = openbr_dealloc;
    }
    """
    const bint OPENBR_COARSE
    const bint OPENBR_DEBUG
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    double openbr_now() noexcept
    void openbr_adopt(
        object cls,
        int (*visit)(PyObject*, visitproc, void*) noexcept,
        void (*drop)(PyObject*) noexcept,
    )
    # Without "except": the error is set, and who calls looks at what changed before passing it on.
    int PyObject_RichCompareBool(PyObject*, PyObject*, int) noexcept

cdef object _MISSING = object()

cdef enum:
    FIRST_RECORDS = 8
    FIRST_SHIFT = 60            # 64 - log2(slots)
    RESTARTS = 100

cdef struct Record:
    PyObject* key               # NULL: free
    PyObject* value
    Py_hash_t hash
    double deadline             # seconds of the clock; infinity: for ever
    int32_t prev                # older
    int32_t next                # newer; of a free record, the next free one

cdef struct Pair:
    PyObject* key
    PyObject* value
    bint expired

cdef struct Dropped:            # entries out of the table, references still held
    Py_ssize_t count
    Py_ssize_t room
    Pair first                  # the usual case needs no memory
    Pair* more


cdef inline uint64_t _home(Py_hash_t hash, int shift) noexcept:
    # Multiplying by 2**64 / golden ratio spreads hashes that differ in few bits, as of integers.
    return (<uint64_t>hash * <uint64_t>0x9E3779B97F4A7C15) >> shift


cdef inline int _keep(
    Dropped* dropped, PyObject* key, PyObject* value, bint expired
) noexcept:
    """Put a pair; the caller made room by _reserve."""
    cdef Pair* pair = &dropped.first
    if dropped.count > 0:
        pair = &dropped.more[dropped.count - 1]
    pair.key, pair.value, pair.expired = key, value, expired
    dropped.count += 1
    return 0


cdef inline int _reserve(Dropped* dropped) noexcept:
    """Room for one pair more. -1: no memory, no exception set."""
    cdef Py_ssize_t room
    cdef Pair* more
    if dropped.count <= dropped.room:
        return 0
    room = 2 * dropped.room + 8
    more = <Pair*>PyMem_Realloc(dropped.more, room * sizeof(Pair))
    if more == NULL:
        return -1
    dropped.more, dropped.room = more, room
    return 0


@cython.final
cdef class TTLCache:
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
    for another thread that uses the cache.
    """

    cdef:
        Record* records         # `capacity` of them, `used` ever handed out
        uint8_t* visited        # a mark a record, "sieve" only
        int64_t* sizes          # bytes a record, with max_bytes only
        int32_t* slots          # record numbers, -1 free; 2 ** (64 - shift) of them
        uint64_t mask
        int shift
        int32_t capacity
        int32_t used
        int32_t free            # first of the free chain, -1 none
        int32_t count
        int32_t limit           # max_entries
        int32_t oldest          # -1 none
        int32_t newest
        int32_t hand            # where "sieve" looks next; -1 is the oldest
        bint sieve
        bint timed              # some entry has, or had, a deadline
        uint64_t version        # changes when an entry comes or goes
        int64_t size            # bytes in all
        int64_t max_size        # max_bytes; -1 none
        double ttl              # seconds; infinity: for ever
        double next_deadline    # no entry dies before it
        int64_t hits
        int64_t misses
        int64_t evictions
        int64_t expirations
        int64_t rejections
        object clock            # None: the coarse clock
        object size_of
        object on_evict
        object flights
        object __weakref__

    def __cinit__(
        self,
        max_entries=1000,
        ttl_s=None,
        *,
        max_bytes=None,
        size_of=None,
        policy="lru",
        on_evict=None,
        clock=None,
    ):
        self.free = self.oldest = self.newest = self.hand = -1
        self.shift = FIRST_SHIFT
        self.next_deadline = INFINITY
        self.max_size = -1
        self.limit = parse_whole("max_entries", max_entries, 1, MAX_ENTRIES)
        self.ttl = parse_seconds("ttl_s", ttl_s)
        if max_bytes is not None:
            self.max_size = parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)
        self.size_of = parse_callable("size_of", size_of)
        self.sieve = parse_policy(policy) == "sieve"
        self.on_evict = parse_callable("on_evict", on_evict)
        self.clock = parse_callable("clock", clock)
        if self.clock is None and not OPENBR_COARSE:
            self.clock = time.monotonic
        self.timed = self.ttl != INFINITY
        self.flights = Flights()

    def __repr__(self):
        return f"<TTLCache of at most {self.limit} entries>"

    def __sizeof__(self):
        cdef size_t record = sizeof(Record)
        if self.visited != NULL:
            record += sizeof(uint8_t)
        if self.sizes != NULL:
            record += sizeof(int64_t)
        cdef size_t slots = self.mask + 1 if self.slots != NULL else 0
        return (
            object.__sizeof__(self) + <size_t>self.capacity * record + slots * sizeof(int32_t)
        )

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    # What a key asks for.

    def get(self, key, default=None, /):
        """The value of a living entry, marked as used; else the default."""
        cdef int32_t i = self._find_living(key)
        if i < 0:
            self.misses += 1
            return default
        self.hits += 1
        self._use(i)
        return <object>self.records[i].value

    def peek(self, key, default=None, /):
        """The value of a living entry, else the default. Changes nothing, counts nothing."""
        cdef double now = self._now()
        cdef int32_t i = self._find(<PyObject*>key, hash(key))
        if i < 0 or now >= self.records[i].deadline:
            return default
        return <object>self.records[i].value

    def set(self, key, value, *, ttl_s=None, size=None):
        """Keep a value. False if it is larger than max_bytes: then the key has no value at all.

        ttl_s: life of this entry; None is the cache's, infinity is for ever.
        size: bytes it counts for; None asks size_of. Used only with max_bytes.
        """
        return self._set(key, value, ttl_s, size)

    def get_or_set(self, key, factory, *, ttl_s=None, size=None):
        """The value of a living entry; else what the factory returns, computed once and kept.

        Threads that ask for the same key meanwhile wait for it. One that fails raises to its own
        caller, and the next one tries. Raises: RuntimeError if a factory waits for itself.
        """
        value = self.get(key, _MISSING)
        if value is not _MISSING:
            return value
        return self.flights.compute(self, key, factory, ttl_s, size)

    def delete(self, key, /):
        """Drop an entry. True if it was there and alive."""
        return self.pop(key, _MISSING) is not _MISSING

    def pop(self, key, /, *default):
        """Drop a living entry and return its value; else the default. Counts no hit or miss.

        Raises: KeyError if there is neither.
        """
        if len(default) > 1:
            raise TypeError(f"pop takes one default, not {len(default)}")
        cdef int32_t i = self._find_living(key)
        cdef Dropped dropped
        if i >= 0:
            memset(&dropped, 0, sizeof(dropped))
            value = <object>self.records[i].value
            self._take(i, &dropped, False)
            Py_DECREF(<object>dropped.first.value)
            Py_DECREF(<object>dropped.first.key)
            return value
        if default:
            return default[0]
        raise KeyError(key)

    def touch(self, key, /, *, ttl_s=None):
        """Mark a living entry as used and give it a whole new life. True if there is one.

        ttl_s: as in `set`.
        """
        cdef double life = self.ttl if ttl_s is None else parse_seconds("ttl_s", ttl_s)
        cdef double now
        if life != INFINITY:
            self.timed = True
        now = self._now()
        cdef int32_t i = self._find_living_at(key, now)
        if i < 0:
            return False
        self.records[i].deadline = now + life if life != INFINITY else INFINITY
        self.next_deadline = min(self.next_deadline, self.records[i].deadline)
        self._use(i)
        return True

    # The cache as a whole.

    def clear(self):
        """Drop every entry. Not an eviction: nobody is told."""
        self._drop_all()

    def expire(self):
        """Drop the dead and return their number."""
        cdef double now = self._now()
        cdef Dropped dropped
        cdef Py_ssize_t count
        memset(&dropped, 0, sizeof(dropped))
        cdef int failed = self._drop_dead(now, &dropped)
        self._shrink()
        count = dropped.count
        self._finish(&dropped, failed)
        return count

    def resize(self, max_entries=None, max_bytes=None):
        """Change the bounds; None leaves one as it is. Entries leave in order of eviction.

        Raises: ValueError if the cache was made without max_bytes, so has no sizes.
        """
        cdef int32_t limit = 0
        cdef int64_t max_size = 0
        cdef double now
        cdef Dropped dropped
        if max_entries is not None:
            limit = parse_whole("max_entries", max_entries, 1, MAX_ENTRIES)
        if max_bytes is not None:
            max_size = parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)
            if self.max_size < 0:
                raise ValueError("max_bytes must be given when the cache is made")
        now = self._now()
        memset(&dropped, 0, sizeof(dropped))
        self.limit = limit or self.limit
        self.max_size = max_size or self.max_size
        cdef int failed = self._make_room(0, 0, now, -1, &dropped)
        self._shrink()
        self._finish(&dropped, failed)

    def stats(self):
        """Sizes and counts since the cache was made. Drops the dead first."""
        self.expire()
        return CacheStats(
            entries=self.count,
            max_entries=self.limit,
            bytes=self.size,
            max_bytes=None if self.max_size < 0 else self.max_size,
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
            expirations=self.expirations,
            rejections=self.rejections,
        )

    @property
    def max_entries(self):
        return self.limit

    @property
    def max_bytes(self):
        return None if self.max_size < 0 else self.max_size

    @property
    def ttl_s(self):
        return None if self.ttl == INFINITY else self.ttl

    @property
    def policy(self):
        return "sieve" if self.sieve else "lru"

    # The mapping protocol. Lists and iterators show the moment of the call, first to leave first.

    def items(self):
        """The living entries, without marking them as used."""
        return self._snapshot(True, True)

    def keys(self):
        """The keys of `items`."""
        return self._snapshot(True, False)

    def values(self):
        """The values of `items`."""
        return self._snapshot(False, True)

    def __len__(self):
        """How many live. Drops the dead first: a walk over all entries, if there are any."""
        self.expire()
        return self.count

    def __iter__(self):
        return iter(self._snapshot(True, False))

    def __contains__(self, key, /):
        return self.peek(key, _MISSING) is not _MISSING

    def __getitem__(self, key, /):
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key, value, /):
        self._set(key, value, None, None)

    def __delitem__(self, key, /):
        self.pop(key)

    # These run what the user gave: whoever calls them holds no index across the call.

    cdef inline double _now(self) except? -1.0:
        if not self.timed:
            return -INFINITY
        if self.clock is None:
            return openbr_now()
        return float(self.clock())

    cdef int64_t _cost(self, key, value, size) except -1:
        if size is not None:
            size = parse_whole("size", size, 0, MAX_BYTES)
        if self.max_size < 0:
            return 0
        if size is not None:
            return size
        if self.size_of is None:
            return sys.getsizeof(key) + sys.getsizeof(value)
        return parse_whole("size_of()", self.size_of(key, value), 0, MAX_BYTES)

    cdef inline int32_t _find_living(self, key) except -2:
        """The record of a key, if alive; a dead one is dropped. -1: none."""
        cdef Py_hash_t key_hash
        cdef int32_t i
        if self.clock is not None and self.timed:
            return self._find_living_at(key, self._now())
        key_hash = hash(key)
        i = self._find(<PyObject*>key, key_hash)
        # The coarse clock is not the user's: nothing runs between the search and the verdict.
        if i >= 0 and self.records[i].deadline != INFINITY:
            if openbr_now() >= self.records[i].deadline:
                self._drop_one_dead(i)
                return -1
        return i

    cdef int32_t _find_living_at(self, key, double now) except -2:
        cdef Py_hash_t key_hash = hash(key)
        cdef int32_t i = self._find(<PyObject*>key, key_hash)
        if i >= 0 and now >= self.records[i].deadline:
            self._drop_one_dead(i)
            return -1
        return i

    cdef int _drop_one_dead(self, int32_t i) except -1:
        cdef Dropped dropped
        memset(&dropped, 0, sizeof(dropped))
        self._take(i, &dropped, True)
        self.expirations += 1
        return self._finish(&dropped, 0)

    cdef inline int32_t _find(self, PyObject* key, Py_hash_t key_hash) except -2:
        """The record of a key, dead or alive. -1: none."""
        cdef int32_t i
        cdef int equal
        cdef uint64_t slot, version
        cdef Record* record
        cdef PyObject* stored
        if self.slots == NULL:
            return -1
        slot = _home(key_hash, self.shift)
        while True:
            i = self.slots[slot]
            if i < 0:
                return -1
            record = &self.records[i]
            stored = record.key
            if stored == key:
                return i
            if record.hash == key_hash:
                version = self.version
                Py_INCREF(<object>stored)
                equal = PyObject_RichCompareBool(stored, key, Py_EQ)
                if self.version != version:
                    Py_DECREF(<object>stored)
                    return -2 if equal < 0 else self._find_again(key, key_hash)
                Py_DECREF(<object>stored)  # not the last: the record has one
                if equal < 0:
                    return -2
                if equal:
                    return i
            slot = (slot + 1) & self.mask

    cdef int32_t _find_again(self, PyObject* key, Py_hash_t key_hash) except -2:
        """`__eq__` added or dropped entries: search as the twin's `_find` does."""
        cdef int32_t i
        cdef uint64_t version
        for _ in range(RESTARTS):
            refused = []
            i = self._find_carefully(key, key_hash, refused)
            version = self.version
            refused.clear()             # may drop the last reference to a key, so run anything
            if self.version == version:
                return i
        raise RuntimeError("the cache never stops changing while __eq__ of a key runs")

    cdef int32_t _find_carefully(
        self, PyObject* key, Py_hash_t key_hash, list refused
    ) except -2:
        """`refused` keeps alive all that was compared, so that no destructor runs in here."""
        cdef int32_t i
        cdef int equal, restarts = 0
        cdef uint64_t version
        gone = []
        while restarts < RESTARTS:
            i = self._next_candidate(key, key_hash, refused)
            if i < 0 or self.records[i].key == key:
                return i
            stored = <object>self.records[i].key
            version = self.version
            equal = PyObject_RichCompareBool(<PyObject*>stored, key, Py_EQ)
            if equal < 0:
                return -2
            if self.version != version:
                restarts += 1
                if equal:
                    i = self._next_candidate(<PyObject*>stored, key_hash, None)
                    if i < 0:           # it was the one, and is not there any more
                        gone.append(stored)
                        continue
            refused.append(stored)
            if equal:
                refused.extend(gone)
                return i
        raise RuntimeError("the cache never stops changing while __eq__ of a key runs")

    cdef int32_t _next_candidate(self, PyObject* key, Py_hash_t key_hash, list refused) noexcept:
        """The first record that holds this very key or, with `refused`, another of its hash."""
        cdef int32_t i
        cdef uint64_t slot
        if self.slots == NULL:
            return -1
        slot = _home(key_hash, self.shift)
        while True:
            i = self.slots[slot]
            if i < 0 or self.records[i].key == key:
                return i
            if refused is not None and self.records[i].hash == key_hash:
                for other in refused:
                    if <PyObject*>other == self.records[i].key:
                        break
                else:
                    return i
            slot = (slot + 1) & self.mask

    cdef bint _set(self, key, value, ttl_s, size) except -1:
        cdef double life = self.ttl if ttl_s is None else parse_seconds("ttl_s", ttl_s)
        cdef int64_t cost = 0
        cdef double now, deadline
        cdef Py_hash_t key_hash
        cdef int32_t i
        cdef int failed = 0
        cdef Dropped dropped
        cdef Record* record
        dropped.count = dropped.room = 0
        dropped.more = NULL
        if size is not None or self.max_size >= 0:
            cost = self._cost(key, value, size)
        if life != INFINITY:
            self.timed = True
        now = self._now()
        deadline = now + life if life != INFINITY else INFINITY
        key_hash = hash(key)
        i = self._find(<PyObject*>key, key_hash)
        # From here to _finish nothing runs but this.
        if self.max_size >= 0 and cost > self.max_size:
            self.rejections += 1
            if i >= 0:
                self._take(i, &dropped, False)
                Py_DECREF(<object>dropped.first.value)
                Py_DECREF(<object>dropped.first.key)
            return False
        if i >= 0:
            return self._replace(i, value, deadline, cost, now)
        if self.free < 0 and self.used == self.capacity and self.count < self.limit:
            self._grow()
        if self.count >= self.limit or self.max_size >= 0:
            failed = self._make_room(1, cost, now, -1, &dropped)
        if failed == 0:
            i = self._link(key_hash, cost)
            record = &self.records[i]
            record.key = <PyObject*>key
            record.value = <PyObject*>value
            record.deadline = deadline
            Py_INCREF(key)
            Py_INCREF(value)
            if deadline < self.next_deadline:
                self.next_deadline = deadline
        if OPENBR_DEBUG:
            self._verify()
        if dropped.count > 0 or failed:
            self._finish(&dropped, failed)
        return True

    cdef bint _replace(
        self, int32_t i, value, double deadline, int64_t cost, double now
    ) except -1:
        cdef Dropped dropped
        cdef Record* record = &self.records[i]
        cdef PyObject* old = record.value
        cdef int failed = 0
        memset(&dropped, 0, sizeof(dropped))
        Py_INCREF(value)
        record.value = <PyObject*>value
        record.deadline = deadline
        if deadline < self.next_deadline:
            self.next_deadline = deadline
        self._use(i)
        if self.sizes != NULL:
            self.size += cost - self.sizes[i]
            self.sizes[i] = cost
            failed = self._make_room(0, 0, now, i, &dropped)
        Py_DECREF(<object>old)
        self._finish(&dropped, failed)
        return True

    cdef int _finish(self, Dropped* dropped, int failed) except -1:
        """Tell on_evict, then give up the references. The table is whole and may change."""
        cdef Py_ssize_t n
        cdef Pair* pair
        error = None
        for n in range(dropped.count):
            pair = &dropped.first if n == 0 else &dropped.more[n - 1]
            if self.on_evict is not None and error is None:
                try:
                    self.on_evict(
                        <object>pair.key, <object>pair.value, "expired" if pair.expired else "full"
                    )
                except BaseException as exc:
                    error = exc
            Py_DECREF(<object>pair.value)
            Py_DECREF(<object>pair.key)
        PyMem_Free(dropped.more)
        if error is not None:
            raise error
        if failed:
            raise MemoryError
        return 0

    cdef list _snapshot(self, bint keys, bint values):
        cdef double now = self._now()
        cdef Py_ssize_t n = 0, k
        cdef int32_t i = self.oldest
        cdef PyObject** held
        # A new list may start the collector, and that any destructor: hold everything first.
        held = <PyObject**>PyMem_Malloc((2 * <size_t>self.count + 1) * sizeof(PyObject*))
        if held == NULL:
            raise MemoryError
        while i >= 0:
            if not now >= self.records[i].deadline:
                held[n] = self.records[i].key
                held[n + 1] = self.records[i].value
                Py_INCREF(<object>held[n])
                Py_INCREF(<object>held[n + 1])
                n += 2
            i = self.records[i].next
        try:
            if not values:
                return [<object>held[k] for k in range(0, n, 2)]
            if not keys:
                return [<object>held[k] for k in range(1, n, 2)]
            return [(<object>held[k], <object>held[k + 1]) for k in range(0, n, 2)]
        finally:
            for k in range(n):
                Py_DECREF(<object>held[k])
            PyMem_Free(held)

    cdef void _drop_all(self) noexcept:
        """Drop every entry: the table is empty before the first reference is given up."""
        cdef Record* records = self.records
        cdef int32_t i = self.oldest
        PyMem_Free(self.slots)
        PyMem_Free(self.sizes)
        PyMem_Free(self.visited)
        self.records, self.slots, self.sizes, self.visited = NULL, NULL, NULL, NULL
        self.free = self.oldest = self.newest = self.hand = -1
        self.capacity = self.used = self.count = 0
        self.shift, self.mask, self.size = FIRST_SHIFT, 0, 0
        self.next_deadline = INFINITY
        self.version += 1
        while records != NULL and i >= 0:
            Py_DECREF(<object>records[i].value)
            Py_DECREF(<object>records[i].key)
            i = records[i].next
        PyMem_Free(records)

    # From here on nothing runs Python code or makes a Python object.

    cdef inline void _use(self, int32_t i) noexcept:
        cdef Record* records = self.records
        cdef int32_t prev, next
        if self.sieve:
            self.visited[i] = 1
            return
        next = records[i].next
        if next < 0:
            return
        prev = records[i].prev
        if prev >= 0:
            records[prev].next = next
        else:
            self.oldest = next
        records[next].prev = prev
        records[i].prev = self.newest
        records[i].next = -1
        records[self.newest].next = i
        self.newest = i

    cdef inline void _place(self, int32_t i) noexcept:
        """Write a record's number in the first free slot from its home."""
        cdef uint64_t slot = _home(self.records[i].hash, self.shift)
        while self.slots[slot] >= 0:
            slot = (slot + 1) & self.mask
        self.slots[slot] = i

    cdef inline int32_t _link(self, Py_hash_t key_hash, int64_t cost) noexcept:
        """A record in its slot and at the newest end; the caller fills in key and value."""
        cdef int32_t i = self.free
        cdef Record* record
        if i >= 0:
            self.free = self.records[i].next
        else:
            i = self.used
            self.used += 1
        record = &self.records[i]
        record.hash = key_hash
        record.prev = self.newest
        record.next = -1
        if self.newest >= 0:
            self.records[self.newest].next = i
        else:
            self.oldest = i
        self.newest = i
        if self.sieve:
            self.visited[i] = 0
        if self.sizes != NULL:
            self.sizes[i] = cost
            self.size += cost
        self._place(i)
        self.count += 1
        self.version += 1
        return i

    cdef void _vacate(self, int32_t i) noexcept:
        """Free a record's slot and move those behind it up, so that no search stops too soon."""
        cdef int32_t* slots = self.slots
        cdef uint64_t mask = self.mask, hole, probe, home
        hole = _home(self.records[i].hash, self.shift)
        while slots[hole] != i:
            hole = (hole + 1) & mask
        probe = (hole + 1) & mask
        while slots[probe] >= 0:
            home = _home(self.records[slots[probe]].hash, self.shift)
            if ((probe - home) & mask) >= ((probe - hole) & mask):
                slots[hole] = slots[probe]
                hole = probe
            probe = (probe + 1) & mask
        slots[hole] = -1

    cdef inline void _take(self, int32_t i, Dropped* dropped, bint expired) noexcept:
        """Take an entry out; its references go to `dropped`."""
        cdef Record* record = &self.records[i]
        self._vacate(i)
        _keep(dropped, record.key, record.value, expired)
        if self.hand == i:
            self.hand = record.next
        if record.prev >= 0:
            self.records[record.prev].next = record.next
        else:
            self.oldest = record.next
        if record.next >= 0:
            self.records[record.next].prev = record.prev
        else:
            self.newest = record.prev
        if self.sizes != NULL:
            self.size -= self.sizes[i]
        record.key = record.value = NULL
        record.next = self.free
        self.free = i
        self.count -= 1
        self.version += 1
        if self.count == 0:
            self.next_deadline = INFINITY

    cdef int _make_room(
        self, int32_t more, int64_t cost, double now, int32_t keep, Dropped* dropped
    ) noexcept:
        """Evict until `more` entries of `cost` bytes fit; never `keep`. -1: no memory."""
        cdef int32_t i
        cdef bint expired
        while self.count + more > self.limit or (
            self.max_size >= 0 and self.size + cost > self.max_size
        ):
            if _reserve(dropped) < 0:
                return -1
            i = self._next_victim(keep) if self.sieve else self.oldest
            expired = now >= self.records[i].deadline
            if expired:
                self.expirations += 1
            else:
                self.evictions += 1
            self._take(i, dropped, expired)
        return 0

    cdef int32_t _next_victim(self, int32_t keep) noexcept:
        cdef int32_t i = self.hand if self.hand >= 0 else self.oldest
        while i == keep or self.visited[i]:
            if i != keep:
                self.visited[i] = 0
            i = self.records[i].next
            if i < 0:
                i = self.oldest
        self.hand = i
        return i

    cdef int _drop_dead(self, double now, Dropped* dropped) noexcept:
        """-1: no memory; some of the dead may be left."""
        cdef int32_t i, next
        cdef double nearest = INFINITY
        if now < self.next_deadline:
            return 0
        i = self.oldest
        while i >= 0:
            next = self.records[i].next
            if now >= self.records[i].deadline:
                if _reserve(dropped) < 0:
                    return -1
                self._take(i, dropped, True)
                self.expirations += 1
            elif self.records[i].deadline < nearest:
                nearest = self.records[i].deadline
            i = next
        self.next_deadline = nearest
        return 0

    # The arrays.

    cdef int _resize_arrays(self, int32_t capacity) noexcept:
        """Give every array room for `capacity` records. -1: no memory, nothing lost."""
        cdef void* array
        array = PyMem_Realloc(self.records, <size_t>capacity * sizeof(Record))
        if array == NULL:
            return -1
        self.records = <Record*>array
        if self.sieve:
            array = PyMem_Realloc(self.visited, <size_t>capacity)
            if array == NULL:
                return -1
            self.visited = <uint8_t*>array
        if self.max_size >= 0:
            array = PyMem_Realloc(self.sizes, <size_t>capacity * sizeof(int64_t))
            if array == NULL:
                return -1
            self.sizes = <int64_t*>array
        return 0

    cdef int _grow(self) except -1:
        cdef int32_t capacity = max(FIRST_RECORDS, 2 * self.capacity)
        cdef int shift = self.shift
        capacity = min(capacity, self.limit)
        if self._resize_arrays(capacity) < 0:
            raise MemoryError
        while (<uint64_t>1 << (64 - shift)) < 2 * <uint64_t>capacity:
            shift -= 1
        if self._rebuild(shift) < 0:
            raise MemoryError
        self.capacity = capacity
        return 0

    cdef int _rebuild(self, int shift) noexcept:
        """New slots for the records as they are. -1: no memory, nothing changed."""
        cdef uint64_t count = <uint64_t>1 << (64 - shift)
        cdef int32_t* slots
        cdef int32_t i
        if self.slots != NULL and shift == self.shift:
            return 0
        slots = <int32_t*>PyMem_Malloc(count * sizeof(int32_t))
        if slots == NULL:
            return -1
        PyMem_Free(self.slots)
        memset(slots, 0xFF, count * sizeof(int32_t))
        self.slots, self.shift, self.mask = slots, shift, count - 1
        i = self.oldest
        while i >= 0:
            self._place(i)
            i = self.records[i].next
        self.version += 1
        return 0

    cdef void _shrink(self) noexcept:
        """Give memory back if most is unused: records renumbered from the oldest on.

        Without the memory for the copy, the arrays stay as they are.
        """
        cdef int32_t capacity = max(<int32_t>FIRST_RECORDS, self.count)
        cdef Record* records
        cdef uint8_t* visited = NULL
        cdef int64_t* sizes = NULL
        cdef int32_t* slots
        cdef int32_t i = self.oldest, n = 0, hand = -1
        cdef int shift = FIRST_SHIFT
        cdef uint64_t count
        if self.capacity <= 64 or self.count > self.capacity // 4:
            return
        if self.count == 0:
            self._drop_all()            # no entries, so nothing runs
            return
        capacity = min(capacity, self.limit)
        while (<uint64_t>1 << (64 - shift)) < 2 * <uint64_t>capacity:
            shift -= 1
        count = <uint64_t>1 << (64 - shift)
        records = <Record*>PyMem_Malloc(<size_t>capacity * sizeof(Record))
        slots = <int32_t*>PyMem_Malloc(count * sizeof(int32_t))
        if self.visited != NULL:
            visited = <uint8_t*>PyMem_Malloc(<size_t>capacity)
        if self.sizes != NULL:
            sizes = <int64_t*>PyMem_Malloc(<size_t>capacity * sizeof(int64_t))
        if (
            records == NULL
            or slots == NULL
            or (self.visited != NULL and visited == NULL)
            or (self.sizes != NULL and sizes == NULL)
        ):
            PyMem_Free(records)
            PyMem_Free(slots)
            PyMem_Free(visited)
            PyMem_Free(sizes)
            return
        while i >= 0:
            records[n] = self.records[i]
            records[n].prev = n - 1
            records[n].next = n + 1 if self.records[i].next >= 0 else -1
            if visited != NULL:
                visited[n] = self.visited[i]
            if sizes != NULL:
                sizes[n] = self.sizes[i]
            if i == self.hand:
                hand = n
            i = self.records[i].next
            n += 1
        PyMem_Free(self.records)
        PyMem_Free(self.slots)
        PyMem_Free(self.visited)
        PyMem_Free(self.sizes)
        memset(slots, 0xFF, count * sizeof(int32_t))
        self.records, self.slots, self.visited, self.sizes = records, slots, visited, sizes
        self.shift, self.mask, self.capacity, self.used, self.free = shift, count - 1, capacity, n, -1
        self.oldest, self.newest, self.hand = 0, n - 1, hand
        for i in range(n):
            self._place(i)
        self.version += 1

    cdef int _verify(self) except -1:
        """In a debug build, after each entry that comes: is the table what it should be?"""
        cdef int32_t i = self.oldest, prev = -1, n = 0, free = 0
        cdef int64_t size = 0
        cdef uint64_t slot, filled = 0
        while i >= 0:
            if i >= self.used or self.records[i].key == NULL or self.records[i].prev != prev:
                raise SystemError("cache: broken order")
            slot = _home(self.records[i].hash, self.shift)
            while self.slots[slot] != i:
                if self.slots[slot] < 0:
                    raise SystemError("cache: a record that cannot be found")
                slot = (slot + 1) & self.mask
            if self.sizes != NULL:
                size += self.sizes[i]
            prev, n, i = i, n + 1, self.records[i].next
        i = self.free
        while i >= 0:
            if self.records[i].key != NULL:
                raise SystemError("cache: a free record in use")
            free, i = free + 1, self.records[i].next
        for slot in range(self.mask + 1):
            filled += self.slots[slot] >= 0
        if prev != self.newest or n != self.count or n + free != self.used or n != filled:
            raise SystemError("cache: wrong count")
        if size != self.size or self.used > self.capacity or 2 * n > self.mask + 1:
            raise SystemError("cache: wrong size")
        return 0


cdef int _visit(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef Record* records = (<TTLCache>self).records
    cdef int32_t i = (<TTLCache>self).oldest
    cdef int stop
    while records != NULL and i >= 0:
        stop = visit(records[i].key, arg)
        if stop == 0:
            stop = visit(records[i].value, arg)
        if stop:
            return stop
        i = records[i].next
    return 0


cdef void _drop(PyObject* self) noexcept:
    (<TTLCache>self)._drop_all()


openbr_adopt(TTLCache, _visit, _drop)
