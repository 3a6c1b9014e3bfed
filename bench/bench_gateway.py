"""The gateway's data plane beside a plain pass-through and a bare uvicorn, on the same load.

    python bench/bench_gateway.py                     all of it; also by run.py --only gateway
    python bench/bench_gateway.py chat-16 burst -r 9  some scenarios, nine rounds each
    python bench/bench_gateway.py --hold              start all, print ports and process ids, wait

In: options; Linux, for its clocks of processes. Out: a table a scenario, and with peers two more.
`scenarios.py` says what is measured, `rounds.py` how. Upstream and load share a core, what is
measured has the other, where there are two. The rule that lives only here: this is a tool for
tuning as well, so each scenario runs alone, and everything can be held open.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from peers import measure_peers
from rounds import measure, standing, tabulate
from scenarios import SCENARIOS
from table import Options, Table, format_table


def measure_all(
    names: list[str], quick: bool, say: Callable[[str], None], rounds: int | None = None
) -> Iterator[Table]:
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder)) as stand:
        for name in names:
            scenario = SCENARIOS[name]()
            usual = rounds or (scenario.quick_rounds if quick else scenario.rounds)
            if usual:
                yield tabulate(scenario, measure(stand, scenario, usual, say, quick))


def run(options: Options) -> list[Table]:
    if not sys.platform.startswith("linux"):
        note = "not measured: it reads the clocks of processes, as Linux has them"
        return [Table(title="The gateway", unit="", columns=(), rows=[], notes=[note])]
    tables = list(measure_all(list(SCENARIOS), options.quick, options.say))
    if options.peers:
        tables += measure_peers(options.quick, options.say)
    return tables


def hold() -> None:
    """For tuning by hand: everything runs until this is interrupted."""
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder)) as stand:
        for name, one in stand.servers.items():
            print(f"{name:14} http://127.0.0.1:{one.port}  pid {one.pid}", flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("-r", "--rounds", type=int, help="of each scenario")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hold", action="store_true", help="start all servers and wait")
    parser.add_argument("--peers", action="store_true", help="other gateways, and nothing else")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # either way the servers are stopped
        signal.signal(number, signal.default_int_handler)
    if arguments.hold:
        hold()
        return
    if arguments.peers:
        for table in measure_peers(arguments.quick, print):
            print("\n" + format_table(table), flush=True)
        return
    names = arguments.names or list(SCENARIOS)
    for table in measure_all(names, arguments.quick, lambda text: None, arguments.rounds):
        print("\n" + format_table(table), flush=True)


if __name__ == "__main__":
    main()
