"""What the tests of upstream/ share: limits, and a client that is closed after use."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fake_upstream import FakeUpstream

from openbr.upstream import Target, Timeouts, Upstream, UpstreamResponse

LIMITS = Timeouts(connect_s=5, first_byte_s=5, idle_s=5, total_s=20)
HEAD = b"HTTP/1.1 200 OK\r\n"


class Client:
    """An Upstream and the server it talks to."""

    def __init__(self, upstream: Upstream, server: FakeUpstream, limits: Timeouts) -> None:
        self.upstream = upstream
        self.limits = limits
        self.target = Target.parse(server.url)

    async def ask(
        self, path: bytes = b"/", body: bytes = b"", method: bytes = b"POST", headers: bytes = b""
    ) -> UpstreamResponse:
        return await self.upstream.request(self.target, method, path, headers, body, self.limits)

    async def get(self, max_bytes: int = 1 << 20, **how: Any) -> tuple[int, bytes]:
        response = await self.ask(**how)
        return response.status, await response.read(max_bytes)


@contextlib.asynccontextmanager
async def client(
    server: FakeUpstream, limits: Timeouts = LIMITS, **options: Any
) -> AsyncIterator[Client]:
    upstream = Upstream(**options)
    try:
        yield Client(upstream, server, limits)
    finally:
        await upstream.aclose()
        stats = upstream.stats()
        assert (stats.open, stats.idle) == (0, 0)
