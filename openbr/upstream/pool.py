"""Upstream: requests over kept connections, one pool for each server.

In: a target and a request's bytes. Out: an UpstreamResponse. The rules that live only here: the
connection used last is used first, so that a quiet pool shrinks; a kept connection that died
before a byte of the answer came is replaced once, by a new one; one timer, which exists
only while something is idle, closes what stayed idle too long.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from openbr.errors import UpstreamUnavailableError
from openbr.upstream.connection import WRITE_PIECE, Connection
from openbr.upstream.dialer import Dialer, refused_by_proxy
from openbr.upstream.proxy import Proxy, find_proxy
from openbr.upstream.request import Timeouts
from openbr.upstream.response import UpstreamResponse
from openbr.upstream.target import Target

_BODYLESS = frozenset((b"GET", b"HEAD", b"DELETE"))
_METHOD = re.compile(rb"[A-Z]{1,16}")
_PATH = re.compile(rb"/[!-~]*")
_MAX_LINES = 1024
_NO_PROXIES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStats:
    """Connections to one server: `open` counts them all, `idle` those that wait for work."""

    target: str
    open: int
    idle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamStats:
    open: int
    idle: int
    targets: tuple[TargetStats, ...]


class Upstream:
    """The HTTP client of one gateway.

    `proxies`: config.proxies. `idle_close_s`: 60, longer than a person thinks between two
    messages and shorter than most load balancers wait. `ssl_context_factory`: for the first https
    target, in a thread; by default the system's certificates.
    Threads: the event loop's only.
    """

    def __init__(
        self,
        *,
        proxies: Mapping[str, str] = _NO_PROXIES,
        max_idle_per_target: int = 64,
        idle_close_s: float = 60.0,
        ssl_context_factory: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._proxies = dict(proxies)
        self._max_idle = max_idle_per_target
        self._idle_close_s = idle_close_s
        self._dialer = Dialer(ssl_context_factory)
        self._pools: dict[tuple[str, str, int], _Pool] = {}
        # (id of a target, method, path) -> the pool, the ready first lines of such a request, and
        # the target, which keeps that id its own. By id, because a target's hash is four hashes.
        self._lines: dict[tuple[int, bytes, bytes], tuple[_Pool, bytes, Target]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._all_gone: asyncio.Future[None] | None = None

    async def request(
        self,
        target: Target,
        method: bytes,
        path: bytes,
        headers: bytes,
        body: bytes,
        timeouts: Timeouts,
    ) -> UpstreamResponse:
        """Send a request; returns with the head of its answer, whatever its status.

        `path` follows the target's prefix; `headers` comes from encode_headers(). Redirects are
        answers. A cancelled call closes its connection at once.
        Raises: UpstreamError.
        """
        try:
            pool, lines, _ = self._lines[id(target), method, path]
        except KeyError:
            pool, lines = self._add_lines(target, method, path)
        is_large = len(body) > WRITE_PIECE
        if body or method not in _BODYLESS:
            sent_now = b"" if is_large else body
            head = b"%b%bcontent-length: %d\r\n\r\n%b" % (lines, headers, len(body), sent_now)
        else:
            head = b"%b%b\r\n" % (lines, headers)
        total_at = pool.loop.time() + timeouts.total_s
        connection = pool.take()
        while True:
            if connection is None:
                connection = await self._dial(target, pool, timeouts)
            response = connection.send(head, timeouts, total_at, is_bodyless=method == b"HEAD")
            try:
                if is_large:
                    await connection.write_body(body)
                await response.arrived
            except BaseException:
                response.close()
                raise
            if response.status:
                if response.status == 407 and pool.proxy is not None and target.scheme == "http":
                    response.close()
                    raise refused_by_proxy(pool.proxy)
                return response
            if not (connection.is_reused and response.is_lost and not response.is_heard):
                assert response.error is not None
                raise response.error
            connection = None  # it died while it was idle, most likely: a new one, once

    async def _dial(self, target: Target, pool: _Pool, timeouts: Timeouts) -> Connection:
        self._check_open()
        timeout_s = min(timeouts.connect_s, timeouts.total_s)
        connection = await self._dialer.dial(target, pool.proxy, pool, timeout_s)
        if self._is_closed:
            connection.abort(_stopped())
            self._check_open()
        return connection

    def _add_lines(self, target: Target, method: bytes, path: bytes) -> tuple[_Pool, bytes]:
        """Check and keep what every such request begins with."""
        self._check_open()
        if not _METHOD.fullmatch(method) or not _PATH.fullmatch(path):
            raise ValueError(f"not a method and a path: {method!r} {path!r}")
        place = (target.scheme, target.host, target.port)
        pool = self._pools.get(place)
        if pool is None:
            proxy = find_proxy(target, self._proxies)
            pool = _Pool(self, target.host_and_port, proxy, asyncio.get_running_loop())
            self._pools[place] = pool
        where = target.prefix.encode() + path
        authority = target.authority.encode()
        extra = b""
        if pool.proxy is not None and target.scheme == "http":
            where = b"http://" + authority + where
            if pool.proxy.authorization:
                extra = b"proxy-authorization: %b\r\n" % pool.proxy.authorization
        # Without "identity" a server may compress as it likes (RFC 9110 section 12.5.3).
        lines = b"%b %b HTTP/1.1\r\nhost: %b\r\n%baccept-encoding: identity\r\n" % (
            method,
            where,
            authority,
            extra,
        )
        if len(self._lines) >= _MAX_LINES:
            self._lines.clear()
        self._lines[id(target), method, path] = pool, lines, target
        return pool, lines

    def _check_open(self) -> None:
        if self._is_closed:
            raise _stopped()

    # Idle connections.

    def keep(self, connection: Connection, pool: _Pool) -> None:
        """A connection has nothing to do."""
        if len(pool.idle) >= self._max_idle or self._is_closed:
            connection.abort(UpstreamUnavailableError("enough idle connections"))
            return
        pool.idle.append(connection)
        if self._sweep is None:
            at = connection.idle_since + self._idle_close_s
            self._sweep = pool.loop.call_at(at, self._close_idle, pool.loop)

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what was idle for too long, and come back only if something is left."""
        self._sweep = None
        # Loops count in milliseconds: what is due within one is due.
        since = loop.time() - self._idle_close_s + 0.001
        left: list[float] = []
        for pool in self._pools.values():
            old = [one for one in pool.idle if one.idle_since <= since]
            del pool.idle[: len(old)]  # used last, appended last: the old ones are in front
            for connection in old:
                connection.abort(UpstreamUnavailableError("idle for too long"))
            left += [one.idle_since for one in pool.idle[:1]]
        if left:
            at = min(left) + self._idle_close_s
            self._sweep = loop.call_at(at, self._close_idle, loop)

    def gone(self) -> None:
        """A connection is closed for good."""
        if self._all_gone is not None and not any(p.open for p in self._pools.values()):
            self._all_gone.set_result(None)
            self._all_gone = None

    def stats(self) -> UpstreamStats:
        targets = tuple(
            TargetStats(target=pool.name, open=len(pool.open), idle=len(pool.idle))
            for pool in self._pools.values()
            if pool.open
        )
        return UpstreamStats(
            open=sum(one.open for one in targets),
            idle=sum(one.idle for one in targets),
            targets=targets,
        )

    async def aclose(self) -> None:
        """Close every connection, in use or not, and wait until they are closed."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for pool in self._pools.values():
            pool.idle.clear()
            for connection in tuple(pool.open):
                connection.abort(_stopped())
        if any(pool.open for pool in self._pools.values()):
            if self._all_gone is None:
                self._all_gone = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._all_gone)


class _Pool:
    """Connections to one server. `idle` holds the one used last at its end."""

    __slots__ = ("_upstream", "idle", "loop", "name", "open", "proxy")

    def __init__(
        self, upstream: Upstream, name: str, proxy: Proxy | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._upstream = upstream
        self.name = name
        self.proxy = proxy
        self.loop = loop
        self.idle: list[Connection] = []
        self.open: set[Connection] = set()

    def take(self) -> Connection | None:
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.is_usable:
                return connection
        return None

    def opened(self, connection: Connection) -> None:
        self.open.add(connection)

    def take_back(self, connection: Connection) -> None:
        self._upstream.keep(connection, self)

    def forget(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self._upstream.gone()


def _stopped() -> UpstreamUnavailableError:
    return UpstreamUnavailableError("openbr is stopping")
