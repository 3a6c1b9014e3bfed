"""Random operations on both implementations and on a model too simple to be wrong."""

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Model:
    """Lists of [key, value, deadline, size, visited], oldest first. Everything by search."""

    def __init__(self, max_entries, ttl_s, max_bytes, policy, clock, told):
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.ttl_s = math.inf if ttl_s is None else ttl_s
        self.sieve, self.clock, self.told = policy == "sieve", clock, told
        self.entries, self.hand = [], 0

    def at(self, key):
        return next((n for n, entry in enumerate(self.entries) if entry[0] == key), None)

    def remove(self, n, reason=None):
        entry = self.entries.pop(n)
        self.hand -= n < self.hand
        if self.hand == len(self.entries):
            self.hand = 0
        if reason:
            self.told.append((entry[0], entry[1], reason))
        return entry

    def living(self, key):
        n = self.at(key)
        if n is not None and self.clock() >= self.entries[n][2]:
            self.remove(n, "expired")
            n = None
        return n

    def use(self, n):
        if self.sieve:
            self.entries[n][4] = True
        else:
            self.entries.append(self.entries.pop(n))

    def make_room(self, more, size, keep=None):
        while len(self.entries) + more > self.max_entries or (
            self.max_bytes is not None and sum(e[3] for e in self.entries) + size > self.max_bytes
        ):
            n = self.hand if self.sieve else 0
            while self.sieve and (self.entries[n] is keep or self.entries[n][4]):
                if self.entries[n] is not keep:
                    self.entries[n][4] = False
                n = (n + 1) % len(self.entries)
            if self.sieve:
                self.hand = n
            self.remove(n, "expired" if self.clock() >= self.entries[n][2] else "full")

    def get(self, key, default=None):
        n = self.living(key)
        if n is None:
            return default
        value = self.entries[n][1]
        self.use(n)
        return value

    def peek(self, key, default=None):
        n = self.at(key)
        return default if n is None or self.clock() >= self.entries[n][2] else self.entries[n][1]

    def set(self, key, value, *, ttl_s=None, size=0):
        deadline = self.clock() + (self.ttl_s if ttl_s is None else ttl_s)
        n = self.at(key)
        if self.max_bytes is None:
            size = 0
        elif size > self.max_bytes:
            if n is not None:
                self.remove(n)
            return False
        if n is None:
            self.make_room(1, size)
            self.entries.append([key, value, deadline, size, False])
            return True
        entry = self.entries[n]
        entry[1:4] = value, deadline, size
        self.use(n)
        self.make_room(0, 0, entry)
        return True

    def pop(self, key, default=None):
        n = self.living(key)
        return default if n is None else self.remove(n)[1]

    def delete(self, key):
        return self.pop(key, self) is not self

    def touch(self, key, *, ttl_s=None):
        n = self.living(key)
        if n is None:
            return False
        self.entries[n][2] = self.clock() + (self.ttl_s if ttl_s is None else ttl_s)
        self.use(n)
        return True

    def clear(self):
        self.entries, self.hand = [], 0

    def expire(self):
        dead = [e for e in self.entries if self.clock() >= e[2]]
        for entry in dead:
            self.remove(self.entries.index(entry), "expired")
        return len(dead)

    def resize(self, max_entries, max_bytes):
        self.max_entries = max_entries
        self.max_bytes = self.max_bytes and max_bytes
        self.make_room(0, 0)

    def items(self):
        return [(e[0], e[1]) for e in self.entries if self.clock() < e[2]]


class Trio:
    """The same call on all three; every answer, callback and order must agree."""

    def __init__(self, classes, clock, max_entries, ttl_s, max_bytes, policy):
        self.clock = clock
        self.told = [[] for _ in range(3)]
        self.caches = [
            cls(
                max_entries,
                ttl_s,
                max_bytes=max_bytes,
                policy=policy,
                clock=clock,
                on_evict=lambda *call, told=told: told.append(call),
            )
            for cls, told in zip(classes, self.told, strict=False)
        ]
        self.caches.append(Model(max_entries, ttl_s, max_bytes, policy, clock, self.told[2]))
        self.sized = max_bytes is not None

    def do(self, name, *args, **kwargs):
        if name == "resize" and not self.sized:
            native, pure, model = [cache.resize(args[0]) for cache in self.caches[:2]] + [None]
            self.caches[2].resize(*args)
        else:
            native, pure, model = (getattr(c, name)(*args, **kwargs) for c in self.caches)
        assert native == pure == model, (name, args, kwargs)

    def compare(self):
        native, pure, model = self.caches
        assert native.items() == pure.items() == model.items()
        assert self.told[0] == self.told[1] == self.told[2]
        assert native.stats() == pure.stats()
        assert self.told[0] == self.told[1]  # stats drop the dead
        model.expire()
        assert len(native) == len(pure) == len(model.entries)
        assert native.stats().bytes == sum(e[3] for e in model.entries)


WEIGHTS = {
    "get": 30,
    "set": 40,
    "peek": 4,
    "pop": 3,
    "delete": 3,
    "touch": 6,
    "expire": 3,
    "clear": 0.2,
    "resize": 0.5,
    "items": 0.5,
    "tick": 10,
}
NAMES = list(WEIGHTS)


def play(trio, name, key, number):
    if name == "tick":
        trio.clock.tick(number % 7)
    elif name == "set":
        options = {}
        if number % 3 == 0:
            options["ttl_s"] = number % 11 + 1 if number % 11 else math.inf
        if trio.sized:
            options["size"] = number % 13
        trio.do("set", key, number, **options)
    elif name == "touch":
        trio.do("touch", key, **({"ttl_s": number % 9 + 1} if number % 2 else {}))
    elif name in ("expire", "clear", "items"):
        trio.do(name)
    elif name == "resize":
        trio.do("resize", number % 12 + 1, number % 29 + 1)
    elif name in ("delete",):
        trio.do(name, key)
    else:
        trio.do(name, key, "default")


class Crowded:
    """Keys of few hashes, so that searches collide."""

    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return isinstance(other, Crowded) and self.n == other.n

    def __hash__(self):
        return self.n % 3

    def __repr__(self):
        return f"Crowded({self.n})"


SHAPES = [
    (max_entries, ttl_s, max_bytes, policy)
    for policy in ("lru", "sieve")
    for max_entries, ttl_s, max_bytes in (
        (1, None, None),
        (5, 4, None),
        (12, 9, 40),
        (1000, 6, 60),
        (64, None, 500),
    )
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("crowded", [False, True], ids=["spread", "crowded"])
def test_a_long_random_life(both, clock, shape, crowded):
    native, pure = both("lru")
    trio = Trio((native.TTLCache, pure.TTLCache), clock, *shape)
    rng = random.Random(repr(shape))
    keys = [Crowded(n) if crowded else (n * 1024 if n % 2 else str(n)) for n in range(20)]
    for n in range(15_000):
        name = rng.choices(NAMES, list(WEIGHTS.values()))[0]
        play(trio, name, rng.choice(keys), rng.randrange(1000))
        if n % 50 == 0:
            trio.compare()
    trio.compare()


operations = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 9), st.integers(0, 1000)), max_size=60
)


@given(shape=st.sampled_from(SHAPES), crowded=st.booleans(), operations=operations)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # they hold no state
)
def test_short_lives_that_shrink(both, clock, shape, crowded, operations):
    native, pure = both("lru")
    trio = Trio((native.TTLCache, pure.TTLCache), type(clock)(), *shape)
    for name, key, number in operations:
        play(trio, name, Crowded(key) if crowded else key, number)
        trio.compare()
