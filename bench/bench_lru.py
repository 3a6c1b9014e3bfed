"""The cache beside what a Python developer would pick.

In: options. Out: nanoseconds for a hit in 1,000 and in 100,000 entries, for a set that evicts, for
a mix of both; bytes for an entry. The rule that lives only here: every cache is asked, before it is
timed, whether it keeps what it should and forgets what was not used.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from data import make_keys, make_shuffled, make_zipf
from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

SMALL, LARGE = 1_000, 100_000
ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("get 1k", "get 100k", "set+evict 1k", "Zipf mix", "bytes/entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`make(entries)` -> (get, set). `get` of a missing key gives None. `every`: see Case."""

    make: Callable[[int], tuple[Callable[[str], Any], Callable[[str, Any], Any]]]
    is_bounded: bool = True
    every: int = 1


def make_dict(entries: int) -> Any:
    cache: dict[str, Any] = {}
    return cache.get, cache.__setitem__


def make_dict_that_evicts(entries: int) -> Any:
    """What one writes first: forget the oldest key."""
    cache: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        cache[key] = value
        if len(cache) > entries:
            del cache[next(iter(cache))]

    return cache.get, put


def make_openbr(kind: str, **options: Any) -> Callable[[int], Any]:
    def make(entries: int) -> Any:
        if kind == "native":
            from openbr._native.lru import TTLCache
        else:
            from openbr._native.lru_py import TTLCache
        cache: Any = TTLCache(entries, **options)
        return cache.get, cache.set

    return make


def make_cachebox(name: str, *options: Any) -> Callable[[int], Any]:
    def make(entries: int) -> Any:
        import cachebox

        cache = getattr(cachebox, name)(entries, *options)
        return cache.get, cache.__setitem__

    return make


def make_lru_dict(entries: int) -> Any:
    from lru import LRU

    cache: Any = LRU(entries)
    return cache.get, cache.__setitem__


def make_cachetools(entries: int) -> Any:
    """cachetools is not for threads by itself: its documentation says to hold a lock."""
    from cachetools import TTLCache

    cache: Any = TTLCache(entries, 3600)
    lock = Lock()

    def get(key: str) -> Any:
        with lock:
            return cache.get(key)

    def put(key: str, value: Any) -> None:
        with lock:
            cache[key] = value

    return get, put


def make_lru_cache(entries: int) -> Any:
    """A call is get and set in one: a new key is computed and kept."""

    @lru_cache(entries)
    def call(key: str) -> int:
        return 1

    return call, lambda key, value: call(key)


PEERS = {
    "dict, unbounded (the limit)": Peer(make=make_dict, is_bounded=False),
    "dict that forgets the oldest": Peer(make=make_dict_that_evicts, is_bounded=False),
    "openbr LRU": Peer(make=make_openbr("native")),
    "openbr TTL": Peer(make=make_openbr("native", ttl_s=3600)),
    "openbr TTL, sieve": Peer(
        make=make_openbr("native", ttl_s=3600, policy="sieve"), is_bounded=False
    ),
    "openbr TTL, pure twin": Peer(make=make_openbr("pure", ttl_s=3600), every=10),
    "cachebox LRU": Peer(make=make_cachebox("LRUCache")),
    "cachebox TTL": Peer(make=make_cachebox("TTLCache", 3600), is_bounded=False),
    "lru-dict": Peer(make=make_lru_dict),
    "functools.lru_cache": Peer(make=make_lru_cache, is_bounded=False),
    "cachetools TTL + Lock": Peer(make=make_cachetools, every=10),
}


def find_available(say: Callable[[str], None]) -> dict[str, Peer]:
    """Those that can be made here, each asked whether it does what a cache does."""
    found = {}
    for name, peer in PEERS.items():
        try:
            get, put = peer.make(3)
        except ImportError as exc:
            say(f"lru: without {name}: {exc}")
            continue
        for key in "abc":
            put(key, 1)
        assert get("a") == 1, name
        put("d", 1)
        if peer.is_bounded:  # true LRU: what was just asked for stays, the oldest other one goes
            assert get("a") == 1 and get("b") is None and get("d") == 1, name
        found[name] = peer
    return found


def repeat_get(get: Callable[[str], Any], requests: list[str]) -> Callable[[], None]:
    def run() -> None:
        for key in requests:
            get(key)

    return run


def repeat_set(put: Callable[[str, Any], Any], requests: list[str]) -> Callable[[], None]:
    def run() -> None:
        for key in requests:
            put(key, 1)

    return run


def repeat_mix(
    get: Callable[[str], Any], put: Callable[[str, Any], Any], requests: list[str]
) -> Callable[[], None]:
    def run() -> None:
        for key in requests:
            if get(key) is None:
                put(key, 1)

    return run


