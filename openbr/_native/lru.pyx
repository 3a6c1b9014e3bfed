# cython: language_level=3, binding=False, auto_pickle=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The bounded cache, compiled. What it does is written in its twin, lru_py.py; here is how.

In: hashable keys, any values. Out: the values again, until they are evicted or expire. The rules
that live only here: what can run Python code (hash, `__eq__`, size_of, clock, on_evict, a
destructor) runs between two calls of table.pxd, never inside one; no record number or pointer is
kept across it; references are given up last.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport Py_EQ, PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memset

from openbr._native.table cimport (
    FREE,
    Dropped,
    Pair,
    Record,
    Table,
    drop_dead,
    find_fault,
    forget_all,
    grow,
    has_tag,
    home,
    is_full,
    link,
    make_room,
    memory_of,
    number_in,
    shrink,
    table_init,
    tag_of,
    take,
    use,
)

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

    /* A str knows its hash once it was asked for: two calls less. */
    static inline Py_hash_t openbr_hash(PyObject *key) {
        if (PyUnicode_CheckExact(key)) {
            Py_hash_t hash = ((PyASCIIObject *)key)->hash;
            if (hash != -1) return hash;
        }
        return PyObject_Hash(key);
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
    Py_hash_t openbr_hash(object key) except -1
    # Without "except": the error is set, and who calls looks at what changed before passing it on.
    int PyObject_RichCompareBool(PyObject*, PyObject*, int) noexcept

cdef object _MISSING = object()

cdef enum:
    RESTARTS = 100
    LOOK_ALWAYS = 1000          # debug builds look for faults at every `set` of fewer entries


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
        Table table
        double ttl              # seconds; infinity: for ever
        bint timed              # some entry has, or had, a deadline
        int64_t hits
        int64_t misses
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
        table_init(&self.table)
        self.table.limit = parse_whole("max_entries", max_entries, 1, MAX_ENTRIES)
        self.ttl = parse_seconds("ttl_s", ttl_s)
        if max_bytes is not None:
            self.table.max_size = parse_whole("max_bytes", max_bytes, 1, MAX_BYTES)
        self.size_of = parse_callable("size_of", size_of)
        self.table.sieve = parse_policy(policy) == "sieve"
        self.on_evict = parse_callable("on_evict", on_evict)
        self.clock = parse_callable("clock", clock)
        if self.clock is None and not OPENBR_COARSE:
            self.clock = time.monotonic
        self.timed = self.ttl != INFINITY
        self.flights = Flights()

    def __repr__(self):
        return f"<TTLCache of at most {self.table.limit} entries>"

    def __sizeof__(self):
        return object.__sizeof__(self) + memory_of(&self.table)

    @classmethod
    def __class_getitem__(cls, item, /):
        return GenericAlias(cls, item)

    # What a key asks for.

    def get(self, key, default=None, /):
        """The value of a living entry, marked as used; else the default."""
        cdef int32_t i = self._find_living(key, True)
        if i < 0:
            self.misses += 1
            return default
        self.hits += 1
        use(&self.table, i)
        return <object>self.table.records[i].value

    def peek(self, key, default=None, /):
        """The value of a living entry, else the default. Changes nothing, counts nothing."""
        cdef double now = self._now()
        cdef int32_t i = self._find(<PyObject*>key, openbr_hash(key))
        if i < 0 or now >= self.table.records[i].deadline:
            return default
        return <object>self.table.records[i].value

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
        cdef int32_t i = self._find_living(key, False)
        cdef Dropped dropped
        if i >= 0:
            memset(&dropped, 0, sizeof(dropped))
            value = <object>self.table.records[i].value
            take(&self.table, i, &dropped, False)
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
        cdef int32_t i = self._find_living_at(key, now, False)
        if i < 0:
            return False
        self.table.records[i].deadline = now + life if life != INFINITY else INFINITY
        self.table.next_deadline = min(self.table.next_deadline, self.table.records[i].deadline)
        use(&self.table, i)
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
        cdef int failed = drop_dead(&self.table, now, &dropped)
        shrink(&self.table)
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
            if self.table.max_size < 0:
                raise ValueError("max_bytes must be given when the cache is made")
        now = self._now()
        memset(&dropped, 0, sizeof(dropped))
        self.table.limit = limit or self.table.limit
        self.table.max_size = max_size or self.table.max_size
        cdef int failed = make_room(&self.table, 0, 0, now, -1, &dropped)
        shrink(&self.table)
        self._finish(&dropped, failed)

    def stats(self):
        """Sizes and counts since the cache was made. Drops the dead first."""
        self.expire()
        return CacheStats(
            entries=self.table.count,
            max_entries=self.table.limit,
            bytes=self.table.size,
            max_bytes=None if self.table.max_size < 0 else self.table.max_size,
            hits=self.hits,
            misses=self.misses,
            evictions=self.table.evictions,
            expirations=self.table.expirations,
            rejections=self.rejections,
        )

    @property
    def max_entries(self):
        return self.table.limit

    @property
    def max_bytes(self):
        return None if self.table.max_size < 0 else self.table.max_size

    @property
    def ttl_s(self):
        return None if self.ttl == INFINITY else self.ttl

    @property
    def policy(self):
        return "sieve" if self.table.sieve else "lru"

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
        return self.table.count

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
        if self.table.max_size < 0:
            return 0
        if size is not None:
            return size
        if self.size_of is None:
            return sys.getsizeof(key) + sys.getsizeof(value)
        return parse_whole("size_of()", self.size_of(key, value), 0, MAX_BYTES)

    cdef inline int32_t _find_living(self, key, bint is_get) except -2:
        """The record of a key, if alive; a dead one is dropped. -1: none."""
        cdef Py_hash_t key_hash
        cdef int32_t i
        if self.clock is not None:
            return self._find_living_at(key, self._now(), is_get)
        key_hash = openbr_hash(key)
        i = self._find(<PyObject*>key, key_hash)
        # The coarse clock is not the user's: nothing runs between the search and the verdict.
        if i >= 0 and self.table.records[i].deadline != INFINITY:
            if openbr_now() >= self.table.records[i].deadline:
                self._drop_one_dead(i, is_get)
                return -1
        return i

    cdef int32_t _find_living_at(self, key, double now, bint is_get) except -2:
        cdef Py_hash_t key_hash = openbr_hash(key)
        cdef int32_t i = self._find(<PyObject*>key, key_hash)
        if i >= 0 and now >= self.table.records[i].deadline:
            self._drop_one_dead(i, is_get)
            return -1
        return i

    cdef int _drop_one_dead(self, int32_t i, bint is_get) except -1:
        cdef Dropped dropped
        memset(&dropped, 0, sizeof(dropped))
        take(&self.table, i, &dropped, True)
        self.table.expirations += 1
        self.misses += is_get           # for on_evict to see, and to stay if that raises
        self._finish(&dropped, 0)
        self.misses -= is_get           # `get` counts it
        return 0

    cdef inline int32_t _find(self, PyObject* key, Py_hash_t key_hash) except -2:
        """The record of a key, dead or alive. -1: none."""
        cdef int32_t i
        cdef int equal
        cdef uint64_t slot, version
        cdef uint32_t found, tag
        cdef Record* record
        cdef PyObject* stored
        if self.table.slots == NULL:
            return -1
        slot = home(&self.table, key_hash)
        tag = tag_of(&self.table, key_hash)
        while True:
            found = self.table.slots[slot]
            if found == FREE:
                return -1
            if not has_tag(&self.table, found, tag):
                slot = (slot + 1) & self.table.mask
                continue
            i = number_in(&self.table, found)
            record = &self.table.records[i]
            stored = record.key
            if stored == key:
                return i
            if record.hash == key_hash:
                version = self.table.version
                Py_INCREF(<object>stored)
                equal = PyObject_RichCompareBool(stored, key, Py_EQ)
                if self.table.version != version:
                    Py_DECREF(<object>stored)
                    return -2 if equal < 0 else self._find_again(key, key_hash)
                Py_DECREF(<object>stored)  # not the last: the record has one
                if equal < 0:
                    return -2
                if equal:
                    return i
            slot = (slot + 1) & self.table.mask

    cdef int32_t _find_again(self, PyObject* key, Py_hash_t key_hash) except -2:
        """`__eq__` added or dropped entries: search as the twin's `_find` does."""
        cdef int32_t i
        cdef uint64_t version
        for _ in range(RESTARTS):
            refused = []
            i = self._find_carefully(key, key_hash, refused)
            version = self.table.version
            refused.clear()             # may drop the last reference to a key, so run anything
            if self.table.version == version:
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
            if i < 0 or self.table.records[i].key == key:
                refused.extend(gone)
                return i
            stored = <object>self.table.records[i].key
            version = self.table.version
            equal = PyObject_RichCompareBool(<PyObject*>stored, key, Py_EQ)
            if equal < 0:
                return -2
            if self.table.version != version:
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
        if self.table.slots == NULL:
            return -1
        slot = home(&self.table, key_hash)
        while True:
            if self.table.slots[slot] == FREE:
                return -1
            i = number_in(&self.table, self.table.slots[slot])
            if self.table.records[i].key == key:
                return i
            if refused is not None and self.table.records[i].hash == key_hash:
                for other in refused:
                    if <PyObject*>other == self.table.records[i].key:
                        break
                else:
                    return i
            slot = (slot + 1) & self.table.mask

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
        if size is not None or self.table.max_size >= 0:
            cost = self._cost(key, value, size)
        if life != INFINITY:
            self.timed = True
        now = self._now()
        deadline = now + life if life != INFINITY else INFINITY
        key_hash = openbr_hash(key)
        i = self._find(<PyObject*>key, key_hash)
        # From here to _finish nothing runs but this.
        if self.table.max_size >= 0 and cost > self.table.max_size:
            self.rejections += 1
            if i >= 0:
                take(&self.table, i, &dropped, False)
                Py_DECREF(<object>dropped.first.value)
                Py_DECREF(<object>dropped.first.key)
            return False
        if i >= 0:
            return self._replace(i, value, deadline, cost, now)
        if is_full(&self.table) and grow(&self.table) < 0:
            raise MemoryError
        if self.table.count >= self.table.limit or self.table.max_size >= 0:
            failed = make_room(&self.table, 1, cost, now, -1, &dropped)
        if failed == 0:
            record = link(&self.table, key_hash, cost)
            record.key = <PyObject*>key
            record.value = <PyObject*>value
            record.deadline = deadline
            Py_INCREF(key)
            Py_INCREF(value)
            if deadline < self.table.next_deadline:
                self.table.next_deadline = deadline
        if OPENBR_DEBUG and (self.table.count < LOOK_ALWAYS or self.table.version % 4096 == 0):
            if find_fault(&self.table) != NULL:
                raise SystemError(f"cache: {find_fault(&self.table).decode()}")
        if dropped.count > 0 or failed:
            self._finish(&dropped, failed)
        return True

    cdef bint _replace(
        self, int32_t i, value, double deadline, int64_t cost, double now
    ) except -1:
        cdef Dropped dropped
        cdef Record* record = &self.table.records[i]
        cdef PyObject* old = record.value
        cdef int failed = 0
        memset(&dropped, 0, sizeof(dropped))
        Py_INCREF(value)
        record.value = <PyObject*>value
        record.deadline = deadline
        if deadline < self.table.next_deadline:
            self.table.next_deadline = deadline
        use(&self.table, i)
        if self.table.sizes != NULL:
            self.table.size += cost - self.table.sizes[i]
            self.table.sizes[i] = cost
            failed = make_room(&self.table, 0, 0, now, i, &dropped)
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
        cdef int32_t i = self.table.oldest
        cdef PyObject** held
        # A new list may start the collector, and that any destructor: hold everything first.
        held = <PyObject**>PyMem_Malloc((2 * <size_t>self.table.count + 1) * sizeof(PyObject*))
        if held == NULL:
            raise MemoryError
        while i >= 0:
            if not now >= self.table.records[i].deadline:
                held[n] = self.table.records[i].key
                held[n + 1] = self.table.records[i].value
                Py_INCREF(<object>held[n])
                Py_INCREF(<object>held[n + 1])
                n += 2
            i = self.table.links[i].next
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
        cdef Table old = self.table
        cdef int32_t i = old.oldest
        forget_all(&self.table)
        while old.block != NULL and i >= 0:
            Py_DECREF(<object>old.records[i].value)
            Py_DECREF(<object>old.records[i].key)
            i = old.links[i].next
        PyMem_Free(old.block)


cdef int _visit(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef Table* t = &(<TTLCache>self).table
    cdef int32_t i = t.oldest
    cdef int stop
    while t.block != NULL and i >= 0:
        stop = visit(t.records[i].key, arg)
        if stop == 0:
            stop = visit(t.records[i].value, arg)
        if stop:
            return stop
        i = t.links[i].next
    return 0


cdef void _drop(PyObject* self) noexcept:
    (<TTLCache>self)._drop_all()


openbr_adopt(TTLCache, _visit, _drop)
