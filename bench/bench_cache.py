"""The response cache: its key, a hit, and what sharing a call costs.

In: options. Out: microseconds for the key of a request and for a hit; microseconds a chunk for a
stream that passes through a flight, beside the same stream without one; time and memory to keep
what has passed, in a list of its pieces and in an arena. The rule that lives only here: each hit
and each stream is compared with the fresh answer before it is timed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import make_chat, make_chunks
from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

CHUNKS = 200
FLIGHTS = 500
ROOT = Path(__file__).resolve().parent.parent


def run(options: Options) -> list[Table]:
    return [requests(options), streams(options), collected(options)]


def bodies() -> dict[str, bytes]:
    import json

    def encode(*texts: str) -> bytes:
        messages = [{"role": "user", "content": text} for text in texts]
        return json.dumps({"model": "m", "temperature": 0, "messages": messages}).encode()

    line = "Why is it that the gateway waits, and when does it answer?\n"
    return {
        "1 KB": make_chat(1024),
        "100 KB, one text": encode((line * 1700)[:100_000]),
        "100 KB, 200 messages": encode(*[(line * 9)[:500]] * 200),
    }


def requests(options: Options) -> Table:
    """The key alone, the key and a hit, beside what hashing the bytes as they came would cost."""
    from openbr import ultra
    from openbr.api.chat import parse_request
    from openbr.cache import ResponseCache
    from openbr.config import CacheConfig
    from openbr.providers.base import Completion
    from openbr.records import Answer, Caller, ChatRequest, Deployment

    here = Deployment(provider="fake", upstream_model="alpha", is_local=False)
    caller = Caller(key_id=1, name="bench", scopes=frozenset({"chat"}))
    answer = Completion(
        body=b'{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}',
        answer=Answer(deployment=here, finish_reason="stop"),
    )

    async def fresh() -> Completion:
        return answer

    results: dict[str, dict[str, float]] = {}
    names = ("BLAKE3 of the bytes as they came", "key", "key and hit")
    for label, body in bodies().items():
        options.say(f"cache: {label}")
        cache = ResponseCache(CacheConfig())
        read = parse_request(body)
        request = ChatRequest(
            model=read.model, stream=False, fields=read.fields, is_deterministic=True
        )

        async def ask(cache: ResponseCache = cache, request: Any = request) -> Completion:
            key = cache.key(request, caller, here)
            assert key is not None
            return await cache.complete(key, request, here, fresh)

        def hit(ask: Callable[[], Any] = ask) -> Any:
            try:
                ask().send(None)  # a hit waits for nothing, so it needs no loop
            except StopIteration as done:
                return done.value
            raise AssertionError("a hit has waited")

        asyncio.run(ask())
        assert hit().body == answer.body and hit().answer.cache == "hit"
        calls = 200 if len(body) < 10_000 else 10
        cases = {
            names[0]: repeated(lambda body=body: ultra.blake3_hash(body), calls),
            names[1]: repeated(lambda c=cache, r=request: c.key(r, caller, here), calls),
            names[2]: repeated(hit, calls),
        }
        timed = {
            name: Case(run=one, calls=calls * 1000)  # µs
            for name, one in cases.items()
        }
        results[label] = measure(timed, options.rounds(60), options.least_s)
    table = Table(
        title="A request that was answered before",
        unit="µs",
        columns=tuple(results),
        rows=[Row(name=n, cells=tuple(results[label][n] for label in results)) for n in names],
    )
    for label in results:
        ratio = divide(table.cell(names[1], label), table.cell(names[0], label))
        table.ratios.append(Ratio(name=f"key / BLAKE3 alone, {label}", value=ratio, wish="<="))
    return table


def repeated(one: Callable[[], object], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            one()

    return run


def streams(options: Options) -> Table:
    """A whole stream of chunks that come at once, read by one caller and by several."""
    from openbr.cache.flight import Flight, FlightStream
    from openbr.providers.base import ChatStream
    from openbr.records import Answer, Deployment

    here = Deployment(provider="fake", upstream_model="alpha", is_local=False)
    chunks = [*make_chunks(CHUNKS - 1), b"data: [DONE]\n\n"]
    expected = b"".join(chunks)

    class Ready(ChatStream):
        def __init__(self) -> None:
            self.answer = Answer(deployment=here)
            self.text = ""
            self._chunks = iter(chunks)

        async def next(self) -> bytes:
            return next(self._chunks, b"")

        def close(self) -> None:
            pass

    async def read(stream: ChatStream) -> bytes:
        out = []
        while batch := await stream.next():
            out.append(batch)
        stream.close()
        return b"".join(out)

    async def share(readers: int) -> bytes:
        async def open_() -> ChatStream:
            return Ready()

        flight = Flight((b"", ()), here, 4 << 20, lambda _: None)
        places = [FlightStream(flight, False, "join") for _ in range(readers)]
        flight.start(open_)
        streams = [await place.open() for place in places]
        got = [await read(stream) for stream in streams]
        return got[-1]

    loop = asyncio.new_event_loop()
    ways: dict[str, Callable[[], Any]] = {
        "no flight": lambda: loop.run_until_complete(read(Ready())),
        "a flight of one": lambda: loop.run_until_complete(share(1)),
        "a flight of ten": lambda: loop.run_until_complete(share(10)),
    }
    options.say("cache: streams")
    assert all(way() == expected for way in ways.values())
    cases = {name: Case(run=way, calls=1000) for name, way in ways.items()}
    found = measure(cases, options.rounds(60), options.least_s)
    loop.close()
    rows = [Row(name=n, cells=(found[n], found[n] / CHUNKS)) for n in ways]
    return Table(
        title=f"A stream of {CHUNKS} chunks through a flight",
        unit="µs",
        columns=("stream", "chunk"),
        rows=rows,
        ratios=[
            Ratio(
                name="flight of one, µs a chunk more",
                value=(found["a flight of one"] - found["no flight"]) / CHUNKS,
                wish="<=",
                unit=" µs",
                is_guarded=False,
            )
        ],
    )


COLLECT = """
import sys
sys.path[:0] = sys.argv[1:3]
from data import make_chunks
from openbr import ultra
how, flights, count = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
source = make_chunks(count)

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def collect():
    if how == "arena":
        arena = ultra.create_memory_arena(4096)
        for chunk in source:
            arena.append(bytes(bytearray(chunk)))
        return arena
    pieces = []
    for chunk in source:
        pieces.append(bytes(bytearray(chunk)))
    return pieces

