"""One running gateway beside a bare uvicorn: memory, start-up time, and what idling costs.

In: options; Linux, for it reads /proc. Out: a table of openbr, the bare uvicorn and their ratio.
Both run at the same time, under the same Python, and get the same load: that of the gateway bench,
in small; then the gateway's pages are opened. The rules that live only here: starts are
interleaved, the first of each apart (it fills caches of the disk); every answer is counted, a
failed one ends the bench.
"""

from __future__ import annotations

import re
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from load import Ask, make_ask, post, run_chats
from servers import (
    Activity,
    Server,
    Size,
    bare_uvicorn,
    gateway,
    make_upstream,
    read_activity,
    read_size,
    running,
)
from table import Options, Ratio, Row, Table, divide

TITLE = "The gateway as a process, beside a bare uvicorn"
CONNECTIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    rounds: int = 7
    load_s: float = 2.0  # of each kind of request
    settle_s: float = 12.0  # the gateway trims after 10
    idle_s: float = 30.0


QUICK = Plan(rounds=3, load_s=1.0, idle_s=5.0)


def usual_requests() -> list[Ask]:
    """What the gateway bench sends, but what the cache would keep."""
    return [
        make_ask("bench/fast", 1024, temperature=0, is_unique=False),
        make_ask("bench/fast", 1024),
        make_ask("bench/fast", 100 * 1024),
        make_ask("bench/burst-200", 1024, stream=True),
    ]


def kept_requests() -> list[Ask]:
    return [
        make_ask("bench/fast", 1024, temperature=0),
        make_ask("bench/large-4", 100 * 1024, temperature=0),
        make_ask("bench/burst-200", 1024, stream=True, temperature=0),
    ]


def load(port: int, asks: Iterable[Ask], seconds: float) -> None:
    for ask in asks:
        found = run_chats(port, ask, connections=CONNECTIONS, seconds=seconds)
        if found.failed or not found.requests:
            raise RuntimeError(f"{found.failed} requests failed, {found.requests} were answered")


def open_pages(port: int) -> int:
    """Every page that the first one links to, as a browser asks for them. How many there were."""

    def fetch(path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
        request.add_header("accept", "text/html")
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.read().decode())

    links = sorted(set(re.findall(r'href="(/ui/[^"#?]*)"', fetch("/"))))
    for path in links * 2:
        fetch(path)
    return len(links)


def measure_starts(servers: tuple[Server, ...], rounds: int) -> list[list[float]]:
    """Seconds to the first 200 of each server, in turns: the first, then `rounds` more."""
    times: list[list[float]] = [[] for _ in servers]
    for _ in range(rounds + 1):
        for own, server in zip(times, servers, strict=True):
            with running(server) as started:
                own.append(started.start_s)
    return times


