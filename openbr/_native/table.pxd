"""The memory of a TTLCache: records, the slots that find them, and their order.

In: hashes, sizes, deadlines. Out: record numbers. The rule that lives only here: nothing in this
file runs Python code or makes a Python object, so between two of its calls the table is whole.
It is a .pxd because its functions must be inlined into lru.pyx, the only module that uses it.

An entry is a 32-byte record and 8 bytes of links; an open-addressing table of 32-bit slots, at
most half full, finds it. A slot is a record's number, and in the bits that leaves free a piece of
its hash: a search that meets other entries on its way almost never touches their records. `prev` and `next` make the order of eviction; they lie apart
because a hit in a large cache touches the links of three entries, and those of one only of its
record. Sizes and the marks of "sieve" are there only in caches that use them. All arrays are one
block of memory, replaced by a larger one on demand.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef enum:
    FIRST_CAPACITY = 8
    EMPTY_SHIFT = 64
    SHRINK_ABOVE = 64           # smaller tables stay as they are

cdef extern from *:
    """
    #define OPENBR_FREE ((uint32_t)0xFFFFFFFF)
    """
    const uint32_t FREE "OPENBR_FREE"

cdef struct Record:
    PyObject* key               # NULL: free
    PyObject* value
    Py_hash_t hash
    double deadline             # seconds of the clock; infinity: for ever

cdef struct Link:
    int32_t prev                # older, -1 none
    int32_t next                # newer, -1 none; of a free record, the next free one

cdef struct Table:
    void* block                 # the memory of all arrays
    Record* records             # `capacity` of them, `used` ever handed out
    Link* links                 # one a record
    uint32_t* slots             # 2 ** (64 - shift) of them
    uint64_t mask               # their number - 1
    uint32_t number_mask        # the bits of a slot that are a record's number; all set: free
    int shift
    int32_t oldest              # -1 none
    int32_t newest              # -1 none
    int32_t free                # first of the free chain, -1 none
    int32_t used
    int32_t capacity
    int32_t count
    int32_t limit               # max_entries
    int32_t hand                # where "sieve" looks next; -1 is the oldest
    bint sieve
    uint8_t* visited            # a mark a record, "sieve" only
    int64_t* sizes              # bytes a record, with max_bytes only
    int64_t size                # bytes in all
    int64_t max_size            # max_bytes; -1 none
    uint64_t version            # changes when an entry comes or goes
    double next_deadline        # no entry dies before it
    int64_t evictions
    int64_t expirations

cdef struct Pair:
    PyObject* key
    PyObject* value
    bint expired

cdef struct Dropped:            # entries out of the table, references still held
    Py_ssize_t count
    Py_ssize_t room             # of `more`
    Pair first                  # the usual case needs no memory
    Pair* more


cdef inline void table_init(Table* t) noexcept:
    memset(t, 0, sizeof(Table))
    t.oldest = t.newest = t.free = t.hand = -1
    t.shift = EMPTY_SHIFT
    t.max_size = -1
    t.next_deadline = INFINITY


@cython.overflowcheck(False)  # modulo 2**64 is what is meant
cdef inline uint64_t spread(Py_hash_t hash) noexcept:
    # Multiplying by 2**64 / golden ratio spreads hashes that differ in few bits, as of integers.
    return <uint64_t>hash * <uint64_t>0x9E3779B97F4A7C15


cdef inline uint64_t home(Table* t, Py_hash_t hash) noexcept:
    """The slot where the search for a hash begins."""
    return spread(hash) >> t.shift


cdef inline uint32_t tag_of(Table* t, Py_hash_t hash) noexcept:
    """The piece of a hash that its slot holds: other bits than those that chose the slot."""
    return <uint32_t>(spread(hash) >> 8) & ~t.number_mask


cdef inline int32_t number_in(Table* t, uint32_t slot) noexcept:
    return <int32_t>(slot & t.number_mask)


cdef inline bint has_tag(Table* t, uint32_t slot, uint32_t tag) noexcept:
    return (slot & ~t.number_mask) == tag


# Order.


cdef inline void use(Table* t, int32_t i) noexcept:
    """Mark as used: to the newest end, or for "sieve" a mark."""
    cdef Link* links = t.links
    cdef int32_t prev, next
    if t.sieve:
        t.visited[i] = 1
        return
    next = links[i].next
    if next < 0:
        return
    prev = links[i].prev
    if prev >= 0:
        links[prev].next = next
    else:
        t.oldest = next
    links[next].prev = prev
    links[i].prev = t.newest
    links[i].next = -1
    links[t.newest].next = i
    t.newest = i


cdef inline int32_t next_victim(Table* t, int32_t keep) noexcept:
    """Who goes next; never `keep`. There must be another."""
    cdef int32_t i
    if not t.sieve:
        return t.oldest
    i = t.hand if t.hand >= 0 else t.oldest
    while i == keep or t.visited[i]:
        if i != keep:
            t.visited[i] = 0
        i = t.links[i].next
        if i < 0:
            i = t.oldest
    t.hand = i
    return i


# In and out.


cdef inline void place(Table* t, int32_t i) noexcept:
    """Write a record's number in the first free slot from its home."""
    cdef uint64_t slot = home(t, t.records[i].hash)
    while t.slots[slot] != FREE:
        slot = (slot + 1) & t.mask
    t.slots[slot] = tag_of(t, t.records[i].hash) | <uint32_t>i


