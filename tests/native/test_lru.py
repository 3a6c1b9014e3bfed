"""What a TTLCache does, for both implementations."""

import copy
import math
import pickle
import sys
import time

import pytest


@pytest.fixture
def make(lru, clock):
    def make(*args, **kwargs):
        return lru.TTLCache(*args, clock=clock, **kwargs)

    return make


@pytest.fixture
def told():
    """A list, and the callback that fills it."""
    calls = []
    return calls, lambda key, value, reason: calls.append((key, value, reason))


class TestOrder:
    def test_least_recently_used_goes_first(self, make):
        cache = make(3)
        for key in "abc":
            cache.set(key, key.upper())
        assert cache.get("a") == "A"
        cache.set("b", "B2")
        cache.set("d", "D")
        assert cache.items() == [("a", "A"), ("b", "B2"), ("d", "D")]

    def test_peek_contains_items_and_iteration_do_not_count_as_use(self, make):
        cache = make(2)
        cache["a"], cache["b"] = 1, 2
        assert cache.peek("a") == 1
        assert "a" in cache
        assert list(cache) == cache.keys() == ["a", "b"]
        assert cache.values() == [1, 2]
        cache["c"] = 3
        assert cache.keys() == ["b", "c"]

    def test_touch_counts_as_use(self, make):
        cache = make(2)
        cache["a"], cache["b"] = 1, 2
        assert cache.touch("a") is True
        assert cache.touch("x") is False
        cache["c"] = 3
        assert cache.keys() == ["a", "c"]

    def test_the_dead_wait_for_their_turn(self, make, clock):
        cache = make(2)
        cache.set("a", 1)
        cache.set("b", 2, ttl_s=1)
        clock.tick(1)
        cache.set("c", 3)  # strictly by use: a goes, though b is dead
        assert cache.keys() == ["c"]
        assert len(cache) == 1

    def test_sieve_spares_what_was_used_since_the_hand_passed(self, make):
        cache = make(3, policy="sieve")
        for key in "abc":
            cache.set(key, 1)
        cache.get("a")
        cache.set("d", 1)  # a is spared, b goes; the hand is at c
        assert cache.keys() == ["a", "c", "d"]
        cache.set("e", 1)  # c goes
        assert cache.keys() == ["a", "d", "e"]
        cache.get("d"), cache.get("e")
        cache.set("f", 1)  # the hand clears d and e, starts again at the oldest: a
        assert cache.keys() == ["d", "e", "f"]

    def test_sieve_hand_survives_deletion(self, make):
        cache = make(4, policy="sieve")
        for key in "abcd":
            cache.set(key, 1)
        cache.get("a")
        cache.set("e", 1)  # b goes, the hand is at c
        cache.delete("c")  # the hand moves to d
        cache.set("f", 1)
        cache.set("g", 1)
        assert cache.keys() == ["a", "e", "f", "g"]