def measure_gets(peers: dict[str, Peer], entries: int, calls: int, rounds: int) -> dict[str, float]:
    keys = make_keys(entries)
    requests = make_shuffled(keys, calls)
    cases = {}
    for name, peer in peers.items():
        get, put = peer.make(entries)
        for key in keys:
            put(key, 1)
        assert all(get(key) == 1 for key in keys), name
        cases[name] = Case(run=repeat_get(get, requests), calls=calls, every=peer.every)
    return measure(cases, rounds)


def measure_large_gets(peers: dict[str, Peer], options: Options) -> dict[str, float]:
    """Each cache made three times: which pages it gets, so how well they share the CPU's caches,
    is luck, and weighs as much as what is compared here."""
    best: dict[str, float] = {}
    for _ in range(3):
        for name, taken in measure_gets(peers, LARGE, LARGE, options.rounds(20)).items():
            best[name] = min(taken, best.get(name, taken))
    return best


def measure_sets(peers: dict[str, Peer], rounds: int) -> dict[str, float]:
    """Twice as many keys as entries, in turn: each set is of a key that has gone by then."""
    keys = make_keys(2 * SMALL)
    cases = {}
    for name, peer in peers.items():
        if name != "dict, unbounded (the limit)":
            _, put = peer.make(SMALL)
            cases[name] = Case(run=repeat_set(put, keys), calls=len(keys), every=peer.every)
    return measure(cases, rounds)


def measure_mix(peers: dict[str, Peer], rounds: int) -> dict[str, float]:
    """1,000 entries, 10,000 keys: get, and set what is missing."""
    requests = make_zipf(make_keys(10 * SMALL), 4 * SMALL)
    cases = {}
    for name, peer in peers.items():
        if name != "functools.lru_cache":
            get, put = peer.make(SMALL)
            run = repeat_mix(get, put, requests)
            cases[name] = Case(run=run, calls=len(requests), every=peer.every)
    return measure(cases, rounds)


MEMORY = """
import ctypes, gc, sys
sys.path[:0] = [{root!r}, {bench!r}]
from bench_lru import LARGE, PEERS
from data import make_keys
keys = make_keys(LARGE)
make = PEERS[{name!r}].make
get, put = make(10)  # whatever is loaded or made once
put("a", 1), get("a")
def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
resident()
before = resident()
get, put = make(LARGE)
for key in keys:
    put(key, None)
print((resident() - before) / LARGE)
"""


def measure_memory(name: str) -> float | None:
    """Resident bytes an entry beyond key and value, in a process of its own. Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    code = MEMORY.format(root=str(ROOT), bench=str(Path(__file__).parent), name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def run(options: Options) -> list[Table]:
    peers = find_available(options.say)
    options.say("lru: get, 1,000 entries")
    small = measure_gets(peers, SMALL, 10 * SMALL, options.rounds(300))
    options.say("lru: get, 100,000 entries")
    large = measure_large_gets(peers, options)
    options.say("lru: set and evict")
    sets = measure_sets(peers, options.rounds(300))
    options.say("lru: Zipf mix")
    mixes = measure_mix(peers, options.rounds(200))
    ours, limit = "openbr TTL", "dict, unbounded (the limit)"
    rows = []
    for name in peers:
        timed = [results.get(name) for results in (small, large, sets, mixes)]
        memory = None
        if name == ours or not options.quick:
            options.say(f"lru: memory, {name}")
            memory = measure_memory(name)
        rows.append(Row(name=name, cells=(*timed, memory)))
    table = Table(title="Cache, str keys", unit="ns a call", columns=COLUMNS, rows=rows)

    def ratio(above: str, below: str, column: str) -> float | None:
        return divide(table.cell(above, column), table.cell(below, column))

    table.ratios.extend(
        [
            Ratio(
                name="TTL get 1k / dict.get",
                value=ratio(ours, limit, "get 1k"),
                wish="<=",
                target=1.25,
            ),
            Ratio(
                name="TTL get 100k / dict.get",
                value=ratio(ours, limit, "get 100k"),
                wish="<=",
                target=1.1,
            ),
            Ratio(
                name="cachebox TTL / ours, get 1k",
                value=ratio("cachebox TTL", ours, "get 1k"),
                target=1.9,
            ),
            Ratio(
                name="cachebox TTL / ours, get 100k",
                value=ratio("cachebox TTL", ours, "get 100k"),
                target=1.9,
            ),
            Ratio(
                name="cachetools TTL + Lock / ours, get 1k",
                value=ratio("cachetools TTL + Lock", ours, "get 1k"),
                target=25,
            ),
            Ratio(
                name="cachebox TTL / ours, set+evict",
                value=ratio("cachebox TTL", ours, "set+evict 1k"),
            ),
            Ratio(
                name="set+evict",
                value=table.cell(ours, "set+evict 1k"),
                wish="<=",
                target=100,
                unit=" ns",
                is_guarded=False,
            ),
            Ratio(
                name="bytes an entry",
                value=table.cell(ours, "bytes/entry"),
                wish="<=",
                target=55,
                unit=" B",
            ),
        ]
    )
    return [table]
