"""Nothing is left behind: each scenario many times in a fresh process, and memory measured."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAD = """
import gc, sys, tracemalloc
from importlib import import_module
kind = sys.argv[1]
def load(name):
    return import_module(f"openbr._native.{name}" + ("_py" if kind == "pure" else ""))
"""

TAIL = """
for _ in range(50):
    scenario()
gc.collect()
tracemalloc.start()
for _ in range(50):
    scenario()
gc.collect()
before = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
for _ in range(300):
    scenario()
gc.collect()
after = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
assert after[0] - before[0] < 2000, f"{after[0] - before[0]} bytes kept"
assert after[1] - before[1] < 10, f"{after[1] - before[1]} objects kept"
"""

SCENARIOS = {
    "lru: fill, evict, clear": """
TTLCache = load("lru").TTLCache
def scenario():
    for policy in ("lru", "sieve"):
        cache = TTLCache(50, 10, max_bytes=400, policy=policy, on_evict=lambda *call: None)
        for n in range(200):
            cache.set(str(n), [n], size=n % 9)
            cache.get(str(n - 5))
            cache.set(str(n), (n,), size=3)
        cache.set("large", 1, size=500)
        cache.items(), cache.keys(), cache.values(), list(cache), cache.stats()
        cache.pop("199"), cache.pop("none", None), cache.delete("198"), cache.touch("197")
        cache.resize(max_entries=10), cache.resize(max_bytes=12)
        cache.clear()
        cache.set("a", cache)
""",
    "lru: errors": """
TTLCache = load("lru").TTLCache
class Bad:
    def __hash__(self): return 1
    def __eq__(self, other): raise KeyError
def attempt(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception:
        pass
    else:
        raise SystemExit("no exception")
def raises(*args):
    raise ValueError
def scenario():
    cache = TTLCache(3, on_evict=raises)
    cache.set(1, [1])
    for call in (cache.get, cache.pop, cache.touch, cache.delete, cache.peek):
        attempt(call, Bad())
        attempt(call, [])
    attempt(cache.set, Bad(), [2])
    attempt(cache.set, 1, [2], ttl_s=-1)
    attempt(cache.set, 1, [2], size="x")
    cache.set(2, [2]), cache.set(3, [3])
    attempt(cache.set, 4, [4])
    attempt(cache.get_or_set, 5, raises)
    attempt(TTLCache, 0), attempt(TTLCache, 1, policy="x"), attempt(TTLCache, x=1)
""",
    "lru: keys that change the cache": """
TTLCache = load("lru").TTLCache
class Key:
    def __init__(self, n): self.n = n
    def __hash__(self): return self.n % 2
    def __eq__(self, other):
        if cache is not None and busy[0] == 0:
            busy[0] = 1
            cache.set(Key(other.n + 5), [1]), cache.delete(Key(other.n))
            busy[0] = 0
        return self.n == other.n
busy = [0]
cache = None
def scenario():
    global cache
    cache = TTLCache(8)
    for n in range(40):
        cache.set(Key(n % 12), [n])
        cache.get(Key(n % 7))
    cache = None
""",
    "arena: all of it": """
MemoryArena = load("arena").MemoryArena
def scenario():
    arena = MemoryArena(256)
    for _ in range(3):
        buffers = [arena.alloc_buffer(n) for n in range(1, 400, 7)]
        view = memoryview(buffers[3])
        for n in range(100):
            arena.append(b"x" * n)
        arena.take()
        try:
            arena.reset()
        except BufferError:
            view.release()
        arena.append(bytearray(5))
        for bad in (0, "x", 2**70):
            try:
                arena.alloc_buffer(bad)
            except (ValueError, TypeError, OverflowError):
                pass
        try:
            arena.append("text")
        except TypeError:
            pass
        arena.reset(), repr(arena), arena.stats()
        try:
            memoryview(buffers[0])
        except ValueError:
            pass
    keep = memoryview(arena.alloc_buffer(50))
    del arena, buffers
""",
    "pool: all of it": """
module = load("pool")
def scenario():
    pool = module.ObjectPool(5, max_bytes=100_000)
    for size in (1, 100, 1000, 90_000, 200_000):
        lent = [pool.acquire(size) for _ in range(8)]
        for one in lent[1:]:
            pool.release(one)
        again = pool.acquire(size)
        for bad in (lent[1], None, module.ObjectPool().acquire(1)):
            try:
                pool.release(bad)
            except (ValueError, TypeError):
                pass
        view = memoryview(again)
        try:
            pool.release(again)
        except BufferError:
            view.release()
        with pool.borrow(size) as one:
            pass
        pool.stats()
    pool.trim()
    pool.release(pool.acquire(5))
    things = module.InstancePool(list, list.clear, max_objects=3)
    for _ in range(3):
        lent = [things.acquire() for _ in range(5)]
        for one in lent:
            things.release(one)
        try:
            things.release(one)
        except ValueError:
            pass
        with things.borrow() as one:
            pass
    things.acquire().append(things)
""",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_kept(load_module, kind, name):
    load_module(name.partition(":")[0], kind)  # skips what is not built
    code = HEAD + SCENARIOS[name] + TAIL
    done = subprocess.run(
        [sys.executable, "-c", code, kind], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


MEMORY = """
import sys, tracemalloc
from openbr._native.lru import TTLCache
keys = [str(n) for n in range(100_000)]
tracemalloc.start()
empty = tracemalloc.get_traced_memory()[0]
cache = TTLCache(1_000_000, 3600, max_bytes=1 << 30, policy="sieve")
assert tracemalloc.get_traced_memory()[0] - empty < 4096
del cache
before = tracemalloc.get_traced_memory()[0]
cache = TTLCache(100_000, 3600)
for key in keys:
    cache.set(key, None)
full = tracemalloc.get_traced_memory()[0] - before
assert full / 100_000 <= 55, full / 100_000
assert abs(sys.getsizeof(cache) - full) < 4096
for key in keys[:95_000]:
    cache.delete(key)
cache.expire()
assert tracemalloc.get_traced_memory()[0] - before < full / 8
cache.clear()
assert tracemalloc.get_traced_memory()[0] - before < 4096
"""


def test_memory_of_the_compiled_cache(load_module):
    load_module("lru", "native")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