class TestTime:
    def test_dead_at_the_deadline_and_not_before(self, make, clock):
        cache = make(8, 10)
        cache.set("a", 1)
        clock.tick(9.999)
        assert cache.get("a") == 1
        clock.now = 1010.0
        assert "a" not in cache
        assert cache.peek("a", "dead") == "dead"
        assert cache.get("a", "dead") == "dead"

    def test_a_life_for_each_entry(self, make, clock):
        cache = make(8, 10)
        cache.set("short", 1, ttl_s=1)
        cache.set("usual", 2)
        cache.set("ever", 3, ttl_s=math.inf)
        clock.tick(1)
        assert cache.keys() == ["usual", "ever"]
        clock.tick(1e9)
        assert cache.keys() == ["ever"]

    def test_no_ttl_is_for_ever_and_reads_no_clock(self, lru):
        cache = lru.TTLCache(2, clock=lambda: 1 / 0)
        cache.set("a", 1)
        assert cache.get("a") == 1
        with pytest.raises(ZeroDivisionError):
            cache.set("b", 1, ttl_s=1)

    def test_len_never_counts_the_dead(self, make, clock):
        cache = make(8, 10)
        for n in range(4):
            cache.set(n, n, ttl_s=n + 1)
        assert len(cache) == 4
        clock.tick(2)
        assert len(cache) == 2
        assert cache.stats().entries == 2
        assert bool(cache)
        clock.tick(2)
        assert not cache

    def test_get_does_not_prolong_but_set_and_touch_do(self, make, clock):
        cache = make(8, 10)
        for key in "abc":
            cache.set(key, 1)
        clock.tick(9)
        cache.get("a"), cache.set("b", 1), cache.touch("c")
        clock.tick(1)
        assert cache.keys() == ["b", "c"]
        assert cache.touch("c", ttl_s=1)
        clock.tick(1)
        assert cache.keys() == ["b"]
        assert not cache.touch("c")

    def test_expire_drops_the_dead_oldest_first(self, make, clock, told):
        calls, on_evict = told
        cache = make(8, 10, on_evict=on_evict)
        cache.set("a", 1), cache.set("b", 2), cache.set("c", 3, ttl_s=50)
        cache.get("a")
        assert cache.expire() == 0
        clock.tick(10)
        assert cache.expire() == 2
        assert calls == [("b", 2, "expired"), ("a", 1, "expired")]
        assert cache.expire() == 0

    def test_deadline_that_was_the_nearest_is_forgotten(self, make, clock):
        cache = make(8)
        cache.set("a", 1, ttl_s=1)
        cache.set("a", 1, ttl_s=100)
        clock.tick(2)
        assert len(cache) == 1
        clock.tick(98)
        assert len(cache) == 0

    def test_the_clock_of_the_system(self, lru):
        cache = lru.TTLCache(2, 0.02)
        cache.set("a", 1)
        cache.set("b", 1, ttl_s=3600)
        assert cache.get("a") == 1
        deadline = time.monotonic() + 5
        while "a" in cache:
            assert time.monotonic() < deadline
        assert cache.get("a") is None
        assert cache.get("b") == 1

    def test_a_clock_that_fails_or_tells_nonsense(self, lru):
        cache = lru.TTLCache(2, 10, clock=lambda: "noon")
        for call in (lambda: cache.set(1, 1), lambda: cache.get(1), cache.expire, cache.items):
            with pytest.raises(ValueError):
                call()

    def test_ints_are_seconds_too(self, lru):
        cache = lru.TTLCache(2, 10, clock=lambda: 5)
        cache.set(1, 1)
        assert cache.get(1) == 1


class TestBytes:
    def test_the_least_recently_used_make_room(self, make):
        cache = make(100, max_bytes=10)
        for key in "abc":
            assert cache.set(key, key, size=3)
        cache.get("a")
        assert cache.set("d", "d", size=6) is True
        assert cache.keys() == ["a", "d"]
        assert cache.stats().bytes == 9

    def test_too_large_is_refused_and_takes_the_old_value_with_it(self, make):
        cache = make(100, max_bytes=10)
        cache.set("a", 1, size=5), cache.set("b", 2, size=5)
        assert cache.set("a", 3, size=11) is False
        assert cache.items() == [("b", 2)]
        stats = cache.stats()
        assert (stats.bytes, stats.rejections, stats.evictions) == (5, 1, 0)

    @pytest.mark.parametrize("policy", ["lru", "sieve"])
    def test_a_value_that_grows_pushes_out_the_others_never_itself(self, make, policy):
        cache = make(100, max_bytes=10, policy=policy)
        for key in "abc":
            cache.set(key, key, size=3)
        assert cache.set("a", "A", size=10) is True
        assert cache.items() == [("a", "A")]
        assert cache.set("a", "A", size=1) is True
        assert cache.stats().bytes == 1

    def test_size_of(self, make):
        cache = make(100, max_bytes=10, size_of=lambda key, value: len(key) + len(value))
        cache.set("aa", "xxx"), cache.set("b", "xxxx")
        assert cache.stats().bytes == 10
        cache.set("c", "", size=0)
        assert cache.keys() == ["aa", "b", "c"]
        cache.set("d", "")
        assert cache.keys() == ["b", "c", "d"]

    def test_without_size_of_the_shallow_size_counts(self, make):
        cache = make(100, max_bytes=10_000)
        cache.set("key", b"x" * 1000)
        assert cache.stats().bytes == sys.getsizeof("key") + sys.getsizeof(b"x" * 1000)

    def test_without_max_bytes_nothing_is_measured(self, make):
        cache = make(100, size_of=lambda key, value: 1 / 0)
        assert cache.set("a", 1) and cache.set("b", 1, size=10**6)
        assert cache.stats().bytes == 0
        assert cache.max_bytes is None

    @pytest.mark.parametrize("drop", ["delete", "pop", "clear", "__delitem__"])
    def test_bytes_come_back(self, make, drop):
        cache = make(100, max_bytes=10)
        cache.set("a", 1, size=7)
        getattr(cache, drop)(*(() if drop == "clear" else ("a",)))
        assert cache.stats().bytes == 0

    def test_size_of_that_fails_changes_nothing(self, make):
        cache = make(100, max_bytes=10, size_of=lambda key, value: value)
        cache.set("a", 1)
        for bad, error in ((-1, ValueError), ("x", TypeError), (2**62, OverflowError)):
            with pytest.raises(error, match="size_of"):
                cache.set("a", bad)
        assert cache.items() == [("a", 1)]


