"""Measure openbr beside what one would use without it. The one entry to all benches.

    python bench/run.py                     everything; first the headline, then table by table
    python bench/run.py --only lru pool     some of it
    python bench/run.py --quick             fewer rounds
    python bench/run.py --json FILE         also write all numbers, and where they were measured
    python bench/run.py --check             fail where a ratio is over 25 % worse than the baseline
    python bench/run.py --write-baseline    measure five times, keep the median of each ratio

In: this machine. Out: tables; exit code 1 when `--check` finds something. The rules that live only
here: which benches there are; that only ratios are ever compared with another run; that a bench
with a worse ratio is measured again, twice at most, before it is believed, for what is slower is so
each time and what was disturbed is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))

from table import Options, Ratio, Table, as_values, format_number, format_table  # noqa: E402

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.25
CHECKS = 3
BASELINE_RUNS = 5
# Name -> module. Each has run(options: Options) -> list[Table]; a new bench is a new line.
BENCHES = {
    "headline": "headline",
    "lru": "bench_lru",
    "arena": "bench_arena",
    "pool": "bench_pool",
    "json": "bench_json",
    "hash": "bench_hash",
    "receive": "bench_receive",
    "walk": "bench_walk",
    "cache": "bench_cache",
    "fragments": "bench_fragments",
    "process": "bench_process",
    "gateway": "bench_gateway",
}
PEERS = ("cachebox", "cachetools", "lru-dict", "ujson", "msgspec", "xxhash", "blake3", "uvicorn")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(BENCHES),
        metavar="NAME",
        help="of these: " + ", ".join(BENCHES),
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--peers", action="store_true", help="gateway: install and measure other gateways too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--check", action="store_true", help="compare with the baseline")
    parser.add_argument(
        "--write-baseline",
        action="store_true",
        help=f"measure {BASELINE_RUNS} times and make the medians the baseline of these benches",
    )
    return parser.parse_args()


def describe_command(arguments: argparse.Namespace) -> str:
    """What was asked for, without the files it was written to."""
    words = ["python bench/run.py"]
    if arguments.only:
        words += ["--only", *arguments.only]
    for name in ("quick", "check", "write_baseline"):
        if getattr(arguments, name):
            words.append("--" + name.replace("_", "-"))
    return " ".join(words)


def describe_tree() -> dict[str, Any]:
    """The commit, and how many files differ from it: with any, the commit alone is not it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain")
    return {
        "commit": commit or "unknown",
        "changed_files": None if changes is None else len(changes.splitlines()),
    }


def describe_environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and with what: a result means nothing without it."""
    from openbr import ultra

    versions = {}
    for name in PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": describe_command(arguments),
        **describe_tree(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": find_cpu(),
        "cores": os.cpu_count(),
        "load": [round(one, 1) for one in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": f"{platform.python_version()} ({platform.python_compiler()})",
        "openbr": {part.name: part.kind for part in ultra.info().parts},
        "peers": versions,
    }


def find_cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def say(text: str) -> None:
    """Progress, on stderr: one line that replaces itself on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def compare(ratios: dict[str, Ratio], baseline: dict[str, float]) -> dict[str, str]:
    """What is worse than it was, one line each."""
    found = {}
    for key, before in baseline.items():
        ratio = ratios.get(key)
        if ratio is not None and ratio.is_worse_than(before, TOLERANCE):
            now, then = format_number(ratio.value), format_number(before)
            found[key] = f"{key}: {now}{ratio.unit}, was {then}{ratio.unit}"
    return found


def measure(name: str, options: Options, show: bool = True) -> tuple[list[Table], dict[str, Ratio]]:
    """One bench: its tables, and its ratios by their keys in the baseline."""
    tables: list[Table] = import_module(BENCHES[name]).run(options)
    say("")
    if show:
        for table in tables:
            print("\n" + format_table(table), flush=True)
    return tables, {f"{name}: {one.name}": one for table in tables for one in table.ratios}


def check(ratios: dict[str, Ratio], options: Options) -> int:
    """Compare with the baseline; the exit code."""
    baseline: dict[str, float] = {}
    for one in json.loads(BASELINE.read_text())["benches"].values():
        baseline |= one["ratios"]
    worse = compare(ratios, baseline)
    for _ in range(CHECKS - 1):
        for name in sorted({key.partition(":")[0] for key in worse}):
            print(f"  again   {name}", flush=True)
            _, again = measure(name, options, show=False)
            known = {key: baseline[key] for key in worse if key in again}
            for key in known.keys() - compare(again, known).keys():
                del worse[key]
            worse |= compare({key: again[key] for key in worse if key in again}, baseline)
    print(
        "".join(f"  worse   {line}\n" for line in worse.values())
        or "no ratio is worse than the baseline\n",
        end="",
    )
    return 1 if worse else 0


def guarded(ratios: dict[str, Ratio]) -> dict[str, float]:
    return {
        key: one.value for key, one in ratios.items() if one.is_guarded and one.value is not None
    }


def write_baseline(
    names: list[str], first: dict[str, Ratio], options: Options, environment: dict[str, Any]
) -> None:
    """Keep the median of several runs for these benches, and what is known of the others."""
    runs = [guarded(first)]
    for number in range(2, BASELINE_RUNS + 1):
        print(f"\nrun {number} of {BASELINE_RUNS}", flush=True)
        found: dict[str, Ratio] = {}
        for name in names:
            found |= measure(name, options, show=False)[1]
        runs.append(guarded(found))
    known = json.loads(BASELINE.read_text()).get("benches", {}) if BASELINE.exists() else {}
    for name in names:
        keys = [key for key in runs[0] if key.startswith(f"{name}: ")]
        ratios = {key: round(median(run[key] for run in runs if key in run), 3) for key in keys}
        if ratios:
            known[name] = {"environment": environment, "runs": BASELINE_RUNS, "ratios": ratios}
    ordered = {name: known[name] for name in BENCHES if name in known}
    BASELINE.write_text(
        json.dumps(
            {"ratios are": "the median of each in that many runs", "benches": ordered},
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


def main() -> int:
    arguments = parse_arguments()
    options = Options(quick=arguments.quick, peers=arguments.peers, say=say)
    environment = describe_environment(arguments)
    for name, value in environment.items():
        print(f"{name:14}{value}")
    names: list[str] = arguments.only or list(BENCHES)
    tables: dict[str, list[Table]] = {}
    ratios: dict[str, Ratio] = {}
    for name in names:
        tables[name], own = measure(name, options)
        ratios |= own
    missed = [
        f"{key}: {format_number(one.value)}{one.unit}, target {one.wish} {one.target:g}{one.unit}"
        for key, one in ratios.items()
        if one.met is False
    ]
    print(f"\n{sum(one.met is True for one in ratios.values())} targets met, {len(missed)} missed")
    print("".join(f"  missed  {line}\n" for line in missed), end="")
    if arguments.json:
        found = {name: [as_values(table) for table in own] for name, own in tables.items()}
        arguments.json.write_text(
            json.dumps({"environment": environment, "tables": found}, indent=1, ensure_ascii=False)
            + "\n"
        )
    if arguments.write_baseline:
        write_baseline(names, ratios, options, environment)
    return check(ratios, options) if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
