"""Rows wait, are written in batches, outlive a store that is down, and hold nobody up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from openbr.config import ModelPrice, ProviderConfig
from openbr.prices import Prices
from openbr.store import Store
from openbr.store import usage as table
from openbr.usage import UsageLog, UsageRecord, UsageStats


class HandLoop(asyncio.SelectorEventLoop):
    """An event loop whose call_later timers fire when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []
        self.armed = 0

    def call_later(self, delay: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        handle = super().call_later(1e6, *args, **kwargs)
        self.timers.append((delay, handle))
        self.armed += 1
        return handle

    def waiting(self) -> list[float]:
        """The delays of the timers that are armed."""
        self.timers = [(delay, timer) for delay, timer in self.timers if not timer.cancelled()]
        return [delay for delay, _ in self.timers]

    def fire(self) -> float:
        """Fire the only timer. Returns its delay in seconds."""
        self.waiting()
        ((delay, timer),) = self.timers
        timer._run()
        timer.cancel()
        return delay


Scenario = Callable[[HandLoop], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> None:
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, HandLoop)
        runner.run(scenario(loop))


async def settle(store: Store) -> None:
    """Until the writer thread has done all that was given, and who gave it knows."""
    for _ in range(3):
        await store.commit(lambda c: None)


async def begun() -> None:
    """Until a task that was made just now waits for the writer thread."""
    for _ in range(2):
        await asyncio.sleep(0)


PROVIDER = ProviderConfig(
    name="acme",
    base_url="https://acme.example/v1",
    prices={"m": ModelPrice(input=2.0, output=10.0, cached=0.5)},
)


@pytest.fixture
def prices() -> Prices:
    return Prices([PROVIDER])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "openbr.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store.open(path)
    yield opened
    opened.close()


def record(number: int = 0, **changes: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "request_id": f"req_{number}",
        "created_at": 1000.0 + number,
        "asked": "acme/m",
        "model": "acme/m",
        "provider": "acme",
        "status": 200,
        "outcome": "ok",
        "cache": "miss",
        "input_tokens": 1000,
        "output_tokens": 100,
        "cached_tokens": 0,
        **changes,
    }
    return UsageRecord(**values)


def written(store: Store) -> list[str]:
    """The ids of the requests in the table, in the order in which they were written."""
    return store.read(
        lambda c: [name for (name,) in c.execute("SELECT request_id FROM usage ORDER BY id")]
    )


def names(*numbers: int) -> list[str]:
    return [f"req_{number}" for number in numbers]


def stats(
    queued: int = 0, written: int = 0, dropped: int = 0, is_failing: bool = False
) -> UsageStats:
    return UsageStats(queued=queued, written=written, dropped=dropped, is_failing=is_failing)


def fill(store: Store) -> None:
    """Leave the disk no room for another page."""
    pages = store.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    store.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())


def clean_up(store: Store) -> None:
    store.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())


LONG = "m" * 20_000


# waiting and writing


def test_rows_wait_for_one_timer_and_are_written_together(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        for number in range(3):
            log.record(record(number))
        assert loop.waiting() == [1.0]
        await settle(store)
        assert written(store) == []
        assert log.stats() == stats(queued=3)
        loop.fire()
        await settle(store)
        assert written(store) == names(0, 1, 2)
        assert log.stats() == stats(written=3)

    play(scenario)


def test_no_timer_runs_while_nothing_waits(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, flush_after_s=2.5)
        assert loop.armed == 0
        log.record(record(0))
        assert loop.fire() == 2.5
        await settle(store)
        assert loop.waiting() == []
        log.record(record(1))
        log.record(record(2))
        assert loop.fire() == 2.5
        await settle(store)
        assert loop.waiting() == []
        assert loop.armed == 2
        assert written(store) == names(0, 1, 2)

    play(scenario)


def test_a_full_batch_does_not_wait_for_the_timer(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, batch_rows=4)
        for number in range(3):
            log.record(record(number))
        assert loop.waiting() == [1.0]
        log.record(record(3))
        assert loop.waiting() == []
        await settle(store)
        assert written(store) == names(0, 1, 2, 3)
        assert loop.waiting() == []

    play(scenario)


def test_what_comes_while_a_batch_is_written_waits_for_its_own_timer(
    store: Store, prices: Prices
) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, batch_rows=4)
        gate = threading.Event()
        held = asyncio.ensure_future(store.commit(lambda c: gate.wait()))
        for number in range(4):
            log.record(record(number))
        await begun()
        for number in range(4, 10):
            log.record(record(number))
        assert log.stats() == stats(queued=10)
        assert loop.waiting() == []
        gate.set()
        await held
        await settle(store)
        assert written(store) == names(*range(8))  # the second batch was full: no timer for it
        assert loop.waiting() == [1.0]
        loop.fire()
        await settle(store)
        assert written(store) == names(*range(10))

    play(scenario)


