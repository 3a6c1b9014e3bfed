"""How long a call takes, beside others that do the same.

In: functions that each do a number of calls. Out: nanoseconds a call. The rules that live only
here: rounds are interleaved, so that what disturbs the machine disturbs all; the least of all
rounds counts, since noise only adds; the collector is off meanwhile. Ratios of such numbers hold
from machine to machine, the numbers do not. (pyperf gives one bench after the other a process of
its own: on a busy machine its ratios drift by more than what is measured here.)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`run` does `calls` calls. `between` puts things back, outside of the measured time.

    `every`: in which rounds it runs; more than 1 for one that is slow and steady, so that the
    others get more rounds in the same time.
    """

    run: Callable[[], object]
    calls: int
    between: Callable[[], object] | None = None
    every: int = 1


def measure(cases: Mapping[str, Case], rounds: int, least_s: float = 0.0) -> dict[str, float]:
    """Nanoseconds a call of each case, the least of all rounds.

    `least_s`: go on until that many seconds have passed, for cases so short that all the usual
    rounds fit into one disturbance.
    """
    best = dict.fromkeys(cases, float("inf"))
    names = list(cases)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    number, end = -1, monotonic() + least_s
    try:
        while number < rounds or monotonic() < end:
            number += 1  # round 0 warms up, all of them
            for name in names:
                case = cases[name]
                if number and (number - 1) % case.every:
                    continue
                start = perf_counter_ns()
                case.run()
                taken = perf_counter_ns() - start
                if case.between is not None:
                    case.between()
                if number:
                    best[name] = min(best[name], taken / case.calls)
            names = names[1:] + names[:1]  # nobody always follows the same one
    finally:
        if was_enabled:
            gc.enable()
    return best
