"""The way out: a keep-alive HTTP/1.1 client on asyncio protocols, parsed by httptools.

In: a Target, a request's bytes, Timeouts. Out: an UpstreamResponse, or an UpstreamError with its
reason. Only here does openbr speak HTTP to other servers, and redirects are not followed.

    target.py       base_url -> Target; which addresses are never called
    proxy.py        Target + the environment's proxies -> Proxy or none
    dialer.py       Target -> connected socket: DNS, several addresses, CONNECT, TLS
    request.py      headers -> bytes; Timeouts
    response.py     UpstreamResponse
    connection.py   one connection: what is accepted, timeouts, backpressure
    pool.py         Upstream: requests over kept connections
"""

from __future__ import annotations

from openbr.upstream.pool import TargetStats, Upstream, UpstreamStats
from openbr.upstream.request import Timeouts, encode_headers
from openbr.upstream.response import UpstreamResponse
from openbr.upstream.target import Target

__all__ = [
    "Target",
    "TargetStats",
    "Timeouts",
    "Upstream",
    "UpstreamResponse",
    "UpstreamStats",
    "encode_headers",
]
