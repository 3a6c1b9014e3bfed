"""What the gateway bench measures: who is asked what, and which ratios come of it.

In: nothing. Out: SCENARIOS. The rules that live only here: the targets; that a case names the
x-openbr-cache its answers must have, and the share of its requests that the upstream must see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from load import Ask, make_ask

BARE, PLAIN, OURS, DIRECT = "bare uvicorn", "pass-through", "openbr", "upstream"
JOINED = "pass-through, joined"
KB = 1024
STREAMS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: who is asked what. `cache`: the x-openbr-cache that its answers must have.
    `reach`: the share of its requests that the upstream must have seen. `is_quick`: also of a quick
    run."""

    name: str
    subject: str
    ask: Ask
    cache: str | None = None
    reach: float = 1.0
    is_quick: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A ratio to show: `above` by `below`, of one figure. Names of cases."""

    name: str
    above: str
    below: str
    figure: str = "cpu_us"
    wish: str = "<="
    target: float | None = None
    unit: str = "x"
    is_guarded: bool = True
    is_difference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`kind`, `connections`: as load.py has them. `chunks`: in each answer; the unit of CPU time is
    a chunk then, else a request. `quick_rounds` 0: not in a quick run."""

    title: str
    cases: tuple[Case, ...]
    bounds: tuple[Bound, ...]
    kind: str = "chat"
    connections: int = 16
    seconds: float = 1.0
    chunks: int = 0
    rounds: int = 7
    quick_rounds: int = 2
    notes: tuple[str, ...] = ()


def chat_scenario(connections: int) -> Scenario:
    once = make_ask("bench/fast", KB, temperature=0)
    same = make_ask("bench/fast", KB, temperature=0, is_unique=False)
    usual = make_ask("bench/fast", KB, temperature=0.7)
    name = f"{connections} connections"
    return Scenario(
        title=f"Chat of 1 KB, {name}",
        connections=connections,
        quick_rounds=2 if connections == 16 else 0,
        cases=(
            Case(name="upstream, direct", subject=DIRECT, ask=usual, is_quick=False),
            Case(name="bare", subject=BARE, ask=usual, reach=0.0),
            Case(name="pass-through", subject=PLAIN, ask=usual),
            Case(name="openbr, miss", subject=OURS, ask=once, cache="miss"),
            Case(name="openbr, bypass", subject=OURS, ask=usual, cache="bypass"),
            Case(name="openbr, hit", subject=OURS, ask=same, cache="hit", reach=0.0),
        ),
        bounds=(
            Bound(
                name=f"miss to pass-through, {name}",
                above="openbr, miss",
                below="pass-through",
                target=1.4,
            ),
            Bound(
                name=f"bypass to pass-through, {name}",
                above="openbr, bypass",
                below="pass-through",
                target=1.4,
            ),
            Bound(
                name=f"hit, requests a CPU second, to bare uvicorn, {name}",
                above="bare",
                below="openbr, hit",
                wish=">=",
                target=0.75,
            ),
            Bound(
                name=f"CPU a request of openbr, to the upstream's, {name}",
                above="openbr, miss",
                below="upstream, direct",
                wish=">=",
                target=5,
                is_guarded=False,
            ),
        ),
    )


def large_scenario() -> Scenario:
    usual = make_ask("bench/fast", 100 * KB)
    once = make_ask("bench/fast", 100 * KB, temperature=0)
    return Scenario(
        title="Chat of 100 KB, 16 connections",
        cases=(
            Case(name="bare", subject=BARE, ask=usual, reach=0.0, is_quick=False),
            Case(name="pass-through", subject=PLAIN, ask=usual),
            Case(name="openbr, as clients send it", subject=OURS, ask=usual, cache="bypass"),
            Case(name="openbr, miss", subject=OURS, ask=once, cache="miss"),
        ),
        bounds=(
            Bound(
                name="100 KB, as clients send it, to pass-through",
                above="openbr, as clients send it",
                below="pass-through",
                target=1.2,
            ),
            Bound(
                name="100 KB, miss, to pass-through",
                above="openbr, miss",
                below="pass-through",
                target=1.2,
            ),
        ),
    )


