"""Reading an answer into pooled buffers, beside letting the loop make bytes of each read.

In: options; uvloop, and sockets on loopback. Out: microseconds of this process's CPU for a request,
by what is answered. The rule that lives only here: both ways feed the same parser and hand over the
same bodies, which is checked.

This is why upstream/connection.py is a plain asyncio.Protocol: uvloop reads into one buffer of its
own and copies what came, once, and the parser copies the body again whoever owns the memory. A
pooled buffer saves the smaller of the two copies and pays for two more calls and a view a read.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from time import process_time_ns
from typing import Any

from table import Options, Ratio, Row, Table, divide

REQUEST = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n"
CONNECTIONS = 8
EVENT = b"data: " + b"x" * 180 + b"\n\n"
SIZES = {"300 B": 300, "16 KB": 16_384, "100 KB": 102_400, "1 MB": 1 << 20}
BURST = "400 events"
PLAIN = "asyncio.Protocol (what openbr does)"
EACH_READ = "pooled buffer, 64 KB, for each read"
HELD = "pooled buffer, 64 KB, held while a request runs"
ONE = "one buffer of 256 KB for all (the limit)"


def make_answers() -> dict[str, tuple[bytes, int]]:
    """Each answer on the wire, and the size of its body."""
    answers = {
        label: (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size, size)
        for label, size in SIZES.items()
    }
    chunk = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    answers[BURST] = (head + chunk * 400 + b"0\r\n\r\n", 400 * len(EVENT))
    return answers


def serve(answer: bytes, ports: Any) -> None:
    """An upstream in a process of its own: `answer` for whatever comes."""
    import uvloop

    class Upstream(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


def make_protocols() -> dict[str, Callable[[], Any]]:
    import httptools

    from openbr.ultra import create_object_pool

    class Reader:
        done: asyncio.Future[int]

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.parser = httptools.HttpResponseParser(self)
            self.pieces: list[bytes] = []

        def on_body(self, piece: bytes) -> None:
            self.pieces.append(piece)

        def on_message_complete(self) -> None:
            size = sum(map(len, self.pieces))
            self.pieces.clear()
            self.parser = httptools.HttpResponseParser(self)
            self.done.set_result(size)

    class Plain(Reader, asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            self.parser.feed_data(data)

    class EachRead(Reader, asyncio.BufferedProtocol):
        """uvloop lets go of a buffer after buffer_updated, so it goes back at the next read."""

        buffer: Any = None

        def get_buffer(self, hint: int) -> Any:
            if self.buffer is not None:
                pool.release(self.buffer)
            self.buffer = pool.acquire(65_536)
            return self.buffer

        def buffer_updated(self, count: int) -> None:
            with memoryview(self.buffer) as view:
                self.parser.feed_data(view[:count])

    class Held(Reader, asyncio.BufferedProtocol):
        buffer: Any = None

        def get_buffer(self, hint: int) -> Any:
            if self.buffer is None:
                self.buffer = pool.acquire(65_536)
                self.view = memoryview(self.buffer)
            return self.view

        def buffer_updated(self, count: int) -> None:
            self.parser.feed_data(self.view[:count])
            if self.done.done():
                asyncio.get_running_loop().call_soon(self.give_back)

        def give_back(self) -> None:
            if self.buffer is not None and self.done.done():
                self.view.release()
                pool.release(self.buffer)
                self.buffer = None

    class One(Reader, asyncio.BufferedProtocol):
        def get_buffer(self, hint: int) -> Any:
            return shared

        def buffer_updated(self, count: int) -> None:
            self.parser.feed_data(shared[:count])

    pool, shared = create_object_pool(), memoryview(bytearray(262_144))
    return {PLAIN: Plain, EACH_READ: EachRead, HELD: Held, ONE: One}


async def ask(make: Callable[[], Any], port: int, requests: int, size: int) -> float:
    """Microseconds of CPU a request."""
    loop = asyncio.get_running_loop()

    async def one() -> None:
        transport, reader = await loop.create_connection(make, "127.0.0.1", port)
        for _ in range(requests // CONNECTIONS):
            reader.done = loop.create_future()
            transport.write(REQUEST)
            assert await reader.done == size
        transport.close()

    start = process_time_ns()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return (process_time_ns() - start) / requests / 1000


async def measure(port: int, size: int, options: Options) -> dict[str, float]:
    protocols = make_protocols()
    requests = max(160, min(2400, 200_000_000 // (size + 60_000)))
    best = dict.fromkeys(protocols, float("inf"))
    names = list(protocols)
    for _ in range(options.rounds(12)):
        for name in names:
            best[name] = min(best[name], await ask(protocols[name], port, requests, size))
        names = names[1:] + names[:1]
    return best


def measure_on_two_cores(answer: bytes, size: int, options: Options) -> dict[str, float]:
    """The upstream on another core than we, where there are two."""
    import uvloop

    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve, args=(answer, ports), daemon=True)
    process.start()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        port = ports.get(timeout=60)
        if len(cores) > 1:
            first, *others = sorted(cores)
            os.sched_setaffinity(0, {first})
            os.sched_setaffinity(process.pid or 0, set(others))
        return uvloop.run(measure(port, size, options))
    finally:
        if len(cores) > 1:
            os.sched_setaffinity(0, cores)
        process.terminate()
        process.join()


def run(options: Options) -> list[Table]:
    results = {}
    for label, (answer, size) in make_answers().items():
        options.say(f"receive: {label}")
        results[label] = measure_on_two_cores(answer, size, options)
    names = (PLAIN, EACH_READ, HELD, ONE)
    rows = [Row(name=n, cells=tuple(results[label][n] for label in results)) for n in names]
    table = Table(
        title="An answer of an upstream, read by uvloop: CPU a request",
        unit="µs",
        columns=tuple(results),
        rows=rows,
        notes=[
            "Reading into pooled buffers costs more than it saves below 1 MB, and saves 6 % there",
            "at most. The last row is the best that reading into one's own memory could do.",
        ],
    )
    for label in results:
        value = divide(table.cell(PLAIN, label), table.cell(EACH_READ, label))
        table.ratios.append(Ratio(name=f"plain / pooled, {label}", value=value, is_guarded=False))
    return [table]
