"""The usage rows that a gateway writes, read from beside it."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Self

from gateway_process import GatewayProcess

from openbr.store import usage
from openbr.store.usage import StoredUsage
from tests.data_plane.client import DEADLINE_S


class Rows:
    """`with Rows(gateway) as rows:`, then `await rows.new(3)`: exactly so many since then."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._path = gateway.state / "openbr.sqlite3"
        self._after = 0

    def __enter__(self) -> Self:
        self.connection = sqlite3.connect(self._path, isolation_level=None)
        self._after = max((row.id for row in self._found()), default=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def now(self) -> list[StoredUsage]:
        """Those that are there, in the order in which their requests ended."""
        return sorted((r for r in self._found() if r.id > self._after), key=lambda r: r.id)

    async def new(self, count: int) -> list[StoredUsage]:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.now()) < count:
                await asyncio.sleep(0.005)
        found = self.now()
        assert len(found) == count
        return found

    def _found(self) -> list[StoredUsage]:
        return usage.recent(self.connection, 10_000)