cdef inline bint is_full(Table* t) noexcept:
    """No record is left, and one more entry is allowed: `grow` must come before `link`."""
    return t.free < 0 and t.used == t.capacity and t.count < t.limit


cdef inline Record* link(Table* t, Py_hash_t hash, int64_t size) noexcept:
    """A record in its slot, as the newest; the caller fills in key, value and deadline."""
    cdef int32_t i = t.free
    cdef Record* record
    if i >= 0:
        t.free = t.links[i].next
    else:
        i = t.used
        t.used += 1
    record = &t.records[i]
    record.hash = hash
    t.links[i].prev = t.newest
    t.links[i].next = -1
    if t.newest >= 0:
        t.links[t.newest].next = i
    else:
        t.oldest = i
    t.newest = i
    if t.sieve:
        t.visited[i] = 0
    if t.sizes != NULL:
        t.sizes[i] = size
        t.size += size
    place(t, i)
    t.count += 1
    t.version += 1
    return record


@cython.overflowcheck(False)  # distances are modulo the number of slots
cdef inline void vacate(Table* t, int32_t i) noexcept:
    """Free a record's slot and move up those behind it, so that no search stops too soon."""
    cdef uint32_t* slots = t.slots
    cdef uint64_t mask = t.mask, hole, probe, start
    hole = home(t, t.records[i].hash)
    while number_in(t, slots[hole]) != i:
        hole = (hole + 1) & mask
    probe = (hole + 1) & mask
    while slots[probe] != FREE:
        start = home(t, t.records[number_in(t, slots[probe])].hash)
        if ((probe - start) & mask) >= ((probe - hole) & mask):
            slots[hole] = slots[probe]
            hole = probe
        probe = (probe + 1) & mask
    slots[hole] = FREE


cdef inline int reserve(Dropped* dropped) noexcept:
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


cdef inline void take(Table* t, int32_t i, Dropped* dropped, bint expired) noexcept:
    """Take an entry out; its references go to `dropped`, where `reserve` made room."""
    cdef Record* record = &t.records[i]
    cdef Link* link = &t.links[i]
    cdef Pair* pair = &dropped.first
    if dropped.count > 0:
        pair = &dropped.more[dropped.count - 1]
    pair.key, pair.value, pair.expired = record.key, record.value, expired
    dropped.count += 1
    vacate(t, i)
    if t.hand == i:
        t.hand = link.next
    if link.prev >= 0:
        t.links[link.prev].next = link.next
    else:
        t.oldest = link.next
    if link.next >= 0:
        t.links[link.next].prev = link.prev
    else:
        t.newest = link.prev
    if t.sizes != NULL:
        t.size -= t.sizes[i]
    record.key = record.value = NULL
    link.next = t.free
    t.free = i
    t.count -= 1
    t.version += 1
    if t.count == 0:
        t.next_deadline = INFINITY


cdef inline int make_room(
    Table* t, int32_t more, int64_t size, double now, int32_t keep, Dropped* dropped
) noexcept:
    """Evict until `more` entries of `size` bytes fit; never `keep`. -1: no memory."""
    cdef int32_t i
    cdef bint expired
    while t.count + more > t.limit or (t.max_size >= 0 and t.size + size > t.max_size):
        if reserve(dropped) < 0:
            return -1
        i = next_victim(t, keep)
        expired = now >= t.records[i].deadline
        if expired:
            t.expirations += 1
        else:
            t.evictions += 1
        take(t, i, dropped, expired)
    return 0


cdef inline int drop_dead(Table* t, double now, Dropped* dropped) noexcept:
    """Take out the dead, oldest first. -1: no memory, some of the dead may be left."""
    cdef int32_t i, next
    cdef double nearest = INFINITY
    if now < t.next_deadline:
        return 0
    i = t.oldest
    while i >= 0:
        next = t.links[i].next
        if now >= t.records[i].deadline:
            if reserve(dropped) < 0:
                return -1
            take(t, i, dropped, True)
            t.expirations += 1
        elif t.records[i].deadline < nearest:
            nearest = t.records[i].deadline
        i = next
    t.next_deadline = nearest
    return 0


# The arrays.


cdef inline int shift_for(int32_t capacity) noexcept:
    """For slots at most half full."""
    cdef int shift = EMPTY_SHIFT
    while (<uint64_t>1 << (64 - shift)) < 2 * <uint64_t>capacity:
        shift -= 1
    return shift


