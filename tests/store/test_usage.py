"""Rows of the table usage: kept in order, bad ones left out, read back, added up."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from openbr.store import Store, settings, usage
from openbr.store.migrations import MIGRATIONS


def row(number: int = 0, **changes: str | int | float | None) -> usage.Row:
    values: dict[str, str | int | float | None] = {
        "request_id": f"req_{number}",
        "created_at": 1000.0 + number,
        "key_id": None,
        "asked": "default",
        "model": "acme/m",
        "provider": "acme",
        "status": 200,
        "outcome": "ok",
        "cache": "miss",
        "fallback": None,
        "error": None,
        "is_stream": 1,
        "input_tokens": 10,
        "output_tokens": 5,
        "cached_tokens": 2,
        "queue_s": 0.001,
        "ttft_s": 0.2,
        "total_s": 1.5,
        "cost_nano_usd": 70_000,
    }
    assert set(changes) <= set(values)
    return tuple((values | changes)[name] for name in usage.COLUMNS)


def ids(store: Store) -> list[str]:
    return [one.request_id for one in reversed(store.read(usage.recent, 1_000_000))]


@pytest.mark.parametrize("count", [0, 1, 51, 52, 53, 104, 105, 500])
def test_rows_are_kept_in_their_order(store: Store, count: int) -> None:
    rows = [row(number) for number in range(count)]
    assert store.write(usage.add, rows) == count
    assert ids(store) == [f"req_{number}" for number in range(count)]


@pytest.mark.parametrize(
    "bad", [[0], [60], [119], [3, 60], list(range(0, 120, 7)), list(range(120))]
)
def test_unfit_rows_do_not_keep_the_others_out(store: Store, bad: list[int]) -> None:
    rows = [row(number, asked=None if number in bad else "m") for number in range(120)]
    assert store.write(usage.add, rows) == 120 - len(bad)
    assert ids(store) == [f"req_{number}" for number in range(120) if number not in bad]


def test_adding_is_part_of_its_transaction(store: Store) -> None:
    def half(c: sqlite3.Connection) -> None:
        usage.add(c, [row(0), row(1, status=10**30)])
        raise KeyError("stop here")

    with pytest.raises(KeyError):
        store.write(half)
    assert ids(store) == []
    assert store.write(usage.add, [row(2)]) == 1
    assert ids(store) == ["req_2"]


def test_a_failing_store_keeps_no_row_of_a_batch(store: Store) -> None:
    store.write(lambda c: c.execute("ALTER TABLE usage DROP COLUMN ttft_s"))
    with pytest.raises(sqlite3.OperationalError):
        store.write(usage.add, [row(number) for number in range(100)])
    assert store.read(lambda c: c.execute("SELECT count(*) FROM usage").fetchone()) == (0,)


def test_the_most_recent_first_by_when_they_came(store: Store) -> None:
    store.write(usage.add, [row(5), row(1), row(9), row(9)])
    got = store.read(usage.recent, 3)
    assert [one.request_id for one in got] == ["req_9", "req_9", "req_5"]
    assert got[0].id > got[1].id
    assert store.read(usage.recent, 0) == []


def test_a_row_comes_back_whole(store: Store) -> None:
    store.write(usage.add, [row(1, key_id=4, error="quota", fallback="auth", is_stream=0)])
    (one,) = store.read(usage.recent, 1)
    assert one == usage.StoredUsage(
        id=1,
        request_id="req_1",
        created_at=1001.0,
        key_id=4,
        asked="default",
        model="acme/m",
        provider="acme",
        status=200,
        outcome="ok",
        cache="miss",
        fallback="auth",
        error="quota",
        is_stream=False,
        input_tokens=10,
        output_tokens=5,
        cached_tokens=2,
        queue_s=0.001,
        ttft_s=0.2,
        total_s=1.5,
        cost_usd=0.00007,
    )


def test_what_is_not_known_is_none_and_not_zero(store: Store) -> None:
    store.write(usage.add, [row(0, cost_nano_usd=None, input_tokens=None, ttft_s=None)])
    store.write(usage.add, [row(1, cost_nano_usd=0)])
    known, unknown = store.read(usage.recent, 2)
    assert known.cost_usd == 0.0
    assert (unknown.cost_usd, unknown.input_tokens, unknown.ttft_s) == (None, None, None)


def test_totals_of_nothing(store: Store) -> None:
    assert store.read(usage.totals, 0.0, 2e9) == usage.UsageTotals(
        requests=0,
        failed=0,
        from_cache=0,
        input_tokens=0,
        output_tokens=0,
        cached_tokens=0,
        cost_usd=0.0,
        unknown_costs=0,
    )


def test_totals_over_a_time(store: Store) -> None:
    store.write(
        usage.add,
        [
            row(0),
            row(1, cache="hit", cost_nano_usd=0),
            row(2, cache="join", cost_nano_usd=0),
            row(3, outcome="error", status=502, input_tokens=None, cost_nano_usd=None),
            row(4, outcome="partial", cached_tokens=None),
            row(5, outcome="cancelled"),
            row(6),
        ],
    )
    assert store.read(usage.totals, 1001.0, 1006.0) == usage.UsageTotals(
        requests=5,
        failed=1,
        from_cache=2,
        input_tokens=40,
        output_tokens=25,
        cached_tokens=8,
        cost_usd=0.00014,
        unknown_costs=1,
    )


def test_totals_add_up_exactly(store: Store) -> None:
    store.write(usage.add, [row(number, cost_nano_usd=1) for number in range(1000)])
    assert store.read(usage.totals, 0.0, 1e9).cost_usd == 1000 / 1e9


def test_sums_of_huge_costs_do_not_fail(store: Store) -> None:
    store.write(usage.add, [row(number, cost_nano_usd=2**62) for number in range(4)])
    assert store.read(usage.totals, 0.0, 1e9).cost_usd == pytest.approx(2**64 / 1e9)


def test_the_time_has_an_index(store: Store) -> None:
    def plan(c: sqlite3.Connection, query: str) -> str:
        return " ".join(str(part[-1]) for part in c.execute("EXPLAIN QUERY PLAN " + query))

    by_time = "SELECT count(*) FROM usage WHERE created_at >= 1 AND created_at < 2"
    newest = "SELECT * FROM usage ORDER BY created_at DESC, id DESC LIMIT 5"
    assert "usage_time" in store.read(plan, by_time)
    assert "TEMP B-TREE" not in store.read(plan, newest)


def test_an_id_is_never_given_again(store: Store) -> None:
    store.write(usage.add, [row(number) for number in range(3)])
    store.write(lambda c: c.execute("DELETE FROM usage"))
    store.write(usage.add, [row(3)])
    assert store.read(usage.recent, 1)[0].id == 4


def test_a_store_of_the_first_version_gets_the_table_and_keeps_its_rows(path: Path) -> None:
    first = Store.open(path, migrations=MIGRATIONS[:1])
    first.write(settings.put, "a", "1")
    first.close()
    second = Store.open(path)
    assert second.read(settings.get, "a") == "1"
    assert second.write(usage.add, [row(0)]) == 1
    second.close()
    with contextlib.closing(sqlite3.connect(f"{path}.v1.backup")) as copy:
        assert copy.execute("SELECT value FROM settings").fetchall() == [("1",)]
