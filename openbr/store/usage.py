"""What each request used, one row each, and sums over a time.

In: the connection, rows in the order of COLUMNS. Out: StoredUsage, UsageTotals. The rules that live
only here: money is kept as whole nano-dollars (10^-9 US$) and leaves as US$; NULL is "not known",
never 0; a row that the table cannot hold does not keep the others out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

NANO = 1_000_000_000

Row = tuple[str | int | float | None, ...]


class StoredUsage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A row as it was kept, with the fields of UsageRecord. `cost_usd` None: not known."""

    id: int
    request_id: str
    created_at: float
    asked: str
    status: int
    outcome: str
    key_id: int | None
    model: str | None
    provider: str | None
    cache: str
    fallback: str | None
    error: str | None
    is_stream: bool
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    queue_s: float | None
    ttft_s: float | None
    total_s: float | None
    cost_usd: float | None


class UsageTotals(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Sums over a time. `cost_usd` adds up the known costs; `unknown_costs` requests have none.

    `failed` counts the outcome "error"; `from_cache` counts hits and joins.
    """

    requests: int
    failed: int
    from_cache: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: float
    unknown_costs: int


COLUMNS = (*StoredUsage.__struct_fields__[1:-1], "cost_nano_usd")
_NAMES = ", ".join(COLUMNS)
_ONE = "(" + ", ".join("?" * len(COLUMNS)) + ")"
_ROWS_A_STATEMENT = 999 // len(COLUMNS)
"""SQLite gives the interpreter up once a statement. Beside a busy event loop each return costs a
wait, so many rows go in one; 999 is what every SQLite takes as parameters of one."""

_UNFIT = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    OverflowError,
    UnicodeError,
)
"""What is wrong with a row, not with the store: a type or a size that SQLite has no place for."""


def add(c: sqlite3.Connection, rows: Sequence[Row]) -> int:
    """Keep rows, in their order. Returns how many were kept: all but those that are unfit."""
    whole = len(rows) - len(rows) % _ROWS_A_STATEMENT
    c.execute("SAVEPOINT usage_rows")
    try:
        if whole:
            many = f"INSERT INTO usage ({_NAMES}) VALUES {', '.join([_ONE] * _ROWS_A_STATEMENT)}"
            for start in range(0, whole, _ROWS_A_STATEMENT):
                some = rows[start : start + _ROWS_A_STATEMENT]
                c.execute(many, tuple(chain.from_iterable(some)))
        c.executemany(f"INSERT INTO usage ({_NAMES}) VALUES {_ONE}", rows[whole:])
    except _UNFIT:
        c.execute("ROLLBACK TO usage_rows")
        return sum(_is_kept(c, row) for row in rows)
    return len(rows)


def _is_kept(c: sqlite3.Connection, row: Row) -> bool:
    try:
        c.execute(f"INSERT INTO usage ({_NAMES}) VALUES {_ONE}", row)
    except _UNFIT:
        return False
    return True


def recent(c: sqlite3.Connection, limit: int) -> list[StoredUsage]:
    """The last requests, newest first."""
    found = c.execute(
        f"SELECT id, {_NAMES} FROM usage ORDER BY created_at DESC, id DESC LIMIT ?", (limit,)
    )
    return [_stored(row) for row in found]


def totals(c: sqlite3.Connection, since: float, until: float) -> UsageTotals:
    """Sums over since <= created_at < until, in unix seconds."""
    row = c.execute(
        "SELECT count(*), coalesce(sum(outcome = 'error'), 0),"
        " coalesce(sum(cache IN ('hit', 'join')), 0), coalesce(sum(input_tokens), 0),"
        " coalesce(sum(output_tokens), 0), coalesce(sum(cached_tokens), 0),"
        " total(cost_nano_usd), coalesce(sum(cost_nano_usd IS NULL), 0)"
        " FROM usage WHERE created_at >= ? AND created_at < ?",
        (since, until),
    ).fetchone()
    return UsageTotals(
        requests=row[0],
        failed=row[1],
        from_cache=row[2],
        input_tokens=row[3],
        output_tokens=row[4],
        cached_tokens=row[5],
        cost_usd=row[6] / NANO,
        unknown_costs=row[7],
    )


def _stored(row: Sequence[Any]) -> StoredUsage:
    values = dict(zip(("id", *COLUMNS), row, strict=True))
    nano = values.pop("cost_nano_usd")
    values["is_stream"] = bool(values["is_stream"])
    return StoredUsage(**values, cost_usd=None if nano is None else nano / NANO)
