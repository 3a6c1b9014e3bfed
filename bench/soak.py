"""A gateway under mixed load for a long time: does its memory grow, does it lose descriptors?

    python bench/soak.py                    twenty minutes
    python bench/soak.py --minutes 3 --json FILE

In: minutes; Linux, for it reads /proc. Out: a line every ten seconds, then the slope of the
resident memory after warm-up (least squares) and what is left open. The load is chats that are new,
that came before, that are never kept, of 1 and of 100 KB, whole and streamed; clients that leave
before the answer and in the middle of a stream; and for a fifth of the time an upstream that
refuses, answers with errors and cuts its streams. The rule that lives only here: every answer has
the outcome that its kind must have, or the run has failed, whatever the memory does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

import uvloop
from load import Ask, Client, make_ask, make_prefix
from servers import free_port, gateway, make_upstream, read_size, running
from table import Ratio, Row, Table, as_values, format_table

CONNECTIONS = 16
SAMPLE_S = 10.0
SETTLE_S = 12.0  # the gateway trims after 10
FAILING_S, PERIOD_S = 2.0, 10.0
REPEATED = 200
KB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of request. `ends`: what comes of it. `chunks`: of a stream. `leaves_after`: seconds
    after which the client is gone. `weight`: how often it comes."""

    name: str
    ask: Ask
    ends: str = "answered"
    chunks: int = 0
    repeated: int = 0  # of so many bodies, again and again
    leaves_after: float | None = None
    weight: int = 1


def make_kinds() -> tuple[list[Kind], list[Kind]]:
    """Those of good times, and those of bad ones."""
    kept = make_ask("bench/fast", KB, temperature=0)
    good = [
        Kind(name="new", ask=kept, weight=6),
        Kind(name="seen before", ask=kept, repeated=REPEATED, weight=6),
        Kind(name="never kept", ask=make_ask("bench/fast", KB), weight=4),
        Kind(name="100 KB", ask=make_ask("bench/fast", 100 * KB, temperature=0)),
        Kind(name="100 KB answer", ask=make_ask("bench/large-100", KB, temperature=0)),
        Kind(name="burst", ask=make_ask("bench/burst-50", KB, stream=True), chunks=50, weight=2),
        Kind(
            name="burst, kept",
            ask=make_ask("bench/burst-50", KB, stream=True, temperature=0),
            chunks=50,
            repeated=REPEATED,
        ),
        Kind(name="paced", ask=make_ask("bench/paced-10", KB, stream=True), chunks=10),
        Kind(name="fallback", ask=make_ask("mixed", KB)),
        Kind(
            name="left before the answer",
            ask=make_ask("bench/slow-1000", KB, temperature=0),
            ends="left",
            leaves_after=0.01,
        ),
        Kind(
            name="left in a stream",
            ask=make_ask("bench/paced-500", KB, stream=True),
            ends="left",
            chunks=500,
            leaves_after=0.05,
        ),
    ]
    bad = [
        Kind(name="error", ask=make_ask("bad/fail-500", KB), ends="refused"),
        Kind(name="error, kept", ask=make_ask("bad/fail-503", KB, temperature=0), ends="refused"),
        Kind(name="error, streamed", ask=make_ask("bad/fail-429", KB, stream=True), ends="refused"),
        Kind(name="cut", ask=make_ask("bad/cut", KB, stream=True), chunks=3, ends="refused"),
        Kind(name="no upstream", ask=make_ask("dead/m", KB), ends="refused"),
    ]
    return good, bad


TOML = """
[local]
enabled = false
[[providers]]
name = "bad"
base_url = "http://127.0.0.1:{upstream}/v1"
[[providers]]
name = "dead"
base_url = "http://127.0.0.1:{dead}/v1"
models = ["m"]
[[routes]]
model = "mixed"
deployments = ["bad/fail-503", "bench/fast"]
"""


