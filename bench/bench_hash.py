"""The two hashes beside those of the standard library.

In: options. Out: nanoseconds to hash, by size. The rule that lives only here: each is asked for a
digest that is known before it is timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import repeat
from typing import Any

from data import make_bytes
from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

SIZES = {
    "256 B": 256,
    "1 KB": 1024,
    "2 KB": 2048,
    "16 KB": 16_384,
    "100 KB": 102_400,
    "1 MB": 1 << 20,
}
SHA256, XXH3, BLAKE3 = "hashlib.sha256", "ultra.xxh3_hash", "ultra.blake3_hash"
EMPTY = {
    SHA256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    XXH3: "99aa06d3014798d86001c324468d497f",
    BLAKE3: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
}
TARGETS = {
    XXH3: {"256 B": 7, "2 KB": 14, "16 KB": 14, "100 KB": 14, "1 MB": 14},
    BLAKE3: {"16 KB": 3, "100 KB": 3, "1 MB": 3},
}


def functions() -> dict[str, Callable[[bytes], bytes]]:
    from openbr import ultra

    return {
        SHA256: lambda data: hashlib.sha256(data).digest(),
        "hashlib.blake2b": lambda data: hashlib.blake2b(data, digest_size=32).digest(),
        XXH3: ultra.xxh3_hash,
        BLAKE3: ultra.blake3_hash,
    }


def repeat_hash(function: Callable[[bytes], Any], data: bytes, calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in repeat(None, calls):
            function(data)

    return run


def run(options: Options) -> list[Table]:
    hashes = functions()
    for name, digest in EMPTY.items():
        assert hashes[name](b"").hex() == digest, name
    results = {}
    for label, size in SIZES.items():
        options.say(f"hash: {label}")
        data, calls = make_bytes(size), max(3, 200_000 // (size + 200))
        cases = {n: Case(run=repeat_hash(f, data, calls), calls=calls) for n, f in hashes.items()}
        results[label] = measure(cases, options.rounds(100), options.least_s)
    rows = [Row(name=n, cells=tuple(results[label][n] for label in SIZES)) for n in hashes]
    table = Table(
        title="Hashes",
        unit="ns",
        columns=tuple(SIZES),
        rows=rows,
        notes=["Up to a few KB blake3 is no faster than sha256 on a CPU with SHA instructions."],
    )
    for name in (XXH3, BLAKE3):
        for label in SIZES:
            table.ratios.append(
                Ratio(
                    name=f"sha256 / {name.removeprefix('ultra.')}, {label}",
                    value=divide(table.cell(SHA256, label), table.cell(name, label)),
                    target=TARGETS[name].get(label),
                )
            )
    return [table]
