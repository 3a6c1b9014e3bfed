"""Keys, values, callbacks and threads that do what they should not; and the garbage collector."""

import gc
import random
import threading
import weakref

import pytest


class Bad(Exception):
    pass


class Key:
    """A key whose `__eq__` does something first. All have one hash unless told otherwise."""

    def __init__(self, name, act=None, number=7):
        self.name, self.act, self.number = name, act, number

    def __hash__(self):
        return self.number

    def __eq__(self, other):
        if self.act is not None:
            self.act()
        if isinstance(other, Key) and other.act is not None:
            other.act()
        return isinstance(other, Key) and self.name == other.name

    def __repr__(self):
        return f"Key({self.name})"


def check(cache):
    """Is it still whole? Every way of counting agrees, and it can be emptied and filled."""
    keys = cache.keys()
    assert len(keys) == len(cache) == cache.stats().entries <= cache.max_entries
    if cache.max_bytes is not None:
        assert cache.stats().bytes <= cache.max_bytes
    cache.clear()
    assert cache.items() == []
    for n in range(cache.max_entries + 3):
        cache.set(n, n, size=1)
    assert cache.get(n) == n
    assert len(cache) <= cache.max_entries


def fail():
    raise Bad


METHODS = {
    "get": lambda cache, key: cache.get(key),
    "set": lambda cache, key: cache.set(key, 1),
    "peek": lambda cache, key: cache.peek(key),
    "pop": lambda cache, key: cache.pop(key, None),
    "delete": lambda cache, key: cache.delete(key),
    "touch": lambda cache, key: cache.touch(key),
    "get_or_set": lambda cache, key: cache.get_or_set(key, lambda: 1),
    "contains": lambda cache, key: key in cache,
}


@pytest.fixture(params=["lru", "sieve"])
def make(lru, request):
    def make(max_entries=4, **kwargs):
        return lru.TTLCache(max_entries, 3600, policy=request.param, **kwargs)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_eq_that_raises_changes_nothing(make, method):
    cache = make()
    cache[Key("a")], cache["b"] = 1, 2
    with pytest.raises(Bad):
        METHODS[method](cache, Key("x", fail))
    assert [value for _, value in cache.items()] == [1, 2]
    check(cache)


@pytest.mark.parametrize("method", METHODS)
def test_hash_that_raises_changes_nothing(make, method):
    class NoHash:
        def __hash__(self):
            raise Bad

    cache = make()
    cache["a"] = 1
    with pytest.raises(Bad):
        METHODS[method](cache, NoHash())
    assert cache.items() == [("a", 1)]
    check(cache)


