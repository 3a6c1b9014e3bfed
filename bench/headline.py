"""The comparison the first project of this name was known for, measured here and now.

In: options. Out: before (what a Python developer writes without openbr), after (openbr), and the
gain as it is, in both directions. The rule that lives only here: each row names its payload, and
nothing is taken from an older measurement.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_hash import repeat_hash
from data import make_bytes, make_chat
from table import Options, Row, Table
from timing import Case, measure

PAYLOAD = 102_400
BODY = 20_000


def run(options: Options) -> list[Table]:
    rows = [*memory_and_idle(options), *hashes(options), *reading(options), hit_rate(options)]
    return [
        Table(
            title="Before and after",
            unit="",
            columns=("before", "after", "gain"),
            rows=rows,
            notes=[
                "before: a stock uvicorn that serves one fixed answer, hashlib.sha256, json.loads,",
                "a new bytearray each time. after: the openbr gateway, ready; its hashes; its",
                "reader of requests; its pool. A bare server does far less than the gateway.",
            ],
        )
    ]


def change(before: float, after: float) -> str:
    return f"{(after - before) / before * 100:+.0f} %" if before else "-"


def memory_and_idle(options: Options) -> list[Row]:
    if not sys.platform.startswith("linux"):
        return [Row(name="memory and idle CPU", cells=(None, None, None), note="needs /proc")]
    from bench_process import measure_idle
    from servers import bare_uvicorn, gateway, read_size, running

    options.say("headline: memory and idle CPU")
    seconds = 5.0 if options.quick else 20.0
    with (
        tempfile.TemporaryDirectory() as folder,
        running(bare_uvicorn(b"{}")) as bare,
        running(gateway(Path(folder), 9)) as ours,
    ):
        pids = (bare.pid, ours.pid)
        before, after = (read_size(pid).rss_mb for pid in pids)
        idle = [one.cpu_s / seconds * 100 for one in measure_idle(pids, seconds)]
    return [
        Row(
            name="memory, RSS, ready",
            cells=(f"{before:.1f} MB", f"{after:.1f} MB", change(before, after)),
            note="bare uvicorn / the whole gateway",
        ),
        Row(
            name="CPU, idle",
            cells=(f"{idle[0]:.2f} %", f"{idle[1]:.2f} %", change(*idle)),
            note=f"over {seconds:g} s without a client",
        ),
    ]


def hashes(options: Options) -> list[Row]:
    from openbr import ultra

    options.say("headline: hashes")
    data = make_bytes(PAYLOAD)
    functions: dict[str, Any] = {
        "sha256": lambda data: hashlib.sha256(data).digest(),
        "XXH3": ultra.xxh3_hash,
        "BLAKE3": ultra.blake3_hash,
    }
    cases = {name: Case(run=repeat_hash(f, data, 5), calls=5000) for name, f in functions.items()}
    taken = measure(cases, options.rounds(100), options.least_s)
    return [
        Row(
            name=f"{name} hash",
            cells=(
                f"{taken['sha256']:.1f} µs",
                f"{taken[name]:.1f} µs",
                f"{taken['sha256'] / taken[name]:.1f}x",
            ),
            note=f"{PAYLOAD // 1024} KB, before: SHA-256",
        )
        for name in ("XXH3", "BLAKE3")
    ]


def reading(options: Options) -> list[Row]:
    from openbr import ultra
    from openbr.api.chat import parse_request

    options.say("headline: JSON")
    body = make_chat(BODY)
    assert parse_request(body).model == json.loads(body)["model"]
    assert ultra.parse_json(body) == json.loads(body)
    functions: dict[str, Any] = {
        "before": json.loads,
        "fields": parse_request,
        "tree": ultra.parse_json,
    }
    cases = {name: Case(run=repeat_hash(f, body, 10), calls=10) for name, f in functions.items()}
    taken = measure(cases, options.rounds(100), options.least_s)
    speed = {name: len(body) * 1000 / ns for name, ns in taken.items()}  # bytes/ns = GB/s
    return [
        Row(
            name=name,
            cells=(
                f"{speed['before']:.0f} MB/s",
                f"{speed[kind]:.0f} MB/s",
                f"{speed[kind] / speed['before']:.1f}x",
            ),
            note=f"a chat request of {len(body) // 1000} KB, {what}",
        )
        for name, kind, what in (
            ("JSON parse, a request", "fields", "as the gateway reads it"),
            ("JSON parse, whole tree", "tree", "strict"),
        )
    ]


def hit_rate(options: Options) -> Row:
    from bench_pool import hit_rates

    from openbr._native import ObjectPool

    options.say("headline: object pool")
    rate = hit_rates(ObjectPool).rows[0].cells[-1]
    return Row(
        name="object pool hit rate",
        cells=("0 %", f"{rate:.1f} %", "-"),
        note="20,000 requests of 4, 16 and 64 KB, up to 16 lent",
    )
