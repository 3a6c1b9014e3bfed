"""Measure scenarios of the gateway bench, round by round, and put them into tables.

In: a Scenario, and the servers it asks. Out: a table. The rules that live only here: CPU a request
is the server's own processor time, by the system's books, over the requests that were answered;
every answer is checked before, its x-openbr-cache is what the case says, and the upstream counts
how many requests reached it; rounds are interleaved and rotated, a ratio is the median of the
rounds' own ratios, so that what disturbs a round disturbs both sides.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from load import (
    Ask,
    Load,
    make_ask,
    make_prefix,
    percentile,
    post,
    run_chats,
    run_own,
)
from scenarios import (
    BARE,
    DIRECT,
    JOINED,
    KB,
    OURS,
    PLAIN,
    Bound,
    Case,
    Scenario,
)
from servers import (
    Running,
    Server,
    bare_uvicorn,
    count_requests,
    gateway,
    make_upstream,
    pass_through,
    pin,
    read_cpu_ns,
    running,
    two_cores,
)
from table import Ratio, Row, Table, divide

WARM_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """All servers of a run, each in its own process."""

    servers: dict[str, Running]

    def port(self, subject: str) -> int:
        return self.servers[subject].port

    def pid(self, subject: str) -> int:
        return self.servers[subject].pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of one case."""

    cpu_us: float
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    lag_p50_ms: float = 0.0
    lag_p99_ms: float = 0.0


# Servers


@contextmanager
def standing(
    folder: Path, others: Callable[[int], Mapping[str, Server]] | None = None
) -> Iterator[Stand]:
    """Everything started and pinned; this process on the core of the load. `others`: more servers,
    given the port of the upstream."""
    upstream = make_upstream(folder)
    with two_cores() as (core, _), ExitStack() as stack:
        servers = {DIRECT: stack.enter_context(running(upstream))}
        answer = post(servers[DIRECT].port, make_ask("fast", KB).body("", 0))[2]
        port = servers[DIRECT].port
        ours = gateway(folder, port, "[local]\nenabled = false\n")
        servers[BARE] = stack.enter_context(running(bare_uvicorn(answer)))
        servers[PLAIN] = stack.enter_context(running(pass_through(port)))
        servers[JOINED] = stack.enter_context(running(pass_through(port, "--joined")))
        servers[OURS] = stack.enter_context(running(ours))
        for name, server in (others(port) if others else {}).items():
            servers[name] = stack.enter_context(running(server))
        for subject, started in servers.items():
            if subject != DIRECT:
                pin(started.pid, core)
        yield Stand(servers=servers)


# Measuring


