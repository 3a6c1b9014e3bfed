"""Measure openbr beside what one would use without it. The one entry to all benches.

    python bench/run.py                     everything; first the headline, then table by table
    python bench/run.py --only lru pool     some of it
    python bench/run.py --quick             fewer rounds
    python bench/run.py --json FILE         also write all numbers, and where they were measured
    python bench/run.py --check             fail where a ratio is over 25 % worse than the baseline

In: this machine. Out: tables; exit code 1 when `--check` finds something. The rules that live only
here: which benches there are, and that only ratios are ever compared with another run.
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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))

from table import Options, Ratio, Table, as_values, format_number, format_table  # noqa: E402

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.25
# Name -> module. Each has run(options: Options) -> list[Table]; a new bench is a new line.
BENCHES = {
    "headline": "headline",
    "lru": "bench_lru",
    "arena": "bench_arena",
    "pool": "bench_pool",
    "json": "bench_json",
    "hash": "bench_hash",
    "process": "bench_process",
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--check", action="store_true", help="compare with the baseline")
    parser.add_argument("--write-baseline", action="store_true", help="make this run the baseline")
    return parser.parse_args()


def describe_environment() -> dict[str, Any]:
    """Where and with what: a result means nothing without it."""
    from openbr import ultra

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    versions = {}
    for name in PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": git("rev-parse", "--short", "HEAD")
        + (" +changes" if git("status", "-s") else ""),
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


def compare(ratios: dict[str, Ratio], baseline: dict[str, float]) -> list[str]:
    """What is worse than it was, one line each."""
    found = []
    for key, before in baseline.items():
        ratio = ratios.get(key)
        if ratio is not None and ratio.is_worse_than(before, TOLERANCE):
            now, then = format_number(ratio.value), format_number(before)
            found.append(f"{key}: {now}{ratio.unit}, was {then}{ratio.unit}")
    return found


def main() -> int:
    arguments = parse_arguments()
    options = Options(quick=arguments.quick, say=say)
    environment = describe_environment()
    for name, value in environment.items():
        print(f"{name:12}{value}")
    tables: dict[str, list[Table]] = {}
    ratios: dict[str, Ratio] = {}
    for name in arguments.only or BENCHES:
        tables[name] = import_module(BENCHES[name]).run(options)
        say("")
        for table in tables[name]:
            print("\n" + format_table(table), flush=True)
            ratios |= {f"{name}: {ratio.name}": ratio for ratio in table.ratios}
    missed = [
        f"{key}: {format_number(one.value)}{one.unit}"
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
    guarded = {
        key: round(one.value, 3)
        for key, one in ratios.items()
        if one.is_guarded and one.value is not None
    }
    if arguments.write_baseline:
        known = {"environment": environment, "ratios": guarded}
        BASELINE.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    if arguments.check:
        worse = compare(ratios, json.loads(BASELINE.read_text())["ratios"])
        print(
            "".join(f"  worse   {line}\n" for line in worse)
            or "no ratio is worse than the baseline\n",
            end="",
        )
        return 1 if worse else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
