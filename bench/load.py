"""Load on a gateway: chats from a number of connections, each waiting for its answer.

    python bench/load.py PORT KIND --connections 16 --seconds 1 --head FILE --tail FILE --prefix X

In: a port and what to ask. Out: how many answers came, how many failed, and their times. KIND:

    chat     each connection sends its next request when its answer is whole
    batch    all connections send the same request, then all wait; the next round differs
    stream   each connection reads one stream; how late every stamped chunk is goes with it

The rule that lives only here: an answer counts when its status is 200 and it is whole (a stream:
up to its [DONE]); all else is a failure, and is counted. `wrk` does the chats where there is one,
since it takes less from the upstream's core; the rest is done here, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httptools
import uvloop

BENCH = Path(__file__).resolve().parent
PATH = "/v1/chat/completions"
COUNTER_DIGITS = 9
_STAMP = re.compile(rb'"@(\d+) "')


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked: the body is `head` + a text that differs each time + `tail`, so that `size`
    bytes leave. `is_unique` False: always the same body."""

    head: bytes
    tail: bytes
    is_unique: bool = True
    headers: tuple[str, ...] = ()  # "name: value", beside those of HTTP itself

    def body(self, prefix: str, number: int) -> bytes:
        if not self.is_unique:
            return self.head + self.tail
        return b"%b%b%0*d%b" % (self.head, prefix.encode(), COUNTER_DIGITS, number, self.tail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of it. Times in seconds; `lags_s`: of stamped chunks, sent to received."""

    seconds: float
    requests: int
    failed: int
    p50_s: float
    p95_s: float
    p99_s: float
    chunks: int = 0
    lags_s: tuple[float, ...] = ()


def make_ask(
    model: str,
    size: int,
    *,
    temperature: float | None = None,
    stream: bool = False,
    is_unique: bool = True,
    headers: tuple[str, ...] = (),
) -> Ask:
    """A chat request of about `size` bytes, as clients write them."""
    filler = "What is the capital of Brazil, and since when? "
    content = (filler * (size // len(filler) + 1))[: max(0, size - 120)]
    head = f'{{"model":"{model}","messages":[{{"role":"user","content":"'
    tail = f'{content}"}}]'
    if temperature is not None:
        tail += f',"temperature":{temperature:g}'
    tail += ',"stream":true}' if stream else "}"
    return Ask(head=head.encode(), tail=tail.encode(), is_unique=is_unique, headers=headers)


def make_prefix() -> str:
    """A new one each time, so that no body ever comes twice."""
    return os.urandom(6).hex() + "-"


def find_wrk() -> str | None:
    return shutil.which("wrk")


def run_chats(port: int, ask: Ask, *, connections: int, seconds: float) -> Load:
    """`wrk`, or our own where there is none. `wrk` knows whole seconds only."""
    wrk = find_wrk()
    if wrk is None:
        return run_own(port, "chat", ask, connections=connections, seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        files = _write(Path(folder), ask)
        command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", "20s", "-s", str(BENCH / "chat.lua")]
        command += [word for line in ask.headers for word in ("-H", line)]
        prefix = make_prefix() if ask.is_unique else ""
        command += [f"http://127.0.0.1:{port}", "--", *files, prefix]
        found = _run(command)
    return Load(
        seconds=found["seconds"],
        requests=int(found["requests"]) - int(found["refused"]),
        failed=int(found["failed"]),
        p50_s=found["p50_us"] / 1e6,
        p95_s=found["p95_us"] / 1e6,
        p99_s=found["p99_us"] / 1e6,
    )


def run_own(
    port: int, kind: str, ask: Ask, *, connections: int, seconds: float, chunks: int = 0
) -> Load:
    """Our own generator, in a process of its own. `chunks`: how many a sound stream has."""
    with tempfile.TemporaryDirectory() as folder:
        head, tail = _write(Path(folder), ask)
        command = [sys.executable, str(BENCH / "load.py"), str(port), kind]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        command += ["--head", head, "--tail", tail, "--chunks", str(chunks)]
        command += [word for line in ask.headers for word in ("--header", line)]
        if ask.is_unique:
            command += ["--prefix", make_prefix()]
        found = _run(command)
    return Load(
        seconds=found["seconds"],
        requests=int(found["requests"]),
        failed=int(found["failed"]),
        p50_s=found["p50_s"],
        p95_s=found["p95_s"],
        p99_s=found["p99_s"],
        chunks=int(found["chunks"]),
        lags_s=tuple(found["lags_s"]),
    )


def post(port: int, body: bytes, headers: Sequence[str] = ()) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by their lower-case names, and body."""
    sent = dict(line.split(": ", 1) for line in ("content-type: application/json", *headers))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", PATH, body, sent)
        response = connection.getresponse()
        got = {name.lower(): value for name, value in response.getheaders()}
        return response.status, got, response.read()
    finally:
        connection.close()


def _write(folder: Path, ask: Ask) -> tuple[str, str]:
    (folder / "head").write_bytes(ask.head)
    (folder / "tail").write_bytes(ask.tail)
    return str(folder / "head"), str(folder / "tail")


def _run(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Of sorted values, the nearest rank."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else 0.0


# The generator itself


class Client(asyncio.Protocol):
    """One connection. `done` is set to whether the answer was sound; a lost one is not."""

    def __init__(self, headers: Sequence[str]) -> None:
        lines = [f"POST {PATH} HTTP/1.1", *headers, "content-type: application/json"]
        self.head = "\r\n".join([*lines, "content-length: "]).encode()
        self.parser = httptools.HttpResponseParser(self)
        self.done: asyncio.Future[bool] | None = None
        self.is_open = True
        self.lags_s: list[float] = []
        self.chunks = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, body: bytes, chunks: int = 0) -> asyncio.Future[bool]:
        self.done = asyncio.get_running_loop().create_future()
        self.rest = b""
        self.expected, self.chunks_before = chunks, self.chunks
        if not self.is_open:
            self.finish(False)
        self.transport.write(b"%b%d\r\n\r\n%b" % (self.head, len(body), body))
        return self.done

    def finish(self, is_sound: bool) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(is_sound)

    def data_received(self, data: bytes) -> None:
        self.now_ns = time.monotonic_ns()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self.finish(False)

    def on_body(self, body: bytes) -> None:
        self.rest += body
        if self.expected:
            whole, end, rest = self.rest.rpartition(b"\n\n")
            if end:
                self.rest = rest
                self.read_events(whole + end)

    def read_events(self, events: bytes) -> None:
        self.chunks += events.count(b'"content":"') - events.count(b'"content":""')
        self.lags_s += [(self.now_ns - int(ns)) / 1e9 for ns in _STAMP.findall(events)]
        if events.endswith(b"data: [DONE]\n\n"):
            self.rest = b"[DONE]"

    def on_message_complete(self) -> None:
        is_sound = self.parser.get_status_code() == 200
        if self.expected:
            is_whole = self.chunks - self.chunks_before == self.expected
            is_sound = is_sound and is_whole and self.rest == b"[DONE]"
        self.finish(is_sound)


class Generator:
    def __init__(self, port: int, ask: Ask, prefix: str, chunks: int) -> None:
        self.port, self._ask, self.prefix, self.chunks = port, ask, prefix, chunks
        self.number = self.failed = 0
        self.times_s: list[float] = []
        self.clients: list[Client] = []

    def body(self) -> bytes:
        self.number += 1
        return self._ask.body(self.prefix, self.number)

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        headers = (f"host: 127.0.0.1:{self.port}", *self._ask.headers)
        _, client = await loop.create_connection(lambda: Client(headers), "127.0.0.1", self.port)
        self.clients.append(client)
        return client

    async def ask(self, client: Client, body: bytes) -> None:
        started = time.monotonic()
        if await client.ask(body, self.chunks):
            self.times_s.append(time.monotonic() - started)
        else:
            self.failed += 1

    async def chats(self, until: float) -> None:
        client = await self.connect()
        while time.monotonic() < until:
            if not client.is_open:
                client = await self.connect()
            await self.ask(client, self.body())

    async def batches(self, connections: int, until: float) -> None:
        clients = [await self.connect() for _ in range(connections)]
        while time.monotonic() < until:
            clients = [one if one.is_open else await self.connect() for one in clients]
            body = self.body()
            await asyncio.gather(*(self.ask(client, body) for client in clients))

    async def stream(self) -> None:
        await self.ask(await self.connect(), self.body())

    async def run(self, kind: str, connections: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        if kind == "chat":
            await asyncio.gather(*(self.chats(until) for _ in range(connections)))
        elif kind == "batch":
            await self.batches(connections, until)
        else:
            await asyncio.gather(*(self.stream() for _ in range(connections)))

    def as_values(self, seconds: float) -> dict[str, object]:
        times = sorted(self.times_s)
        return {
            "seconds": seconds,
            "requests": len(times),
            "failed": self.failed,
            "p50_s": percentile(times, 50),
            "p95_s": percentile(times, 95),
            "p99_s": percentile(times, 99),
            "chunks": sum(client.chunks for client in self.clients),
            "lags_s": [lag for client in self.clients for lag in client.lags_s],
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=("chat", "batch", "stream"))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--tail", type=Path, required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--chunks", type=int, default=0)
    parser.add_argument("--header", action="append", default=[])
    arguments = parser.parse_args()
    ask = Ask(
        head=arguments.head.read_bytes(),
        tail=arguments.tail.read_bytes(),
        is_unique=bool(arguments.prefix),
        headers=tuple(arguments.header),
    )
    generator = Generator(arguments.port, ask, arguments.prefix, arguments.chunks)
    started = time.monotonic()
    uvloop.run(generator.run(arguments.kind, arguments.connections, arguments.seconds))
    print(json.dumps(generator.as_values(time.monotonic() - started)))


if __name__ == "__main__":
    main()