cdef inline size_t lay_out(Table* t, uintptr_t start) noexcept:
    """Point the arrays for `capacity` and `shift` into a block; returns the size it must have."""
    cdef size_t capacity = <size_t>t.capacity
    cdef uintptr_t at = (start + 31) & ~<uintptr_t>31   # no record on two cache lines
    t.records = <Record*>at
    at += capacity * sizeof(Record)
    t.links = <Link*>at
    at += capacity * sizeof(Link)
    t.sizes = <int64_t*>at if t.max_size >= 0 else NULL
    if t.sizes != NULL:
        at += capacity * sizeof(int64_t)
    t.slots = <uint32_t*>at
    at += <size_t>(t.mask + 1) * sizeof(uint32_t)
    t.visited = <uint8_t*>at if t.sieve else NULL
    if t.visited != NULL:
        at += capacity
    return at - start


cdef inline int move_to(Table* t, int32_t capacity) noexcept:
    """New arrays for `capacity` records, oldest first. -1: no memory, nothing changed."""
    cdef Table new = t[0]
    cdef int32_t i, n = 0
    new.shift = shift_for(capacity)
    new.mask = (<uint64_t>1 << (64 - new.shift)) - 1
    new.number_mask = <uint32_t>new.mask    # twice the capacity: no number has all bits set
    new.capacity = capacity
    new.block = PyMem_Malloc(lay_out(&new, 1) + 32)
    if new.block == NULL:
        return -1
    lay_out(&new, <uintptr_t>new.block)
    new.hand = -1
    i = t.oldest
    while i >= 0:
        new.records[n] = t.records[i]
        new.links[n].prev = n - 1
        new.links[n].next = n + 1
        if t.sieve:
            new.visited[n] = t.visited[i]
        if new.sizes != NULL:
            new.sizes[n] = t.sizes[i]
        if i == t.hand:
            new.hand = n
        i = t.links[i].next
        n += 1
    if n > 0:
        new.links[n - 1].next = -1
        new.oldest, new.newest = 0, n - 1
    new.used, new.free = n, -1
    memset(new.slots, 0xFF, <size_t>(new.mask + 1) * sizeof(uint32_t))
    for i in range(n):
        place(&new, i)
    new.version += 1
    PyMem_Free(t.block)
    t[0] = new
    return 0


cdef inline int grow(Table* t) noexcept:
    """Room for more entries. -1: no memory, nothing changed."""
    cdef int32_t capacity = 2 * t.capacity if t.capacity > 0 else FIRST_CAPACITY
    return move_to(t, min(capacity, t.limit))


cdef inline void forget_all(Table* t) noexcept:
    """An empty table without arrays. What they held is the caller's to give up, before or after."""
    t.block = NULL
    t.records, t.links, t.slots, t.visited, t.sizes = NULL, NULL, NULL, NULL, NULL
    t.free = t.oldest = t.newest = t.hand = -1
    t.capacity = t.used = t.count = 0
    t.shift, t.mask, t.size = EMPTY_SHIFT, 0, 0
    t.next_deadline = INFINITY
    t.version += 1


cdef inline void shrink(Table* t) noexcept:
    """Give memory back if most of it is unused. Without memory for the move, nothing happens."""
    if t.capacity <= SHRINK_ABOVE or t.count > t.capacity // 4:
        return
    if t.count == 0:
        PyMem_Free(t.block)
        forget_all(t)
    else:
        move_to(t, t.count)


cdef inline size_t memory_of(Table* t) noexcept:
    """Bytes of the arrays."""
    cdef Table copy = t[0]
    return 0 if t.block == NULL else lay_out(&copy, 1) + 32


cdef inline const char* find_fault(Table* t) noexcept:
    """For debug builds: what is wrong with the table, or NULL."""
    cdef int32_t i = t.oldest, prev = -1
    cdef int64_t size = 0, n = 0, free = 0, filled = 0
    cdef uint64_t slot
    while i >= 0:
        if i >= t.used or t.records[i].key == NULL or t.links[i].prev != prev:
            return "order"
        slot = home(t, t.records[i].hash)
        while t.slots[slot] != (tag_of(t, t.records[i].hash) | <uint32_t>i):
            if t.slots[slot] == FREE:
                return "a record that cannot be found"
            slot = (slot + 1) & t.mask
        if t.sizes != NULL:
            size += t.sizes[i]
        prev = i
        i = t.links[i].next
        n += 1
    i = t.free
    while i >= 0:
        if t.records[i].key != NULL:
            return "a free record in use"
        free += 1
        i = t.links[i].next
    if t.records != NULL:
        for slot in range(t.mask + 1):
            filled += t.slots[slot] != FREE
        if 2 * n > <int64_t>t.mask + 1:
            return "too few slots"
    if prev != t.newest or n != t.count or n + free != t.used or n != filled:
        return "count"
    if size != t.size or t.used > t.capacity:
        return "size"
    return NULL