def measure_idle(pids: tuple[int, ...], seconds: float) -> list[Activity]:
    """What each did in a stretch of doing nothing. Together: who idles disturbs no other."""
    before = [read_activity(pid) for pid in pids]
    time.sleep(seconds)
    after = [read_activity(pid) for pid in pids]
    return [
        Activity(wakeups=new.wakeups - old.wakeups, cpu_s=new.cpu_s - old.cpu_s)
        for new, old in zip(after, before, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of openbr and of the bare uvicorn, in this order. Pages and a cache are openbr's alone."""

    starts: list[list[float]]
    ready: list[Size]
    loaded: list[Size]
    trimmed: list[Size]
    idle: list[Activity]
    opened: Size
    pages: int
    filled: Size


def measure(plan: Plan, say: Callable[[str], None]) -> Measured:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(running(make_upstream(folder)))
        answer = post(upstream.port, make_ask("fast", 1024).body("", 0))[2]
        servers = (gateway(folder, upstream.port), bare_uvicorn(answer))
        say("process: starting each, in turns")
        starts = measure_starts(servers, plan.rounds)
        pair = [stack.enter_context(running(server)) for server in servers]
        pids = tuple(one.pid for one in pair)
        ready = [read_size(pid) for pid in pids]
        say("process: load")
        for one in pair:
            load(one.port, usual_requests(), plan.load_s)
        loaded = [read_size(pid) for pid in pids]
        time.sleep(plan.settle_s)
        say(f"process: idle for {plan.idle_s:g} s")
        idle = measure_idle(pids, plan.idle_s)
        trimmed = [read_size(pid) for pid in pids]
        pages = open_pages(pair[0].port)
        opened = read_size(pids[0])
        say("process: filling the cache")
        load(pair[0].port, kept_requests(), plan.load_s)
        time.sleep(plan.settle_s)
        filled = read_size(pids[0])
    return Measured(
        starts=starts,
        ready=ready,
        loaded=loaded,
        trimmed=trimmed,
        idle=idle,
        opened=opened,
        pages=pages,
        filled=filled,
    )


def row(name: str, values: Iterable[float]) -> Row:
    ours, bare = values
    return Row(name=name, cells=(ours, bare, divide(ours, bare)))


def rows_of_sizes(found: Measured) -> list[Row]:
    rows = []
    pairs = {
        "ready, nothing used yet": found.ready,
        "after load": found.loaded,
        "after load and idle trim": found.trimmed,
    }
    for unit in ("rss_mb", "pss_mb"):
        name = unit[:3].upper()
        for when, pair in pairs.items():
            rows.append(row(f"{name} {when}, MB", (getattr(one, unit) for one in pair)))
        when = f"{name} after {found.pages} pages were opened too, MB"
        rows.append(Row(name=when, cells=(getattr(found.opened, unit), None, None)))
        when = f"{name} after the cache was filled too, MB"
        rows.append(Row(name=when, cells=(getattr(found.filled, unit), None, None)))
    return rows


def tabulate(found: Measured, plan: Plan) -> Table:
    starts = [median(own[1:]) for own in found.starts]
    wakeups = [one.wakeups / plan.idle_s for one in found.idle]
    cpu = [one.cpu_s / plan.idle_s * 100 for one in found.idle]
    rows = [
        row("exec -> first 200 on /healthz, s", starts),
        row("the same, first start ever, s", (own[0] for own in found.starts)),
        *rows_of_sizes(found),
        row("voluntary wakeups/s, idle", wakeups),
        row("CPU %, idle", cpu),
    ]
    ready, trimmed = found.ready[0].rss_mb, found.trimmed[0].rss_mb
    return Table(
        title=TITLE,
        unit=f"median of {plan.rounds} starts, {plan.idle_s:g} s idle",
        columns=("openbr", "bare uvicorn", "ratio"),
        rows=rows,
        ratios=[
            at_most("start, to bare uvicorn", divide(*starts), 4, "x"),
            at_most("RSS, ready", ready, 41, " MB"),
            at_most("RSS, ready, to bare uvicorn", divide(ready, found.ready[1].rss_mb), None, "x"),
            at_most("RSS, after load and trim", trimmed, 45, " MB"),
            # What rounds to 0.0 is nothing.
            at_most("wakeups, idle", wakeups[0], 0.04, "/s"),
            at_most("CPU, idle", cpu[0], 0.04, " %"),
        ],
        notes=[
            f"load: {plan.load_s:g} s each of hits, chats of 1 and of 100 KB and bursts of 200",
            f"chunks, from {CONNECTIONS} connections; what the cache keeps, up to cache.max_bytes,",
            "comes last.",
        ],
    )


def at_most(name: str, value: float | None, target: float | None, unit: str) -> Ratio:
    """Only what is measured against the bare uvicorn holds on another machine."""
    guarded = unit == "x"
    return Ratio(name=name, value=value, wish="<=", target=target, unit=unit, is_guarded=guarded)


def run(options: Options) -> list[Table]:
    plan = QUICK if options.quick else Plan()
    if not Path("/proc/self/smaps_rollup").exists():
        note = "not measured: it reads /proc, as Linux has it"
        return [Table(title=TITLE, unit="", columns=(), rows=[], notes=[note])]
    return [tabulate(measure(plan, options.say), plan)]