class Mixture:
    """The load: each of its clients asks for one thing after the other, until told to stop."""

    def __init__(self, port: int) -> None:
        self._headers = (f"host: 127.0.0.1:{port}",)
        self._port = port
        self._good, self._bad = make_kinds()
        self._random = random.Random(7)
        self._prefix = make_prefix()
        self._number = 0
        self.is_stopped = False
        self.outcomes: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def run(self) -> None:
        await asyncio.gather(*(self._work() for _ in range(CONNECTIONS)))

    async def _work(self) -> None:
        client: Client | None = None
        while not self.is_stopped:
            if client is None or not client.is_open:
                client = await self._connect()
            kind = self._choose()
            ends = await self._ask(client, kind)
            self.outcomes[kind.name] += 1
            if ends != kind.ends:
                self.wrong[f"{kind.name}: {ends}"] += 1
        if client is not None:
            client.transport.abort()

    async def _connect(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: Client(self._headers), "127.0.0.1", self._port
        )
        return client

    def _choose(self) -> Kind:
        kinds = self._bad if time.monotonic() % PERIOD_S < FAILING_S else self._good
        return self._random.choices(kinds, [kind.weight for kind in kinds])[0]

    async def _ask(self, client: Client, kind: Kind) -> str:
        if kind.repeated:
            body = kind.ask.body(self._prefix, self._random.randrange(kind.repeated))
        else:
            self._number += 1
            body = kind.ask.body(self._prefix, REPEATED + self._number)
        done = client.ask(body, kind.chunks)
        if kind.leaves_after is not None:
            await asyncio.wait([done], timeout=kind.leaves_after)
            if not done.done():
                client.transport.abort()
                await done
                return "left"
        return "answered" if await done else "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One look at the gateway's process."""

    at_s: float
    rss_mb: float
    descriptors: int


def look(pid: int, started: float) -> Point:
    return Point(
        at_s=time.monotonic() - started,
        rss_mb=read_size(pid).rss_mb,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
    )


def find_slope(points: Sequence[Point]) -> float | None:
    """MB an hour, by least squares; None for fewer than three points."""
    if len(points) < 3:
        return None
    times = [point.at_s / 3600 for point in points]
    return linear_regression(times, [point.rss_mb for point in points]).slope


async def soak(pid: int, port: int, seconds: float) -> tuple[list[Point], Mixture]:
    mixture = Mixture(port)
    load = asyncio.create_task(mixture.run())
    started = time.monotonic()
    points = []
    while time.monotonic() - started < seconds and not load.done():
        await asyncio.wait([load], timeout=SAMPLE_S)
        points.append(look(pid, started))
        total, wrong = mixture.outcomes.total(), mixture.wrong.total()
        print(
            f"{points[-1].at_s:6.0f} s  {points[-1].rss_mb:6.1f} MB  "
            f"{points[-1].descriptors:4} descriptors  {total:9,} requests  {wrong} wrong",
            flush=True,
        )
    mixture.is_stopped = True
    await load
    return points, mixture


def tabulate(ready: Point, points: list[Point], last: Point, mixture: Mixture) -> Table:
    warm_s = max(60.0, points[-1].at_s / 4)
    warm = [point for point in points if point.at_s >= warm_s]
    slope = find_slope(warm)
    left = last.descriptors - ready.descriptors
    return Table(
        title=f"{points[-1].at_s / 60:.1f} minutes of mixed load",
        unit="",
        columns=("RSS, MB", "descriptors"),
        rows=[
            Row(name="ready, nothing used yet", cells=(ready.rss_mb, float(ready.descriptors))),
            Row(
                name="most under load",
                cells=(
                    max(point.rss_mb for point in points),
                    float(max(point.descriptors for point in points)),
                ),
            ),
            Row(name="after the idle trim", cells=(last.rss_mb, float(last.descriptors))),
        ],
        ratios=[
            Ratio(
                name=f"RSS slope, after {warm_s:.0f} s of warm-up",
                value=slope,
                wish="<=",
                target=1,
                unit=" MB/h",
                is_guarded=False,
            ),
            Ratio(
                name="descriptors more than when it was ready",
                value=float(left),
                wish="<=",
                target=CONNECTIONS,
                unit="",
                is_guarded=False,
            ),
            Ratio(
                name="wrong outcomes",
                value=float(mixture.wrong.total()),
                wish="<=",
                target=0,
                unit="",
                is_guarded=False,
            ),
        ],
        notes=[
            "requests: " + ", ".join(f"{name} {n:,}" for name, n in mixture.outcomes.items()),
            *(f"wrong: {name}, {count} times" for name, count in mixture.wrong.most_common(10)),
            "Some connections to upstreams stay open for the next request: descriptors, no leak.",
        ],
    )


def run(minutes: float) -> Table:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(running(make_upstream(folder))).port
        toml = TOML.format(upstream=upstream, dead=free_port())
        ours = stack.enter_context(running(gateway(folder, upstream, toml)))
        ready = look(ours.pid, time.monotonic())
        points, mixture = uvloop.run(soak(ours.pid, ours.port, minutes * 60))
        time.sleep(SETTLE_S)
        last = look(ours.pid, time.monotonic())
    return tabulate(ready, points, last, mixture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    arguments = parser.parse_args()
    table = run(arguments.minutes)
    print("\n" + format_table(table))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_values(table), indent=1) + "\n")
    return 1 if any(ratio.met is False for ratio in table.ratios) else 0


if __name__ == "__main__":
    sys.exit(main())