def test_many_rows_keep_their_order(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        for number in range(1234):
            log.record(record(number))
        await settle(store)
        assert written(store) == names(*range(1000))
        assert loop.waiting() == [1.0]
        loop.fire()
        await settle(store)
        assert written(store) == names(*range(1234))
        assert log.stats() == stats(written=1234)

    play(scenario)


# the queue is full


def test_the_oldest_rows_go_and_are_counted(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, max_rows=10)
        gate = threading.Event()
        held = asyncio.ensure_future(store.commit(lambda c: gate.wait()))
        log.record(record(0))
        loop.fire()
        await begun()
        for number in range(1, 16):
            log.record(record(number))
        assert log.stats() == stats(queued=11, dropped=5)
        gate.set()
        await held
        await settle(store)
        assert written(store) == names(0, *range(6, 16))
        assert log.stats() == stats(written=11, dropped=5)

    play(scenario)


# the store is down


def test_a_full_disk_and_then_room_again(
    store: Store, prices: Prices, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "openbr.usage")

    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, max_rows=20)
        log.record(record(status=10**30))
        loop.fire()
        await settle(store)
        assert log.stats() == stats(dropped=1)  # before the failure, so not of its count
        fill(store)
        for number in range(8):
            log.record(record(number, asked=LONG))
        loop.fire()
        await settle(store)
        assert log.stats() == stats(queued=8, dropped=1, is_failing=True)
        assert written(store) == []
        delays = []
        for _ in range(7):
            delays.append(loop.fire())
            await settle(store)
            assert loop.waiting() != []
        assert delays == [1, 2, 4, 8, 16, 30, 30]
        for number in range(8, 25):
            log.record(record(number, asked=LONG))
        assert loop.waiting() == [30]  # no row hurries a store that is down
        assert log.stats() == stats(queued=20, dropped=6, is_failing=True)
        clean_up(store)
        loop.fire()
        await settle(store)
        assert written(store) == names(*range(5, 25))
        assert log.stats() == stats(written=20, dropped=6)
        assert loop.waiting() == []
        log.record(record(25))
        assert loop.waiting() == [1.0]

    play(scenario)
    failing, working = (one.getMessage() for one in caplog.records)
    assert "cannot be written" in failing and "full" in failing and "20 are kept" in failing
    assert working == "usage rows are written again; 5 were dropped meanwhile"
    assert not any(one.exc_info for one in caplog.records)


def test_rows_that_come_while_a_batch_fails_push_out_its_oldest(
    store: Store, prices: Prices
) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, max_rows=5)
        fill(store)
        gate = threading.Event()
        held = asyncio.ensure_future(store.commit(lambda c: gate.wait()))
        for number in range(4):
            log.record(record(number, asked=LONG))
        loop.fire()
        await begun()
        for number in range(4, 7):
            log.record(record(number, asked=LONG))
        gate.set()
        await held
        await settle(store)
        assert log.stats() == stats(queued=5, dropped=2, is_failing=True)
        clean_up(store)
        loop.fire()
        await settle(store)
        assert written(store) == names(2, 3, 4, 5, 6)

    play(scenario)


def test_locked_by_another_process_then_free_again(path: Path, prices: Prices) -> None:
    store = Store.open(path, busy_timeout_s=0.01)

    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            log.record(record(0))
            loop.fire()
            while not loop.waiting():
                await asyncio.sleep(0)  # the writer thread waits for the lock, and gives up
            assert log.stats() == stats(queued=1, is_failing=True)
            other.execute("ROLLBACK")
        assert loop.fire() == 1.0
        await settle(store)
        assert log.stats() == stats(written=1)

    try:
        play(scenario)
        assert written(store) == names(0)
    finally:
        store.close()