def check(stand: Stand, case: Case, chunks: int) -> None:
    """Ask as the case will, look at the answers and at what they say in x-openbr-cache. Raises:
    RuntimeError when they are not what the case is about; its figures would be another thing's."""
    port, prefix = stand.port(case.subject), make_prefix()
    found: list[tuple[int, dict[str, str], bytes]] = []

    def ask(number: int) -> None:
        found.append(post(port, case.ask.body(prefix, number), case.ask.headers))

    if case.cache == "join":
        callers = [threading.Thread(target=ask, args=(1,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    else:
        for number in range(2 if case.cache == "hit" else 1):
            ask(number)
    for status, _, body in found:
        if status != 200 or not is_sound(body, chunks):
            raise RuntimeError(f"{case.name}: {status} {body[:300]!r}")
    said = [headers.get("x-openbr-cache", "none") for _, headers, _ in found]
    last = said if case.cache == "join" else said[-1:]  # one of them leads, and says miss
    if case.cache is not None and case.cache not in last:
        raise RuntimeError(f"{case.name}: x-openbr-cache is {said}")


def is_sound(body: bytes, chunks: int) -> bool:
    if chunks:
        contents = body.count(b'"content":"') - body.count(b'"content":""')
        return contents == chunks and body.endswith(b"data: [DONE]\n\n")
    return bool(json.loads(body)["choices"][0]["message"]["content"])


def sample(stand: Stand, scenario: Scenario, case: Case) -> Sample:
    port, pid = stand.port(case.subject), stand.pid(case.subject)
    reached = count_requests(stand.port(DIRECT))
    cpu_ns = read_cpu_ns(pid)
    found = run_load(scenario, port, case.ask)
    cpu_ns = read_cpu_ns(pid) - cpu_ns
    reached = count_requests(stand.port(DIRECT)) - reached
    if found.failed or not found.requests:
        raise RuntimeError(f"{case.name}: {found.failed} failed, {found.requests} answered")
    units = found.requests * (scenario.chunks or 1)
    lags = sorted(found.lags_s)
    # Some are on their way when wrk ends.
    around = 3 * scenario.connections if scenario.kind == "chat" else 1
    check_reach(case, reached, found.requests, around)
    return Sample(
        cpu_us=cpu_ns / units / 1000,
        rate=units / found.seconds,
        p50_ms=found.p50_s * 1000,
        p95_ms=found.p95_s * 1000,
        p99_ms=found.p99_s * 1000,
        lag_p50_ms=percentile(lags, 50) * 1000,
        lag_p99_ms=percentile(lags, 99) * 1000,
    )


def run_load(scenario: Scenario, port: int, ask: Ask) -> Load:
    if scenario.kind == "chat":
        return run_chats(port, ask, connections=scenario.connections, seconds=scenario.seconds)
    return run_own(
        port,
        scenario.kind,
        ask,
        connections=scenario.connections,
        seconds=scenario.seconds,
        chunks=scenario.chunks,
    )


@dataclass(slots=True)
class Found:
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def figures(self, case: str, figure: str) -> list[float]:
        if figure == "added_p50_ms":
            direct = self.figures("direct", "p50_ms")
            own = self.figures(case, "p50_ms")
            return [a - b for a, b in zip(own, direct, strict=True)] if own else []
        return [getattr(one, figure) for one in self.samples.get(case, [])]


def measure(
    stand: Stand, scenario: Scenario, rounds: int, say: Callable[[str], None], quick: bool = False
) -> Found:
    found = Found()
    cases = [case for case in scenario.cases if case.is_quick or not quick]
    for case in cases:
        check(stand, case, scenario.chunks)
        if scenario.kind == "chat":
            warm_up(stand, scenario, case)
    for number in range(rounds):
        say(f"gateway: {scenario.title}, {number + 1}/{rounds}")
        for case in cases:
            found.samples.setdefault(case.name, []).append(sample(stand, scenario, case))
        cases = cases[1:] + cases[:1]  # nobody always follows the same one
    return found


def warm_up(stand: Stand, scenario: Scenario, case: Case) -> None:
    port, connections = stand.port(case.subject), scenario.connections
    run_own(port, "chat", case.ask, connections=connections, seconds=WARM_S)


def check_reach(case: Case, reached: int, requests: int, around: int) -> None:
    """Misses must have reached the upstream, hits must not."""
    if abs(reached - case.reach * requests) > around:
        raise RuntimeError(f"{case.name}: of {requests} requests {reached} reached the upstream")


# Telling


def tabulate(scenario: Scenario, found: Found) -> Table:
    unit = "chunk" if scenario.chunks else "req"
    is_latency = any(bound.figure == "added_p50_ms" for bound in scenario.bounds)
    columns = [f"CPU/{unit} µs", f"{unit}/s", "p50 ms", "p95 ms", "p99 ms", "CPU, to pass-through"]
    if scenario.kind == "stream":
        columns[2:5] = ["delay p50 ms", "delay p99 ms"]
    rows = []
    for case in scenario.cases:
        if case.name not in found.samples:
            continue
        rows.append(Row(name=case.name, cells=row_cells(scenario, found, case)))
    notes = list(scenario.notes)
    if is_latency:
        notes.append("added latency: p50 of the row less that of `direct`, round by round.")
    return Table(
        title=scenario.title,
        unit="",
        columns=tuple(columns),
        rows=rows,
        ratios=[judge(bound, found) for bound in scenario.bounds],
        notes=notes,
    )


def row_cells(scenario: Scenario, found: Found, case: Case) -> tuple[float | None, ...]:
    figures = ["p50_ms", "p95_ms", "p99_ms"]
    if scenario.kind == "stream":
        figures = ["lag_p50_ms", "lag_p99_ms"]
    cpu = min(found.figures(case.name, "cpu_us"))
    rate = max(found.figures(case.name, "rate"))
    middles = [median(found.figures(case.name, name)) for name in figures]
    return (cpu, rate, *middles, compare(found, case.name, "pass-through", "cpu_us"))


def compare(found: Found, above: str, below: str, figure: str) -> float | None:
    """The median of the rounds' ratios: both sides of each were measured within seconds."""
    pairs = list(zip(found.figures(above, figure), found.figures(below, figure), strict=False))
    ratios = [one for one in (divide(a, b) for a, b in pairs) if one is not None]
    return median(ratios) if ratios else None


def judge(bound: Bound, found: Found) -> Ratio:
    if bound.is_difference:
        pairs = zip(
            found.figures(bound.above, bound.figure),
            found.figures(bound.below, bound.figure),
            strict=False,
        )
        differences = [above - below for above, below in pairs]
        value = median(differences) if differences else None
    else:
        value = compare(found, bound.above, bound.below, bound.figure)
    return Ratio(
        name=bound.name,
        value=value,
        wish=bound.wish,
        target=bound.target,
        unit=bound.unit,
        is_guarded=bound.is_guarded,
    )
