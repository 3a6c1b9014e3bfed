"""What all connections of a server share.

In: limits. Out: uvicorn's ServerState, with a Date line made once a second when it is asked for.
The rule that lives only here: whoever waits for the last request or the last connection is told,
and never looks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import unquote

import httptools
from uvicorn.server import ServerState

from openbr.stream import CLIENT_GONE

logger = logging.getLogger(__name__)

_MAX_KEPT_URL = 64
_MAX_KEPT_URLS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one connection, and of all. Times are seconds.

    `head_s`: a request's head must be whole so long after its first byte, and a new connection
    must have begun one. `body_s`: the longest silence inside a body.
    `body_rest_s`: how long the rest of a body may come after its answer. `write_s`: how long a
    client may take nothing of what is written to it.
    """

    max_connections: int = 4000
    max_spare: int = 64
    """Further connections that are told 503; beyond these they are cut."""
    max_head_bytes: int = 32 * 1024
    max_headers: int = 128
    max_pipelined: int = 64
    keep_alive_s: float = 65.0
    head_s: float = 15.0
    body_s: float = 30.0
    body_rest_s: float = 5.0
    write_s: float = 60.0


class State(ServerState):
    """Threads: event loop only."""

    def __init__(
        self,
        limits: Limits,
        on_rest: Callable[[], None] = lambda: None,
        spare: Callable[[asyncio.Task[None]], bool] = lambda _: False,
    ) -> None:
        # Not super().__init__(): it assigns default_headers, which is made on demand here.
        self.total_requests = 0
        self.connections = set()
        self.tasks = set()
        self.limits = limits
        self.draining = False
        self.on_rest = on_rest
        self._spare = spare
        self._told_of_tls = False
        self._second = -1
        self._date_line = b""
        self._urls: dict[bytes, tuple[str, bytes, bytes]] = {}
        self._waiting: asyncio.Future[None] | None = None

    @property
    def date_line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date_line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._date_line

    def split_url(self, url: bytes) -> tuple[str, bytes, bytes]:
        """Path, raw path and query of a request's target. Programs ask for the same few.

        Raises: httptools.HttpParserInvalidURLError, UnicodeDecodeError.
        """
        found = self._urls.get(url)
        if found is None:
            parsed = httptools.parse_url(url)
            raw_path = parsed.path
            path = raw_path.decode("ascii")
            if "%" in path:
                path = unquote(path)
            found = path, raw_path, parsed.query or b""
            if len(url) <= _MAX_KEPT_URL and len(self._urls) < _MAX_KEPT_URLS:
                self._urls[url] = found
        return found

    def tell_of_tls(self) -> None:
        """Once: a browser would repeat it without end."""
        if not self._told_of_tls:
            self._told_of_tls = True
            logger.warning("somebody spoke https to this http port; --tls makes it https")

    def finish_task(self, task: asyncio.Task[None] | None) -> None:
        """Called at the end of a request, maybe twice."""
        self.tasks.discard(task)
        if not self.tasks:
            self.on_rest()

    def leave(self, task: asyncio.Task[None]) -> None:
        """Its client left: it ends, unless others wait for what it does."""
        if not self._spare(task):
            self.cancel(task)

    def cancel(self, task: asyncio.Task[None]) -> None:
        # One that has not begun yet never gets to finish by itself.
        task.add_done_callback(self.finish_task)
        task.cancel(CLIENT_GONE)

    def lose_connection(self) -> None:
        if not self.connections and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait_for_requests(self) -> None:
        while self.tasks:
            await asyncio.wait(self.tasks)

    async def wait_for_connections(self) -> None:
        while self.connections:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