def test_a_table_that_is_gone_is_no_end_either(
    store: Store, prices: Prices, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        store.write(lambda c: c.execute("ALTER TABLE usage RENAME TO elsewhere"))
        log.record(record(0))
        loop.fire()
        await settle(store)
        assert log.stats() == stats(queued=1, is_failing=True)
        store.write(lambda c: c.execute("ALTER TABLE elsewhere RENAME TO usage"))
        loop.fire()
        await settle(store)
        assert written(store) == names(0)

    play(scenario)
    assert caplog.records[0].exc_info  # a defect of ours: with its traceback


def test_a_row_that_does_not_fit_is_dropped_alone(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        for number in range(120):
            bad: dict[int, dict[str, Any]] = {
                7: {"status": 10**30},
                110: {"error": "\ud800"},
                111: {"key_id": object()},
            }
            log.record(record(number, **bad.get(number, {})))
        loop.fire()
        await settle(store)
        assert written(store) == names(*(set(range(120)) - {7, 110, 111}))
        assert log.stats() == stats(written=117, dropped=3)

    play(scenario)


# the end


def test_closing_writes_what_waits(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, batch_rows=4)
        for number in range(3):
            log.record(record(number))
        await log.close()
        assert written(store) == names(0, 1, 2)
        assert log.stats() == stats(written=3)
        assert loop.waiting() == []
        log.record(record(3))
        assert log.stats() == stats(written=3, dropped=1)
        assert loop.waiting() == []
        await log.close()

    play(scenario)


def test_closing_an_empty_log_writes_nothing(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        await log.close()
        assert loop.armed == 0
        assert log.stats() == stats()

    play(scenario)


def test_closing_in_the_middle_of_a_batch_writes_the_rest(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices, batch_rows=4)
        for number in range(11):
            log.record(record(number))
        await log.close()
        assert written(store) == names(*range(11))
        assert loop.waiting() == []

    play(scenario)


def test_closing_tries_a_store_that_is_down_once(
    store: Store, prices: Prices, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        fill(store)
        log.record(record(0, asked=LONG))
        loop.fire()
        await settle(store)
        log.record(record(1, asked=LONG))
        await log.close()
        assert log.stats() == stats(dropped=2, is_failing=True)
        assert loop.waiting() == []

    play(scenario)
    assert "did not take 2 usage rows" in caplog.records[-1].getMessage()


def test_closing_does_not_wait_for_ever(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        gate = threading.Event()
        held = asyncio.ensure_future(store.commit(lambda c: gate.wait()))
        log.record(record(0))
        await log.close(0.0)
        assert log.stats() == stats(dropped=1)
        assert not held.done()
        gate.set()
        await held

    play(scenario)


# what is written


def test_the_record_has_the_columns_of_the_table() -> None:
    assert (*UsageRecord.__struct_fields__, "cost_nano_usd") == table.COLUMNS


def test_every_fact_of_a_request_is_kept(store: Store, prices: Prices) -> None:
    row = record(
        key_id=3,
        asked="default",
        outcome="partial",
        fallback="quota",
        error="stream_interrupted",
        is_stream=True,
        cached_tokens=400,
        queue_s=0.001,
        ttft_s=0.25,
        total_s=2.5,
    )

    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        log.record(row)
        await log.close()

    play(scenario)
    (kept,) = store.read(table.recent, 10)
    for name in UsageRecord.__struct_fields__:
        assert getattr(kept, name) == getattr(row, name), name
    assert kept.is_stream is True
    assert kept.cost_usd == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 10) / 1e6)


@pytest.mark.parametrize(
    "changes, cost_usd",
    [
        ({}, 0.003),
        ({"cache": "bypass"}, 0.003),
        ({"cache": "hit"}, 0.0),
        ({"cache": "join"}, 0.0),
        ({"model": None, "provider": None, "status": 404, "outcome": "error"}, 0.0),
        ({"model": "acme/other"}, None),
        ({"model": "unheard/m", "provider": "unheard"}, None),
        ({"input_tokens": None}, None),
        ({"output_tokens": None}, None),
        ({"cached_tokens": None}, 0.003),
        ({"model": "local/smollm2-135m", "provider": "local"}, 0.0),
        ({"model": "local/x", "provider": "local", "input_tokens": None}, 0.0),
        ({"input_tokens": 10**30}, None),
        ({"output_tokens": -1}, None),
    ],
)
def test_cost(
    store: Store, prices: Prices, changes: dict[str, Any], cost_usd: float | None
) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        log.record(record(**changes))
        await log.close()
        assert log.stats().written == 1

    play(scenario)
    (kept,) = store.read(table.recent, 1)
    assert kept.cost_usd == cost_usd
    if changes.get("cache") in ("hit", "join"):
        assert (kept.input_tokens, kept.output_tokens) == (1000, 100)


def test_a_count_that_cannot_be_is_kept_as_not_known(store: Store, prices: Prices) -> None:
    async def scenario(loop: HandLoop) -> None:
        log = UsageLog(store, prices)
        log.record(record(output_tokens=2**62))
        await log.close()

    play(scenario)
    (kept,) = store.read(table.recent, 1)
    assert (kept.input_tokens, kept.output_tokens, kept.cached_tokens) == (None, None, None)


WRITER = """
import asyncio, pathlib, sys
from openbr.prices import Prices
from openbr.store import Store
from openbr.usage import UsageLog, UsageRecord

async def main():
    store = Store.open(pathlib.Path(sys.argv[1]))
    log = UsageLog(store, Prices([]), flush_after_s=0.001, batch_rows=20)
    number = said = 0
    while True:
        for _ in range(7 if log.stats().queued < 1000 else 0):
            log.record(UsageRecord(
                request_id=str(number), created_at=float(number), asked="a", status=200,
                outcome="ok",
            ))
            number += 1
        await asyncio.sleep(0)
        if log.stats().written > said:
            said = log.stats().written
            sys.stdout.write(f"{said}\\n")
            sys.stdout.flush()

asyncio.run(main())
"""


@pytest.mark.parametrize("reports", [1, 40])
def test_kill_under_writes_loses_no_row_that_counts_as_written(path: Path, reports: int) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = [process.stdout.readline() for _ in range(reports)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read().splitlines(keepends=True)
        process.wait(10)
    said = max(int(line) for line in seen if line.endswith("\n"))
    store = Store.open(path)
    kept = [int(name) for name in written(store)]
    assert len(kept) >= said > 0
    assert kept == list(range(len(kept)))
    assert store.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
    store.close()