class TestRemoval:
    def test_delete(self, make, clock):
        cache = make(8, 10)
        cache.set("a", 1)
        assert cache.delete("a") is True
        assert cache.delete("a") is False
        cache.set("b", None)
        assert cache.delete("b") is True
        cache.set("c", 1)
        clock.tick(10)
        assert cache.delete("c") is False

    def test_pop(self, make, clock):
        cache = make(8, 10)
        cache.set("a", 1)
        assert cache.pop("a") == 1
        assert cache.pop("a", None) is None
        with pytest.raises(KeyError, match="'a'"):
            cache.pop("a")
        with pytest.raises(TypeError):
            cache.pop("a", 1, 2)
        cache.set("c", 1)
        clock.tick(10)
        with pytest.raises(KeyError):
            cache.pop("c")
        assert cache.stats().expirations == 1

    def test_clear_tells_nobody_and_leaves_a_working_cache(self, make, told):
        calls, on_evict = told
        cache = make(4, 10, on_evict=on_evict)
        for n in range(4):
            cache.set(n, n)
        cache.clear()
        assert (len(cache), cache.items(), calls) == (0, [], [])
        cache.set(1, 2)
        assert cache.items() == [(1, 2)]

    def test_resize(self, make):
        cache = make(100, max_bytes=1000)
        for n in range(100):
            cache.set(n, n, size=1)
        cache.resize(max_entries=50)
        assert cache.keys() == list(range(50, 100))
        cache.resize(max_bytes=2)
        assert cache.keys() == [98, 99]
        assert (cache.max_entries, cache.max_bytes) == (50, 2)
        cache.resize(max_entries=3, max_bytes=100)
        for n in range(5):
            cache.set(n, n, size=1)
        assert cache.keys() == [2, 3, 4]
        cache.resize()
        assert cache.keys() == [2, 3, 4]

    def test_resize_cannot_invent_sizes(self, make):
        cache = make(8)
        with pytest.raises(ValueError, match="max_bytes"):
            cache.resize(max_bytes=10)
        assert cache.max_bytes is None


class TestEvictionCallback:
    def test_reasons(self, make, clock, told):
        calls, on_evict = told
        cache = make(2, 10, on_evict=on_evict)
        cache.set("a", 1), cache.set("b", 2), cache.set("c", 3)
        cache.get("b")
        assert calls == [("a", 1, "full")]
        clock.tick(10)
        assert cache.get("b") is None
        cache.set("d", 4), cache.set("e", 5)
        assert calls[1:] == [("b", 2, "expired"), ("c", 3, "expired")]
        stats = cache.stats()
        assert (stats.evictions, stats.expirations) == (1, 2)

    def test_not_for_what_the_caller_did(self, make, told):
        calls, on_evict = told
        cache = make(2, max_bytes=100, on_evict=on_evict)
        cache.set("a", 1, size=1), cache.set("a", 2, size=1), cache.delete("a")
        cache.set("a", 1, size=1), cache.pop("a"), cache.set("a", 1, size=1)
        cache.set("a", 1, size=101), cache.clear()
        assert calls == []

    def test_sees_the_work_done(self, make):
        cache = make(1, on_evict=lambda *_: seen.append(cache.items()))
        seen = []
        cache.set("a", 1), cache.set("b", 2)
        assert seen == [[("b", 2)]]

    def test_its_error_reaches_the_caller_after_the_work(self, make):
        def on_evict(key, value, reason):
            told.append(key)
            raise LookupError(key)

        told = []
        cache = make(8, max_bytes=8, on_evict=on_evict)
        for n in range(8):
            cache.set(n, n, size=1)
        with pytest.raises(LookupError, match="0"):
            cache.set("x", 1, size=3)
        assert told == [0]  # the further evictions of this call are not told
        assert cache.keys() == [3, 4, 5, 6, 7, "x"]

    def test_may_use_the_cache(self, make):
        other = []

        def on_evict(key, value, reason):
            other.append(key)
            if len(other) < 5:
                cache.set(("again", key), value)

        cache = make(2, on_evict=on_evict)
        for n in range(3):
            cache.set(n, n)
        assert len(cache) == 2
        assert len(other) == 5


