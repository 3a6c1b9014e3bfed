"""The buffer pool beside bytearray(n).

In: options. Out: nanoseconds to get a buffer and give it back, by size; how often a request is
served from what is idle. The rule that lives only here: what costs more than it saves is in the
table too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import repeat
from typing import Any

from data import SEED, make_bytes
from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

SIZES = {"64 B": 64, "1 KB": 1024, "16 KB": 16_384, "64 KB": 65_536, "1 MB": 1 << 20}
FROM_64_KB = ("64 KB", "1 MB")
NOTHING = "calls that do nothing (the limit)"


def calls_for(size: int) -> int:
    return 2000 if size <= 16_384 else 500 if size <= 65_536 else 100


def use_nothing(size: int, calls: int, is_one: bool = False) -> Callable[[], None]:
    """The loop and two calls of compiled code, or one: nothing that is called can be faster."""

    def one() -> None:
        for _ in repeat(None, calls):
            abs(size)

    def two() -> None:
        for _ in repeat(None, calls):
            abs(abs(size))

    return one if is_one else two


def use_bytearray(size: int, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, calls):
            bytearray(size)

    return run


def use_pool(pool: Any, size: int, calls: int) -> Callable[[], None]:
    acquire, release = pool.acquire, pool.release

    def run() -> None:
        for _ in repeat(None, calls):
            release(acquire(size))

    return run


def use_pool_and_view(pool: Any, size: int, calls: int) -> Callable[[], None]:
    acquire, release = pool.acquire, pool.release

    def run() -> None:
        for _ in repeat(None, calls):
            buffer = acquire(size)
            memoryview(buffer).release()
            release(buffer)
            del buffer

    return run


def use_borrow(pool: Any, size: int, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, calls):
            with pool.borrow(size):
                pass

    return run


def copy_bytearray(source: bytes, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, calls):
            bytearray(source)

    return run


def copy_pool(pool: Any, source: bytes, calls: int) -> Callable[[], None]:
    size = len(source)

    def run() -> None:
        for _ in repeat(None, calls):
            buffer = pool.acquire(size)
            with memoryview(buffer) as view:
                view[:] = source
            pool.release(buffer)
            del buffer, view

    return run


def check(pool: Any) -> None:
    buffer = pool.acquire(1000)
    with memoryview(buffer) as view:
        view[:] = make_bytes(1000)
        assert bytes(view) == make_bytes(1000)
    pool.release(buffer)
    assert pool.stats().idle == 1


def run(options: Options) -> list[Table]:
    from openbr._native.pool_py import ObjectPool as Pure

    try:
        from openbr._native.pool import ObjectPool
    except ModuleNotFoundError:
        options.say("pool: not built; without it there is only the twin")
        ObjectPool = None
    results: dict[str, dict[str, float]] = {}
    for label, size in SIZES.items():
        options.say(f"pool: {label}")
        calls, source = calls_for(size), make_bytes(size)
        cases = {
            "bytearray(n), zeroed": use_bytearray(size, calls),
            NOTHING: use_nothing(size, calls),
            "openbr pool, pure twin": use_pool(Pure(), size, calls),
            "copy: bytearray(source)": copy_bytearray(source, calls),
        }
        if ObjectPool is not None:
            pool = ObjectPool()
            check(pool)
            cases |= {
                "openbr pool, acquire + release": use_pool(pool, size, calls),
                "openbr pool, with a memoryview": use_pool_and_view(pool, size, calls),
                "openbr pool, with borrow": use_borrow(pool, size, calls),
                "copy: into a pooled buffer": copy_pool(pool, source, calls),
            }
        timed = {name: Case(run=one, calls=calls) for name, one in cases.items()}
        results[label] = measure(timed, options.rounds(60), options.least_s)
    names = list(dict.fromkeys(name for one in results.values() for name in one))
    rows = [Row(name=n, cells=tuple(results[label].get(n) for label in SIZES)) for n in names]
    table = Table(
        title="Buffers from a pool",
        unit="ns",
        columns=tuple(SIZES),
        rows=sorted(rows, key=lambda row: row.name.startswith("copy")),
        notes=[
            "Below 16 KB a memoryview costs more than the pool saves; and where the data must be",
            "copied anyway, nothing beats one bytearray(source) until large buffers page-fault.",
            "bytearray(n) to the limit is all that any pool can reach.",
        ],
    )
    for label in SIZES:
        table.ratios.append(
            Ratio(
                name=f"bytearray(n) / pool, {label}",
                value=divide(
                    table.cell("bytearray(n), zeroed", label),
                    table.cell("openbr pool, acquire + release", label),
                ),
                target=40 if label in FROM_64_KB else 2.5,
                is_guarded=label != "1 MB",  # how it gets its pages is the system's choice
            )
        )
    for label in SIZES:
        table.ratios.append(
            Ratio(
                name=f"pool / calls that do nothing, {label}",
                value=divide(
                    table.cell("openbr pool, acquire + release", label), table.cell(NOTHING, label)
                ),
                wish="<=",
            )
        )
    return [table, hit_rates(ObjectPool or Pure)]


def hit_rates(make: Any) -> Table:
    """A steady load: up to 16 buffers lent at a time, of three sizes, 20,000 requests."""
    cells = []
    depths = (4, 8, 16, 100)
    for depth in depths:
        pool, rng = make(depth), random.Random(SEED)
        lent: list[Any] = []
        for _ in range(40_000):
            if lent and (len(lent) >= 16 or rng.random() < 0.5):
                pool.release(lent.pop(rng.randrange(len(lent))))
            else:
                lent.append(pool.acquire(rng.choice((4096, 16_384, 65_536))))
        cells.append(pool.stats().hit_rate * 100)
    return Table(
        title="Hit rate of the pool on a steady load, by the buffers it may keep",
        unit="%",
        columns=tuple(f"{depth} idle" for depth in depths),
        rows=[Row(name="openbr pool", cells=tuple(cells))],
        ratios=[Ratio(name="hit rate, default bound", value=cells[-1], target=99, unit=" %")],
    )