warm = collect()
del warm
before = rss()
kept = [collect() for _ in range(flights)]
print((rss() - before) / flights / 1024)
"""


def collected(options: Options) -> Table:
    """What has passed, kept until the end and copied out once; and while it is kept, its memory."""
    from openbr import ultra

    chunks = make_chunks(CHUNKS)
    expected = b"".join(chunks)

    def in_a_list() -> bytes:
        pieces: list[bytes] = []
        for chunk in chunks:
            pieces.append(chunk)
        return b"".join(pieces)

    def in_an_arena() -> bytes:
        arena = ultra.create_memory_arena(4096)
        for chunk in chunks:
            arena.append(chunk)
        return arena.take()

    ways = {"list of the pieces, then join": in_a_list, "arena of its own, then take": in_an_arena}
    assert all(way() == expected for way in ways.values())
    options.say("cache: what has passed")
    cases = {name: Case(run=repeated(way, 10), calls=10_000) for name, way in ways.items()}
    found = measure(cases, options.rounds(60), options.least_s)
    kilobytes = {name: memory_of(how) for name, how in zip(ways, ("list", "arena"), strict=True)}
    return Table(
        title=f"{CHUNKS} chunks ({len(expected) // 1024} KiB) kept until the end",
        unit="",
        columns=("µs", "KiB of RSS meanwhile"),
        rows=[Row(name=n, cells=(found[n], kilobytes[n])) for n in ways],
        ratios=[
            Ratio(
                name="arena / list, time",
                value=divide(found["arena of its own, then take"], found[next(iter(ways))]),
                wish=">=",
                is_guarded=False,
            )
        ],
        notes=["The pieces of the list are those that are sent; the arena copies them."],
    )


def memory_of(how: str) -> float | None:
    """KiB of RSS for each of many answers that are kept at one time; None where it is not told."""
    if not Path("/proc/self/statm").exists():
        return None
    arguments = [str(ROOT), str(ROOT / "bench"), how, str(FLIGHTS), str(CHUNKS)]
    told = subprocess.check_output([sys.executable, "-c", COLLECT, *arguments], text=True)
    return float(told)
