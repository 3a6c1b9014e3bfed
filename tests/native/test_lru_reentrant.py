"""Random lives in which all that can run Python code calls back into the cache, and raises."""

import contextlib
import gc
import random

import pytest


class Bad(Exception):
    pass


class Life:
    """A cache whose keys, values and callbacks use it, three deep, whenever they are asked."""

    def __init__(self, lru, seed):
        self.rng, self.deep, self.now = random.Random(seed), 0, 0.0
        rng = self.rng
        self.cache = lru.TTLCache(
            rng.choice([1, 3, 8, 100]),
            rng.choice([None, 3]),
            max_bytes=rng.choice([None, 20]),
            policy=rng.choice(["lru", "sieve"]),
            size_of=lambda key, value: self.act() or rng.randrange(9),
            on_evict=lambda *call: self.act(),
            clock=rng.choice([None, lambda: self.act() or self.now]),
        )

    def act(self):
        if self.deep > 3 or self.rng.random() < 0.6:
            return
        self.deep += 1
        try:
            for _ in range(self.rng.randrange(3)):
                self.step()
        finally:
            self.deep -= 1
        if self.rng.random() < 0.05:
            raise Bad

    def step(self):
        cache, rng, key = self.cache, self.rng, Key(self, self.rng.randrange(8))
        options = {"ttl_s": rng.randrange(1, 5)} if rng.random() < 0.3 else {}
        steps = {
            "set": lambda: cache.set(key, Value(self), **options),
            "get": lambda: cache.get(key),
            "pop": lambda: cache.pop(key, None),
            "touch": lambda: cache.touch(key),
            "peek": lambda: cache.peek(key),
            "items": lambda: cache.items(),
            "expire": lambda: cache.expire(),
            "resize": lambda: cache.resize(rng.randrange(1, 12)),
            "clear": lambda: cache.clear(),
            "get_or_set": lambda: cache.get_or_set(key, lambda: self.act()),
        }
        weights = (40, 10, 8, 8, 8, 8, 8, 2, 1, 8)
        self.now += rng.random()
        with contextlib.suppress(Bad, RuntimeError):
            steps[rng.choices(list(steps), weights)[0]]()


class Key:
    __slots__ = ("life", "number")

    def __init__(self, life, number):
        self.life, self.number = life, number

    def __hash__(self):
        self.life.act()
        return self.number % 3

    def __eq__(self, other):
        self.life.act()
        return self.number == other.number

    def __del__(self):
        with contextlib.suppress(Bad):
            self.life.act()


class Value:
    def __init__(self, life):
        self.life = life

    __del__ = Key.__del__


@pytest.fixture
def no_collector():
    """The twin says what a destructor that the collector runs in its middle can do."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_no_key_twice_and_nothing_lost(lru, no_collector):
    for seed in range(120):
        life = Life(lru, seed)
        for _ in range(120):
            life.step()
        life.deep = 99  # from here on nothing calls back
        numbers = [key.number for key in life.cache]
        assert len(numbers) == len(set(numbers)), seed
        stats = life.cache.stats()
        assert stats.entries == len(life.cache.items()) <= life.cache.max_entries, seed
        assert stats.bytes <= (life.cache.max_bytes or 0), seed
        assert all(Key(life, number) in life.cache for number in numbers), seed
        life.cache.clear()
        assert life.cache.stats().bytes == 0