def test_eviction_and_removal_ask_no_key_anything(make):
    cache = make(3)
    keys = [Key(n) for n in range(3)]
    for key in keys:
        cache[key] = key.name
    for key in keys:
        key.act = fail
    cache["other"] = 1  # evicts one of many with the same hash
    assert cache.keys() == [*keys[1:], "other"]
    cache.resize(max_entries=1)
    assert cache.keys() == ["other"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("act", ["clear", "evict", "grow", "replace", "delete", "expire"])
def test_eq_that_changes_the_cache(make, method, act):
    cache = make(40)
    stored = [Key(n) for n in range(4)]
    for key in stored:
        cache[key] = key.name
    fresh = iter(range(10**6))

    def change():
        key.act = None  # no endless recursion
        if act == "clear":
            cache.clear()
        elif act == "evict":
            for _ in range(50):
                cache[("fresh", next(fresh))] = 1
        elif act == "grow":
            for _ in range(30 if next(fresh) == 0 else 0):
                cache[Key(("fresh", next(fresh)))] = 1
        elif act == "replace":
            cache[Key(3)] = "new"
        elif act == "delete":
            cache.delete(Key(0)), cache.delete(Key(3))
        else:
            cache.expire()
        key.act = change

    key = Key(3, change)
    METHODS[method](cache, key)
    key.act = None
    names = [k.name for k in cache if isinstance(k, Key)]
    assert len(names) == len(set(names))  # no key twice
    check(cache)


def test_eq_that_removes_the_very_entry_it_compares(make):
    cache = make()
    old = Key("a")
    cache[old] = 1
    key = Key("a", lambda: (setattr(key, "act", None), cache.clear()))
    assert cache.get(key) is None
    key.act = lambda: (setattr(key, "act", None), cache.clear())
    cache[old] = 1
    cache.set(key, 2)
    assert cache.items() == [(key, 2)]


@pytest.mark.parametrize("removed_by", [1, 2], ids=["first", "second"])
def test_a_key_that_dies_of_its_comparison_and_adds_an_equal_one(make, removed_by):
    """The search holds the last reference to it: its destructor runs when the search ends."""
    cache = make(40)
    asked = 0

    class DyingKey(Key):
        def __del__(self):
            if self.name == "dying":
                cache.set(DyingKey("a"), "from a destructor")

        def __eq__(self, other):
            nonlocal asked
            asked += 1
            if asked == removed_by:
                cache.clear()
            elif asked < removed_by:
                cache.set("other", 1)
            return True

        __hash__ = Key.__hash__

    cache.set(DyingKey("dying"), 1)
    cache.set(DyingKey("a"), "mine")
    values = [value for key, value in cache.items() if isinstance(key, Key)]
    assert values == ["mine"]


def test_eq_that_gives_its_entry_a_life(lru):
    """Of a cache that knew no deadline when the search began: only its own clock may judge."""
    cache = lru.TTLCache(4, clock=lambda: 1e-9)
    stored = Key("a")
    cache[stored] = 1

    def change():
        key.act = None
        cache.set(stored, 2, ttl_s=1)

    key = Key("a", change)
    assert cache.get(key) == 2


def test_a_miss_is_counted_though_on_evict_raises(lru, clock):
    def on_evict(*call):
        seen.append(cache.stats().misses)
        raise Bad

    seen = []
    cache = lru.TTLCache(4, 1, clock=clock, on_evict=on_evict)
    cache["a"] = 1
    clock.tick(1)
    with pytest.raises(Bad):
        cache.get("a")
    assert (seen, cache.stats().misses) == ([1], 1)
    cache["a"] = 1
    clock.tick(1)
    for call in (cache.pop, cache.touch):
        with pytest.raises(Bad):
            call("a")
        cache["a"] = 1
        clock.tick(1)
    assert cache.peek("a") is None
    with pytest.raises(Bad):
        cache.stats()
    assert cache.stats().misses == 1


def test_eq_that_never_lets_the_search_end(make):
    cache = make(50)
    cache[Key(0)] = 1
    number = 0

    def change():
        nonlocal number
        number += 1
        key.act = None
        cache.clear()
        cache[Key(("new", number))] = 1
        key.act = change

    key = Key("x", change)
    with pytest.raises(RuntimeError, match="never stops changing"):
        cache.get(key)
    key.act = None
    check(cache)


def test_hash_and_clock_and_size_of_that_use_the_cache(lru):
    cache = lru.TTLCache(
        3,
        10,
        max_bytes=100,
        clock=lambda: busy("clock") or 0,
        size_of=lambda key, value: busy("size") or 1,
    )
    deep = 0

    def busy(what):
        nonlocal deep
        if deep == 0:
            deep = 1
            for n in range(4):
                cache.set((what, n), n)
            cache.expire()
            cache.delete((what, 3))
            deep = 0

    class Hash:
        def __hash__(self):
            busy("hash")
            return 1

    key = Hash()
    for _ in range(5):
        cache.set(key, 1)
        cache.get(key)
        cache.touch(key)
        cache.items()
    deep = 1
    check(cache)


class Dying:
    """A value whose destructor acts."""

    def __init__(self, act):
        self.act = act

    def __del__(self):
        self.act()


@pytest.mark.parametrize(
    "drop",
    [
        lambda c: c.set("a", 1),
        lambda c: c.delete("a"),
        lambda c: c.pop("a"),
        lambda c: c.clear(),
        lambda c: [c.set(n, n) for n in range(10)],
        lambda c: c.resize(max_entries=1) or c.set("z", 1),
        lambda c: c.set("a", 1, size=10**6),
    ],
    ids=["set", "delete", "pop", "clear", "evict", "resize", "reject"],
)
def test_destructors_that_use_the_cache(make, drop):
    cache = make(4, max_bytes=1000)
    ran = []

    def act():
        ran.append(len(cache))
        cache.set("from a destructor", 1)
        cache.get("a"), cache.delete("b")
        for n in range(6):
            cache.set(("more", n), n)
        cache.expire()

    cache.set("a", Dying(act), size=1)
    cache.set("b", 2, size=1)
    drop(cache)
    assert len(ran) == 1
    check(cache)


def test_destructors_that_drop_keys(make):
    cache = make(4)

    class DyingKey(Key):
        def __del__(self):
            cache.clear()
            cache.set("again", 1)

    for n in range(50):
        cache.set(DyingKey(n, number=n % 2), n)
    check(cache)


def test_a_destructor_cannot_reach_a_cache_that_is_half_gone(make):
    cache = make(4)
    reached = []
    reference = weakref.ref(cache)
    cache["a"] = Dying(lambda: reached.append(reference()))
    cache["b"] = 1
    del cache
    gc.collect()
    assert reached == [None]


def test_cycles_are_collected(make):
    class Value:
        def told(self, key, value, reason):
            pass

    value = Value()
    value.cache = make(4, on_evict=value.told)
    value.cache["self"] = value.cache
    value.cache["value"] = value
    value.cache[Key(value)] = 1
    references = [weakref.ref(value.cache), weakref.ref(value)]
    del value
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_cycles_through_the_clock_and_size_of(lru):
    class Part:
        def clock(self):
            return 1.0

        def size_of(self, key, value):
            return 1

    part = Part()
    part.cache = lru.TTLCache(4, 1, max_bytes=9, clock=part.clock, size_of=part.size_of)
    part.cache["a"] = part
    reference = weakref.ref(part)
    del part
    gc.collect()
    assert reference() is None


def test_a_cycle_with_destructors(make):
    ran = []
    cache = make(4)

    def act(cache=cache):
        ran.append(1)
        cache.set("x", 1)
        cache.get("a")

    cache["a"] = Dying(act)
    del cache, act
    gc.collect()
    assert ran == [1]


def test_a_deep_nest_of_caches_is_taken_apart(lru):
    cache = None
    for _ in range(100_000):
        outer = lru.TTLCache(1)
        outer["inner"] = cache
        cache = outer
    del outer, cache


def test_the_collector_in_the_middle(make):
    """With the collector at every allocation, its destructors use the cache all the time."""
    cache = make(16)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            cache.get(3), cache.set(5, 5), cache.delete(7)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for n in range(3000):
            Cycle()
            cache.set(n % 40, [n])
            cache.items(), cache.get(n % 7)
    finally:
        gc.set_threshold(*threshold)
    assert len(cache) <= 16


def run_threads(count, target):
    errors = []

    def run(number):
        try:
            target(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


class SlowKey:
    """`__eq__` and `__hash__` in Python: other threads run in the middle of a search."""

    def __init__(self, n):
        self.n = n

    def __hash__(self):
        return hash(self.n % 5)

    def __eq__(self, other):
        return isinstance(other, SlowKey) and self.n == other.n


@pytest.mark.parametrize("key", [str, SlowKey], ids=["str", "slow"])
def test_eight_threads(make, fast_switching, key):
    told = []
    cache = make(16, max_bytes=64, on_evict=lambda *call: told.append(call))

    def work(number):
        rng = random.Random(number)
        for n in range(1200):
            k = key(rng.randrange(40))
            value = cache.get(k)
            assert value is None or value[0] == str(k.n if key is SlowKey else k)
            choice = rng.randrange(12)
            if choice < 6:
                cache.set(k, (str(k.n if key is SlowKey else k), n), size=rng.randrange(9))
            elif choice == 6:
                cache.delete(k)
            elif choice == 7:
                cache.pop(k, None)
            elif choice == 8:
                cache.touch(k)
            elif choice == 9:
                assert len(cache.items()) <= 16
            elif choice == 10:
                cache.expire()
            elif n % 100 == 0:
                cache.clear()

    run_threads(8, work)
    keys = [k.n if key is SlowKey else k for k in cache]
    assert len(keys) == len(set(keys)) == len(cache)
    stats = cache.stats()
    assert stats.hits + stats.misses == 8 * 1200
    assert stats.evictions == len(told)
    check(cache)


def test_get_or_set_computes_once_under_threads(make, fast_switching):
    cache = make(64)
    calls = []
    start = threading.Barrier(8)

    def work(number):
        for n in range(30):
            start.wait(30)

            def factory(n=n):
                calls.append(n)
                return [n]

            assert cache.get_or_set(n, factory) == [n]

    run_threads(8, work)
    assert sorted(calls) == list(range(30))


def test_those_who_wait_try_when_the_first_one_fails(make):
    cache = make()
    waiting = threading.Event()
    results = []

    def first():
        assert waiting.wait(30)
        raise Bad

    def work(number):
        if number == 0:
            with pytest.raises(Bad):
                cache.get_or_set("a", lambda: started.set() or first())
        else:
            assert started.wait(30)
            waiting.set()
            results.append(cache.get_or_set("a", lambda: "second"))

    started = threading.Event()
    run_threads(2, work)
    assert results == ["second"]


def test_factories_that_wait_for_each_other_are_told(make):
    cache = make()
    both_in = threading.Barrier(2)
    told = []

    def work(number):
        mine, other = ("a", "b") if number == 0 else ("b", "a")

        def factory():
            both_in.wait(30)
            return cache.get_or_set(other, lambda: "inner")

        try:
            cache.get_or_set(mine, factory)
        except RuntimeError as exc:
            told.append(str(exc))

    run_threads(2, work)
    assert len(told) == 1
    assert "waits for its own key" in told[0]