class TestGetOrSet:
    def test_computes_once(self, make):
        cache, calls = make(8), []
        for _ in range(3):
            assert cache.get_or_set("a", lambda: calls.append(1)) is None
        assert calls == [1]
        stats = cache.stats()
        assert (stats.hits, stats.misses) == (2, 1)

    def test_with_life_and_size(self, make, clock):
        cache = make(8, max_bytes=10)
        cache.get_or_set("a", lambda: 1, ttl_s=5, size=10)
        assert cache.stats().bytes == 10
        clock.tick(5)
        assert cache.get_or_set("a", lambda: 2, size=10) == 2

    def test_too_large_is_returned_and_not_kept(self, make):
        cache = make(8, max_bytes=10)
        assert cache.get_or_set("a", lambda: 1, size=11) == 1
        assert len(cache) == 0

    def test_a_factory_that_fails_leaves_nothing(self, make):
        cache = make(8)
        with pytest.raises(ZeroDivisionError):
            cache.get_or_set("a", lambda: 1 / 0)
        assert cache.get_or_set("a", lambda: 2) == 2

    def test_a_factory_that_asks_for_itself_is_told(self, make):
        cache = make(8)
        with pytest.raises(RuntimeError, match="waits for its own key"):
            cache.get_or_set("a", lambda: cache.get_or_set("a", lambda: 1))
        assert cache.get_or_set("a", lambda: cache.get_or_set("b", lambda: 1)) == 1


class TestMapping:
    def test_items(self, make):
        cache = make(4)
        cache["a"] = 1
        assert cache["a"] == 1
        assert dict(cache) == {"a": 1}
        del cache["a"]
        with pytest.raises(KeyError, match="'a'"):
            cache["a"]
        with pytest.raises(KeyError, match="'a'"):
            del cache["a"]

    def test_none_is_a_value(self, make):
        cache = make(4)
        cache["a"] = None
        assert "a" in cache
        assert cache["a"] is None
        assert cache.get("a", 1) is None
        assert cache.pop("a", 1) is None

    def test_equal_keys_are_one_key(self, make):
        cache = make(4)
        cache[1] = "a"
        cache[1.0] = "b"
        cache[True] = "c"
        assert cache.items() == [(1, "c")]
        assert type(cache.keys()[0]) is int

    def test_lists_are_of_the_moment(self, make):
        cache = make(4)
        cache[1], cache[2] = 1, 2
        for key in cache:
            cache.delete(key)
        assert len(cache) == 0

    def test_unhashable(self, make):
        cache = make(4, 10)
        calls = (
            lambda: cache.get([]),
            lambda: cache.set([], 1),
            lambda: cache.peek([]),
            lambda: cache.delete([]),
            lambda: cache.pop([], None),
            lambda: cache.touch([]),
            lambda: cache.get_or_set([], lambda: 1),
            lambda: [] in cache,
            lambda: cache[[]],
            lambda: cache.__setitem__([], 1),
            lambda: cache.__delitem__([]),
        )
        for call in calls:
            with pytest.raises(TypeError, match="unhashable"):
                call()
        assert len(cache) == 0

    def test_a_nan_is_found_by_identity(self, make):
        cache, nan = make(4), float("nan")
        cache[nan] = 1
        assert cache[nan] == 1
        assert float("nan") not in cache


