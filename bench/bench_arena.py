"""The arena beside bytearray(n), and beside other ways to collect a stream.

In: options. Out: nanoseconds to take a piece of memory, by size, giving it back included;
microseconds to collect a streamed answer and copy it out once. The rule that lives only here: what
the arena does not win is in the table too.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from itertools import repeat
from typing import Any

from bench_pool import NOTHING, SIZES, calls_for, use_bytearray, use_nothing
from data import make_chunks
from table import Options, Ratio, Row, Table, divide
from timing import Case, measure


def use_arena(arena: Any, size: int, calls: int) -> Callable[[], None]:
    allocate, reset = arena.alloc_buffer, arena.reset

    def run() -> None:
        for _ in repeat(None, calls):
            allocate(size)
        reset()

    return run


def use_arena_and_view(arena: Any, size: int, calls: int) -> Callable[[], None]:
    allocate, reset = arena.alloc_buffer, arena.reset

    def run() -> None:
        for _ in repeat(None, calls):
            memoryview(allocate(size)).release()
        reset()

    return run


def collect_with(kind: str, chunks: list[bytes], arena: Any) -> Callable[[], bytes]:
    def with_arena() -> bytes:
        append = arena.append
        for chunk in chunks:
            append(chunk)
        taken: bytes = arena.take()
        arena.reset()
        return taken

    def with_bytearray() -> bytes:
        collected = bytearray()
        for chunk in chunks:
            collected += chunk
        return bytes(collected)

    def with_join() -> bytes:
        pieces: list[bytes] = []
        append = pieces.append
        for chunk in chunks:
            append(chunk)
        return b"".join(pieces)

    def with_bytesio() -> bytes:
        stream = BytesIO()
        write = stream.write
        for chunk in chunks:
            write(chunk)
        return stream.getvalue()

    return {
        "arena": with_arena,
        "bytearray": with_bytearray,
        "join": with_join,
        "BytesIO": with_bytesio,
    }[kind]


def run(options: Options) -> list[Table]:
    from openbr._native.arena_py import MemoryArena as Pure

    try:
        from openbr._native.arena import MemoryArena
    except ModuleNotFoundError:
        options.say("arena: not built; without it there is only the twin")
        MemoryArena = None
    return [pieces(MemoryArena, Pure, options), streams(MemoryArena, Pure, options)]


def pieces(native: Any, pure: Any, options: Options) -> Table:
    results: dict[str, dict[str, float]] = {}
    for label, size in SIZES.items():
        options.say(f"arena: {label}")
        calls = calls_for(size)
        cases = {
            "bytearray(n), zeroed": use_bytearray(size, calls),
            NOTHING: use_nothing(size, calls, is_one=True),
            "openbr arena, pure twin": use_arena(pure(calls * size + 64), size, calls),
        }
        if native is not None:
            cases |= {
                "openbr arena": use_arena(native(calls * size + 64), size, calls),
                "openbr arena, with a memoryview": use_arena_and_view(
                    native(calls * size + 64), size, calls
                ),
            }
        timed = {name: Case(run=one, calls=calls) for name, one in cases.items()}
        results[label] = measure(timed, options.rounds(60), options.least_s)
    names = results["64 B"]
    rows = [Row(name=n, cells=tuple(results[label][n] for label in SIZES)) for n in names]
    table = Table(
        title="Memory from an arena",
        unit="ns",
        columns=tuple(SIZES),
        rows=rows,
        notes=[
            "For small pieces the call itself is all that is left, so the ratio to bytearray(n)",
            "is what a machine makes of its zeroing: 3.7 to 4.4 at 64 B have been seen.",
        ],
    )
    for label in SIZES:
        table.ratios.append(
            Ratio(
                name=f"bytearray(n) / arena, {label}",
                value=divide(
                    table.cell("bytearray(n), zeroed", label), table.cell("openbr arena", label)
                ),
                target=4,
                is_guarded=label != "1 MB",  # how it gets its pages is the system's choice
            )
        )
    for label in tuple(SIZES)[:-1]:  # at 1 MB a round is too short
        table.ratios.append(
            Ratio(
                name=f"arena / a call that does nothing, {label}",
                value=divide(table.cell("openbr arena", label), table.cell(NOTHING, label)),
                wish="<=",
            )
        )
    return table


def streams(native: Any, pure: Any, options: Options) -> Table:
    counts = {"20 events": 20, "400 events": 400, "8,000 events": 8000}
    ours, plain = "openbr arena: append, take, reset", "bytearray +=, then bytes()"
    ways = {
        **({ours: ("arena", native)} if native is not None else {}),
        "openbr arena, pure twin": ("arena", pure),
        plain: ("bytearray", pure),
        "list, then b''.join": ("join", pure),
        "BytesIO, then getvalue()": ("BytesIO", pure),
    }
    results: dict[str, dict[str, float]] = {}
    for label, count in counts.items():
        options.say(f"arena: collect {label}")
        chunks = make_chunks(count)
        expected = b"".join(chunks)
        cases = {}
        for name, (kind, make) in ways.items():
            collect = collect_with(kind, chunks, make(65_536))
            assert collect() == expected, name
            cases[name] = Case(run=collect, calls=1000)  # ns / 1000 calls = µs / call
        results[label] = measure(cases, options.rounds(60), options.least_s)
    table = Table(
        title="A streamed answer, collected and copied out once",
        unit="µs",
        columns=tuple(counts),
        rows=[Row(name=n, cells=tuple(results[label][n] for label in counts)) for n in ways],
    )
    for label in counts:
        table.ratios.append(
            Ratio(
                name=f"bytearray / arena, {label}",
                value=divide(table.cell(plain, label), table.cell(ours, label)),
            )
        )
    return table
