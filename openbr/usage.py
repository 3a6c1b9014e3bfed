"""Who asked what of whom, what it used and what it cost: one row a request, into the store.

In: a UsageRecord when a request has ended. Out: rows of the store's table `usage`. The rules that
live only here: nobody waits for the store and nobody fails because of it; a full queue lets its
oldest row go; a cost is worked out when the row is written; what made no upstream call (a cached
answer, a request that nobody was asked for) cost 0; no timer runs while no row waits.

    record -> queue -> after flush_after_s, or at once when batch_rows wait -> one transaction
                    -> the store is down: the rows go back, and it is tried again ever later
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from openbr.errors import OpenbrError
from openbr.prices import Prices
from openbr.store import Store
from openbr.store import usage as table

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
_NEVER = sys.maxsize
_MOST_TOKENS = 1_000_000_000
"""Of one request; a count outside is an upstream's nonsense, and is kept as not known."""


class UsageRecord(msgspec.Struct, frozen=True, gc=False):
    """One request, ended. The fields are the columns of the table, in its order; one is made by
    position for every request, because 18 names would cost ten times as much.

    created_at: unix seconds, when it was received. key_id: None without a key. asked: the name that
    the caller sent. model, provider: who answered or was asked last (the full id), None if nobody.
    status: as it was sent. fallback, error: reasons. Tokens: None if nobody said. Durations from
    the reception: queue_s to the upstream's request, ttft_s to the first content, total_s to the
    end.
    """

    request_id: str
    created_at: float
    asked: str
    status: int
    outcome: Literal["ok", "error", "partial", "cancelled"]
    key_id: int | None = None
    model: str | None = None
    provider: str | None = None
    cache: Literal["hit", "miss", "join", "bypass"] = "bypass"
    fallback: str | None = None
    error: str | None = None
    is_stream: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    total_s: float | None = None


class UsageStats(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`queued` rows wait, `written` and `dropped` since the start; `is_failing`: store down."""

    queued: int
    written: int
    dropped: int
    is_failing: bool


class UsageLog:
    """The queue before the table. A killed process loses the rows of its last `flush_after_s`;
    while the store is down, all that wait.

    Threads: event loop only; rows are written on the store's writer thread.
    """

    def __init__(
        self,
        store: Store,
        prices: Prices,
        *,
        max_rows: int = 10_000,
        flush_after_s: float = 1.0,
        batch_rows: int = 500,
    ) -> None:
        self._store = store
        self._prices = prices
        self._max_rows = max_rows
        self._flush_after_s = flush_after_s
        self._batch_rows = min(batch_rows, max_rows)
        self._rows: deque[UsageRecord] = deque(maxlen=max_rows)
        self._act_at = 1
        """How many rows must wait for the next record() to do more than append: 1 when nothing is
        under way, a batch while a timer runs, never while rows are written or the store rests."""
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._in_hand = 0
        self._written = 0
        self._dropped = 0
        self._retry_s = 0.0
        self._dropped_before = 0
        self._is_closing = False

    def record(self, row: UsageRecord) -> None:
        """Take a row: an append, and seldom a timer. Never waits, never raises."""
        rows = self._rows
        if len(rows) == self._max_rows:
            self._dropped += 1  # the deque lets its oldest go
        rows.append(row)
        if len(rows) >= self._act_at:
            self._act()

    def stats(self) -> UsageStats:
        return UsageStats(
            queued=len(self._rows) + self._in_hand,
            written=self._written,
            dropped=self._dropped,
            is_failing=self._retry_s > 0,
        )

    async def close(self, timeout_s: float = 3.0) -> None:
        """Write what waits, once and for at most so long; the rest is dropped, in one line."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._writing is None:
            self._start()
        assert self._writing is not None
        try:
            async with asyncio.timeout(timeout_s):
                await self._writing
        except TimeoutError:
            pass  # a transaction that has begun is finished by Store.close()
        lost = len(self._rows)
        self._dropped += lost
        self._rows, self._max_rows = deque(maxlen=0), 0  # what still comes is counted as dropped
        if lost:
            logger.warning("the store did not take %d usage rows in time: they may be lost", lost)

    def _act(self) -> None:
        if self._timer is None and len(self._rows) < self._batch_rows:
            self._wait(self._flush_after_s, self._batch_rows)
        else:
            self._start()

    def _wait(self, delay_s: float, act_at: int) -> None:
        self._act_at = act_at
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._act_at = _NEVER
        self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Write whole batches, and first whatever waits; then rest until more are there."""
        while self._rows:
            if not await self._write_batch():
                break
            if len(self._rows) < self._batch_rows and not self._is_closing:
                break
        self._writing = None
        if self._is_closing:
            return
        if self._retry_s:
            self._wait(self._retry_s, _NEVER)
        elif self._rows:
            self._wait(self._flush_after_s, self._batch_rows)
        else:
            self._act_at = 1

    async def _write_batch(self) -> bool:
        rows = self._rows
        batch = [rows.popleft() for _ in range(min(len(rows), self._batch_rows))]
        self._in_hand = len(batch)
        try:
            kept = await self._store.commit(_keep, self._prices, batch)
        except asyncio.CancelledError:
            self._put_back(batch)
            raise
        except Exception as exc:
            # The outermost edge: nobody awaits this task, and its rows must outlive any failure.
            self._put_back(batch)
            self._note_failure(exc)
            return False
        finally:
            self._in_hand = 0
        self._written += kept
        self._dropped += len(batch) - kept
        if self._retry_s:
            self._retry_s = 0.0
            missed = self._dropped - self._dropped_before
            logger.warning("usage rows are written again; %d were dropped meanwhile", missed)
        return True

    def _put_back(self, batch: list[UsageRecord]) -> None:
        """In front again, as many of the newest as there is room for."""
        lost = max(0, len(batch) - (self._max_rows - len(self._rows)))
        self._dropped += lost
        self._rows.extendleft(reversed(batch[lost:]))

    def _note_failure(self, exc: Exception) -> None:
        if self._retry_s:
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
            return
        self._retry_s = _FIRST_RETRY_S
        self._dropped_before = self._dropped
        logger.warning(
            "usage rows cannot be written: %s; the last %d are kept until they can",
            exc,
            self._max_rows,
            exc_info=None if isinstance(exc, OpenbrError) else exc,
        )


def _keep(c: sqlite3.Connection, prices: Prices, batch: Sequence[UsageRecord]) -> int:
    return table.add(c, [_priced(_plausible(row), prices) for row in batch])


def _plausible(row: UsageRecord) -> UsageRecord:
    for count in (row.input_tokens, row.output_tokens, row.cached_tokens):
        if count is not None and not 0 <= count <= _MOST_TOKENS:
            nothing = dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens"))
            return msgspec.structs.replace(row, **nothing)
    return row


def _priced(row: UsageRecord, prices: Prices) -> table.Row:
    """The row as the table has it, with its cost."""
    cost: int | None = 0
    if row.model is not None and row.provider is not None and row.cache not in ("hit", "join"):
        cost = prices.cost_nano_usd(
            row.provider,
            row.model.removeprefix(row.provider + "/"),
            row.input_tokens,
            row.output_tokens,
            row.cached_tokens,
        )
    return (*msgspec.structs.astuple(row), cost)