class TestArguments:
    @pytest.mark.parametrize("name", ["max_entries", "max_bytes"])
    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (0, ValueError),
            (-1, ValueError),
            (-(2**70), ValueError),
            (2**62, OverflowError),
            (2**70, OverflowError),
            (1.5, TypeError),
            (math.nan, TypeError),
            ("1", TypeError),
            (b"", TypeError),
        ],
    )
    def test_bounds(self, lru, name, value, error):
        with pytest.raises(error, match=name):
            lru.TTLCache(**{name: value})
        cache = lru.TTLCache(10, max_bytes=10)
        cache.set("a", 1, size=1)
        with pytest.raises(error, match=name):
            cache.resize(**{name: value})
        assert (cache.max_entries, cache.max_bytes, cache.items()) == (10, 10, [("a", 1)])

    def test_bounds_of_more_digits_than_python_writes(self, lru):
        for value, error in ((-(10**5000), ValueError), (10**5000, OverflowError)):
            with pytest.raises(error, match="max_entries"):
                lru.TTLCache(value)
            with pytest.raises(error, match="size must be"):
                lru.TTLCache().set("a", 1, size=value)

    @pytest.mark.parametrize(
        ("value", "error"),
        [
            (0, ValueError),
            (-1, ValueError),
            (float("nan"), ValueError),
            (10**400, OverflowError),
            ("1", TypeError),
            (1j, TypeError),
        ],
    )
    def test_lives(self, lru, value, error):
        with pytest.raises(error, match="ttl_s"):
            lru.TTLCache(10, value)
        cache = lru.TTLCache(10)
        with pytest.raises(error, match="ttl_s"):
            cache.set("a", 1, ttl_s=value)
        with pytest.raises(error, match="ttl_s"):
            cache.touch("a", ttl_s=value)
        assert len(cache) == 0

    @pytest.mark.parametrize(
        ("value", "error"),
        [(-1, ValueError), (2**62, OverflowError), (1.0, TypeError), ("1", TypeError)],
    )
    @pytest.mark.parametrize("max_bytes", [None, 100])
    def test_sizes(self, lru, max_bytes, value, error):
        cache = lru.TTLCache(10, max_bytes=max_bytes)
        with pytest.raises(error, match="size"):
            cache.set("a", 1, size=value)
        assert len(cache) == 0

    def test_the_rest(self, lru):
        with pytest.raises(ValueError, match="policy"):
            lru.TTLCache(policy="fifo")
        for name in ("size_of", "on_evict", "clock"):
            with pytest.raises(TypeError, match=name):
                lru.TTLCache(**{name: 1})
        with pytest.raises(TypeError):
            lru.TTLCache(1, 1, 1)
        with pytest.raises(TypeError):
            lru.TTLCache(unknown=1)

    def test_what_it_was_given(self, lru):
        cache = lru.TTLCache(7, 3, max_bytes=9, policy="sieve")
        assert (cache.max_entries, cache.ttl_s, cache.max_bytes) == (7, 3.0, 9)
        assert cache.policy == "sieve"
        plain = lru.TTLCache()
        assert (plain.max_entries, plain.ttl_s, plain.max_bytes) == (1000, None, None)
        assert plain.policy == "lru"
        with pytest.raises(AttributeError):
            cache.max_entries = 5


class TestObject:
    def test_shows_no_contents(self, make):
        cache = make(4)
        cache["secret"] = "secret"
        assert repr(cache) == "<TTLCache of at most 4 entries>"

    def test_is_not_copied(self, make):
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot pickle"):
                attempt(make(4))

    def test_has_no_subclass(self, lru):
        with pytest.raises(TypeError):
            type("Sub", (lru.TTLCache,), {})

    def test_has_no_other_attributes(self, make):
        with pytest.raises(AttributeError):
            make(4).other = 1

    def test_names_its_types(self, lru):
        assert lru.TTLCache[str, bytes].__args__ == (str, bytes)

    def test_stats_count(self, make):
        cache = make(4)
        cache["a"] = 1
        cache.get("a"), cache.get("a"), cache.get("a"), cache.get("b")
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.hit_rate) == (3, 1, 0.75)
        assert make(4).stats().hit_rate == 0.0

    def test_many_entries(self, make):
        cache = make(50_000, 10)
        for n in range(120_000):
            cache[n << 20] = n  # hashes that differ in high bits only
        assert len(cache) == 50_000
        assert all(cache.get(n << 20) == n for n in range(70_000, 120_000))