def burst_scenario() -> Scenario:
    usual = make_ask("bench/burst-200", KB, stream=True)
    once = make_ask("bench/burst-200", KB, stream=True, temperature=0)
    return Scenario(
        title="Streams, 200 chunks in one go, 16 connections",
        chunks=200,
        cases=(
            Case(name="pass-through", subject=PLAIN, ask=usual),
            Case(name="pass-through, joined", subject=JOINED, ask=usual),
            Case(name="openbr, as clients send it", subject=OURS, ask=usual, cache="bypass"),
            Case(name="openbr, miss", subject=OURS, ask=once, cache="miss"),
        ),
        bounds=(
            Bound(
                name="burst, CPU a chunk, to pass-through",
                above="openbr, as clients send it",
                below="pass-through",
                target=1.3,
                is_guarded=False,
            ),
            Bound(
                name="burst, miss, CPU a chunk, to pass-through",
                above="openbr, miss",
                below="pass-through",
                target=1.3,
                is_guarded=False,
            ),
            Bound(
                name="burst, CPU a chunk, to pass-through, joined",
                above="openbr, as clients send it",
                below="pass-through, joined",
            ),
            Bound(
                name="burst, miss, CPU a chunk, to pass-through, joined",
                above="openbr, miss",
                below="pass-through, joined",
            ),
        ),
        notes=(
            "pass-through sends each chunk on as it came: a call of the system each, which costs",
            "twice as much when the reader has to be woken for it. joined sends what arrived",
            "together as one and looks into nothing; openbr too, and looks into every event.",
        ),
    )


def paced_scenario() -> Scenario:
    usual = make_ask("bench/paced-75", KB, stream=True)
    return Scenario(
        title=f"Streams, {STREAMS} at a time, 50 chunks/s each",
        kind="stream",
        connections=STREAMS,
        chunks=75,
        rounds=5,
        quick_rounds=2,
        cases=(
            Case(name="direct", subject=DIRECT, ask=usual),
            Case(name="pass-through", subject=PLAIN, ask=usual),
            Case(name="openbr", subject=OURS, ask=usual, cache="bypass"),
        ),
        bounds=(
            Bound(
                name="paced, CPU a chunk, to pass-through",
                above="openbr",
                below="pass-through",
                target=1.3,
            ),
            Bound(
                name="paced, added delay p50",
                above="openbr",
                below="direct",
                figure="lag_p50_ms",
                is_difference=True,
                unit=" ms",
                is_guarded=False,
            ),
            Bound(
                name="paced, added delay p99",
                above="openbr",
                below="direct",
                figure="lag_p99_ms",
                is_difference=True,
                target=2,
                unit=" ms",
                is_guarded=False,
            ),
        ),
    )


def latency_scenario() -> Scenario:
    once = make_ask("bench/fast", KB, temperature=0)
    usual = make_ask("bench/fast", KB)
    return Scenario(
        title="Added latency, 1 KB, one connection",
        connections=1,
        quick_rounds=1,
        cases=(
            Case(name="direct", subject=DIRECT, ask=usual),
            Case(name="pass-through", subject=PLAIN, ask=usual),
            Case(name="openbr, as clients send it", subject=OURS, ask=usual, cache="bypass"),
            Case(name="openbr, miss", subject=OURS, ask=once, cache="miss"),
        ),
        bounds=(
            Bound(
                name="added latency p50, as clients send it, to pass-through",
                above="openbr, as clients send it",
                below="pass-through",
                figure="added_p50_ms",
                target=1.5,
                is_guarded=False,
            ),
            Bound(
                name="added latency p50, miss, to pass-through",
                above="openbr, miss",
                below="pass-through",
                figure="added_p50_ms",
                target=1.5,
                is_guarded=False,
            ),
        ),
    )


def join_scenario() -> Scenario:
    once = make_ask("bench/slow-20", KB, temperature=0)
    return Scenario(
        title="16 identical requests at a time, an answer after 20 ms",
        kind="batch",
        rounds=5,
        quick_rounds=2,
        cases=(
            Case(name="pass-through", subject=PLAIN, ask=once),
            Case(name="openbr, join", subject=OURS, ask=once, cache="join", reach=1 / 16),
        ),
        bounds=(
            Bound(
                name="join, CPU a request, to pass-through",
                above="openbr, join",
                below="pass-through",
                is_guarded=False,
            ),
        ),
    )


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "chat-16": lambda: chat_scenario(16),
    "chat-64": lambda: chat_scenario(64),
    "large": large_scenario,
    "burst": burst_scenario,
    "paced": paced_scenario,
    "latency": latency_scenario,
    "join": join_scenario,
}
