"""From a target to a connected socket: names, addresses, proxy, TLS.

In: a Target, the Proxy to go through. Out: a Connection, or an UpstreamError that says which step
failed and what to do about it. The rules that live only here: an address is checked after the name
resolved and then dialled itself, so that no second answer of DNS can change it; several addresses
are tried one after the other without waiting long for a silent one; certificates are
always verified.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from openbr.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from openbr.upstream.connection import Connection, ConnectionPool
from openbr.upstream.proxy import Proxy
from openbr.upstream.target import Target, is_loopback, is_refused, parse_address

STAGGER_S = 0.25
"""How long one address may be silent before the next is tried too (RFC 8305 section 5)."""
_MAX_TUNNEL_HEAD = 16 * 1024

Address = tuple[int, tuple[Any, ...]]
"""An address family and what socket.connect() takes."""


def default_ssl_context() -> ssl.SSLContext:
    """Verifies against the system's store; OpenSSL reads SSL_CERT_FILE and SSL_CERT_DIR itself."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


@dataclass(slots=True)
class _Step:
    """What is being waited for, should time run out."""

    name: str


class Dialer:
    """Opens connections. Keeps the TLS context, and the DNS questions that are being asked.

    Threads: the event loop's only; names are resolved in the loop's thread pool.
    """

    def __init__(self, ssl_context_factory: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._make_context = ssl_context_factory or default_ssl_context
        self._context: ssl.SSLContext | None = None
        # One question a name at a time: a hanging one must not take every thread of the pool.
        self._questions: dict[tuple[str, int], asyncio.Future[list[Address]]] = {}

    async def dial(
        self, target: Target, proxy: Proxy | None, pool: ConnectionPool, timeout_s: float
    ) -> Connection:
        """Raises: UpstreamError with reason timeout, dns, refused, tls or protocol."""
        step = _Step("")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._dial(target, proxy, pool, step)
        except TimeoutError as exc:
            raise UpstreamTimeoutError(
                f"{target.host_and_port}: connect timeout: {step.name} took longer than "
                f"{timeout_s:g} s"
            ) from exc

    async def _dial(
        self, target: Target, proxy: Proxy | None, pool: ConnectionPool, step: _Step
    ) -> Connection:
        loop = asyncio.get_running_loop()
        called: Target | Proxy = proxy or target
        who = f"the proxy {proxy.host_and_port}" if proxy else target.host_and_port
        step.name = f"finding the address of {called.host}"
        addresses = await self._resolve(called.host, called.port)
        step.name = f"connecting to {who}"
        try:
            connected = await _connect_any(loop, addresses)
        except OSError as exc:
            raise _unreachable(who, exc) from exc
        try:
            context = None
            if target.scheme == "https":
                if proxy is not None:
                    step.name = f"the tunnel through {who}"
                    await _open_tunnel(loop, connected, target, proxy)
                step.name = f"the TLS handshake with {target.host_and_port}"
                context = await self._tls(loop)
            return await _begin(loop, connected, target, context, pool)
        except BaseException:
            connected.close()
            raise

    async def _tls(self, loop: asyncio.AbstractEventLoop) -> ssl.SSLContext:
        if self._context is None:
            # Reading the system's store takes tens of milliseconds: not on the loop.
            context = await loop.run_in_executor(None, self._make_context)
            self._context = self._context or context
        return self._context

    async def _resolve(self, host: str, port: int) -> list[Address]:
        """Addresses to try, best first, none of them refused."""
        literal = parse_address(host)
        if literal is not None:
            return _permitted(host, [_address(str(literal), port)])
        if is_loopback(host):
            # RFC 6761: never asked of DNS. IPv4 first: local model servers rarely bind ::1.
            return [_address("127.0.0.1", port), _address("::1", port)]
        question = self._questions.get((host, port))
        if question is None:
            question = asyncio.ensure_future(_ask_dns(host, port))
            self._questions[host, port] = question
            question.add_done_callback(lambda _: self._answered(host, port))
        try:
            found = await asyncio.shield(question)
        except OSError as exc:
            raise UpstreamUnavailableError(
                f"the name {host} is not known: check the address and this machine's network "
                f"({exc.strerror or exc})",
                reason="dns",
            ) from exc
        return _permitted(host, found)

    def _answered(self, host: str, port: int) -> None:
        question = self._questions.pop((host, port))
        if not question.cancelled():
            question.exception()  # whoever asked may have left already


async def _ask_dns(host: str, port: int) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise OSError("a part of it is longer than DNS allows") from exc
    by_family: dict[int, list[Address]] = {}
    for family, _, _, _, place in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            by_family.setdefault(family, []).append((family, place))
    # The resolver's order, the families taking turns (RFC 8305 section 4).
    turns = zip_longest(*by_family.values())
    return [one for one in chain.from_iterable(turns) if one is not None]


def _permitted(host: str, addresses: list[Address]) -> list[Address]:
    allowed = [
        (family, place)
        for family, place in addresses
        if not is_refused(ipaddress.ip_address(str(place[0]).partition("%")[0]))
    ]
    if not allowed and addresses:
        raise UpstreamProtocolError(
            f"{host} leads to {addresses[0][1][0]}, a link-local or metadata address: "
            "these are never called",
            reason="refused",
        )
    if not allowed:
        raise UpstreamUnavailableError(f"the name {host} has no address", reason="dns")
    return allowed


def _address(host: str, port: int) -> Address:
    if ":" in host:
        return socket.AF_INET6, (host, port, 0, 0)
    return socket.AF_INET, (host, port)


async def _connect_any(loop: asyncio.AbstractEventLoop, addresses: list[Address]) -> socket.socket:
    """The first socket that connects. Raises: OSError, the first address's."""
    if len(addresses) == 1:
        return await _connect(loop, addresses[0])
    waiting = deque(addresses)
    running: list[asyncio.Task[socket.socket]] = []
    failures: list[BaseException] = []
    winner: socket.socket | None = None
    try:
        while winner is None and (waiting or running):
            if waiting:
                running.append(loop.create_task(_connect(loop, waiting.popleft())))
            done, _ = await asyncio.wait(
                running,
                timeout=STAGGER_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in [one for one in running if one in done]:
                if winner is not None:
                    break  # the rest is closed below
                running.remove(task)
                failure = task.exception()
                if failure is None:
                    winner = task.result()
                else:
                    failures.append(failure)
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late)
    if winner is None:
        raise failures[0]
    return winner


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _connect(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    family, place = address
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(connecting, place)
    except BaseException:
        connecting.close()
        raise
    return connecting


async def _open_tunnel(
    loop: asyncio.AbstractEventLoop, connected: socket.socket, target: Target, proxy: Proxy
) -> None:
    """CONNECT through the proxy; afterwards the socket is the target's."""
    place = target.host_and_port.encode()
    ask = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n" % (place, place)
    if proxy.authorization:
        ask += b"proxy-authorization: %b\r\n" % proxy.authorization
    head = b""
    try:
        await loop.sock_sendall(connected, ask + b"\r\n")
        while b"\r\n\r\n" not in head and len(head) <= _MAX_TUNNEL_HEAD:
            piece = await loop.sock_recv(connected, 4096)
            if not piece:
                break
            head += piece
    except OSError as exc:
        raise _unreachable(f"the proxy {proxy.host_and_port}", exc) from exc
    line = head.partition(b"\r\n")[0].split(b" ", 2)
    if not (
        len(line) >= 2
        and line[0].startswith(b"HTTP/1.")
        and line[1].isdigit()
        and b"\r\n\r\n" in head
    ):
        raise UpstreamProtocolError(f"the proxy {proxy.host_and_port} does not answer in HTTP")
    status = int(line[1])
    if status == 407:
        raise refused_by_proxy(proxy)
    if not 200 <= status < 300:
        raise UpstreamUnavailableError(
            f"the proxy {proxy.host_and_port} did not connect to {target.host_and_port}: "
            f"it answered {status}",
            reason="refused",
        )
    if not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") != 1:
        # Who is called speaks second in TLS: what comes before is not theirs.
        raise UpstreamProtocolError(f"the proxy {proxy.host_and_port} sent more than its answer")


def refused_by_proxy(proxy: Proxy) -> UpstreamError:
    hint = "other ones" if proxy.authorization else "some"
    return UpstreamUnavailableError(
        f"the proxy {proxy.host_and_port} asks for a user and a password (407): put {hint} into "
        "its address, http://USER:PASSWORD@HOST:PORT, in HTTP_PROXY and HTTPS_PROXY",
        reason="refused",
    )


async def _begin(
    loop: asyncio.AbstractEventLoop,
    connected: socket.socket,
    target: Target,
    context: ssl.SSLContext | None,
    pool: ConnectionPool,
) -> Connection:
    """Hand the socket to the loop, through the TLS handshake where there is one."""
    connection = Connection(loop, pool)
    try:
        await loop.create_connection(
            lambda: connection,
            sock=connected,
            ssl=context,
            server_hostname=target.host if context is not None else None,
        )
    except ssl.SSLCertVerificationError as exc:
        raise _untrusted(target, exc) from exc
    except ssl.SSLError as exc:
        raise UpstreamUnavailableError(
            f"{target.host_and_port} does not speak TLS as we do ({exc.reason or exc}): "
            "is it an http:// address?",
            reason="tls",
        ) from exc
    except OSError as exc:
        if context is None:
            raise _unreachable(target.host_and_port, exc) from exc
        raise UpstreamUnavailableError(
            f"{target.host_and_port} hung up during the TLS handshake: is it an http:// address, "
            "or a server that asks for a client certificate?",
            reason="tls",
        ) from exc
    return connection


def _untrusted(target: Target, exc: ssl.SSLCertVerificationError) -> UpstreamError:
    """What to do about a certificate, by OpenSSL's verify code (x509_vfy.h)."""
    said = exc.verify_message or str(exc)
    advice = (
        "add its authority to this machine's certificates, or name a file that holds it in "
        "SSL_CERT_FILE"
    )
    if exc.verify_code in (9, 10):
        advice = "ask its owner to renew it, or check this machine's clock"
    elif exc.verify_code in (62, 64):
        advice = "put the name that its certificate holds into base_url"
    return UpstreamUnavailableError(
        f"the certificate of {target.host_and_port} cannot be trusted ({said}): {advice}",
        reason="tls",
    )


def _unreachable(who: str, exc: OSError) -> UpstreamError:
    if isinstance(exc, ConnectionRefusedError):
        return UpstreamUnavailableError(
            f"{who} refused the connection: is the server running?", reason="refused"
        )
    if exc.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return UpstreamUnavailableError(
            f"{who} cannot be reached: {exc.strerror or exc}", reason="refused"
        )
    return UpstreamUnavailableError(
        f"{who} closed the connection at once ({exc.strerror or exc})", reason="server"
    )
