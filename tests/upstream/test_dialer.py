"""Names, addresses and TLS: which step failed, and what the message says to do."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_upstream import FakeUpstream, black_hole, chunked, close, refused, reply

from openbr.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from openbr.upstream import Target, Upstream
from upstream.calls import LIMITS, client

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="every 127.0.0.0/8 address exists on Linux alone"
)


@pytest.fixture
def on_asyncio() -> Callable[[Any], Any]:
    """The loop whose resolver is Python's, which a test can answer for."""
    return asyncio.run


Resolver = Callable[[str], list[str]]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Callable[[Resolver], list[str]]:
    """Answers instead of the machine's resolver; gives the list of names that were asked."""

    def install(resolve: Resolver) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: Any, port: int, *_: Any, **__: Any) -> list[Any]:
            asked.append(host)
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
                if ":" in address
                else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in resolve(host)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return install


def named(server: FakeUpstream, name: str = "model.example") -> Target:
    return Target.parse(f"{server.url.replace('127.0.0.1', name)}")


async def fails(target: Target, match: str, reason: str, **limits: float) -> UpstreamError:
    upstream = Upstream()
    with pytest.raises(UpstreamError, match=match) as caught:
        await upstream.request(target, b"GET", b"/", b"", b"", replace(LIMITS, **limits))
    assert caught.value.reason == reason
    assert upstream.stats().open == 0
    await upstream.aclose()
    return caught.value


def test_refused_at_once(run: Any) -> None:
    async def main() -> None:
        with refused() as url:
            begun = time.monotonic()
            await fails(Target.parse(url), "refused the connection: is the server", "refused")
            assert time.monotonic() - begun < 0.5

    run(main())


def test_a_name_is_resolved(on_asyncio: Any, dns: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"x")) as server, client(server) as c:
            asked = dns(lambda host: ["127.0.0.1"])
            c.target = named(server)
            assert await c.get() == (200, b"x")
            assert await c.get() == (200, b"x")
            assert asked == ["model.example"]
            assert server.requests[0].headers["host"] == f"model.example:{server.port}"

    on_asyncio(main())


def test_an_unknown_name(on_asyncio: Any, dns: Any) -> None:
    def unknown(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    dns(unknown)
    error = on_asyncio(
        fails(Target.parse("http://model.example"), "model.example is not known", "dns")
    )
    assert isinstance(error, UpstreamUnavailableError)


def test_a_name_without_an_address(on_asyncio: Any, dns: Any) -> None:
    dns(lambda host: [])
    on_asyncio(fails(Target.parse("http://model.example"), "has no address", "dns"))


def test_this_machine_is_not_asked_of_dns(on_asyncio: Any, dns: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"x")) as server, client(server) as c:
            asked = dns(lambda host: [])
            for name in ("localhost", "models.localhost"):
                c.target = named(server, name)
                assert await c.get() == (200, b"x")
            assert asked == []

    on_asyncio(main())


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.1.1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "100.100.100.200",
    ],
)
def test_a_name_that_leads_to_metadata_is_refused(on_asyncio: Any, dns: Any, address: str) -> None:
    dns(lambda host: [address])
    error = on_asyncio(fails(Target.parse("http://model.example"), "never called", "refused"))
    assert isinstance(error, UpstreamProtocolError)


def test_only_the_permitted_addresses_of_a_name_are_called(on_asyncio: Any, dns: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"x")) as server, client(server) as c:
            dns(lambda host: ["169.254.169.254", "127.0.0.1"])
            c.target = named(server)
            assert await c.get() == (200, b"x")

    on_asyncio(main())


@linux_only
def test_the_next_address_when_one_refuses(on_asyncio: Any, dns: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"x")) as server, client(server) as c:
            dns(lambda host: ["127.0.0.2", "127.0.0.3", "127.0.0.1"])
            c.target = named(server)
            assert await c.get() == (200, b"x")
            assert len(server.connections) == 1

    on_asyncio(main())


@linux_only
def test_the_next_address_when_one_is_silent(on_asyncio: Any, dns: Any) -> None:
    async def main() -> None:
        with black_hole() as url:
            server = FakeUpstream(reply(b"x"), host="127.0.0.2")
            server.port = Target.parse(url).port
            async with server, client(server) as c:
                dns(lambda host: ["127.0.0.1", "127.0.0.2"])
                c.target = Target.parse(f"http://model.example:{server.port}")
                begun = time.monotonic()
                assert await c.get() == (200, b"x")
                assert time.monotonic() - begun < 2

    on_asyncio(main())


@linux_only
def test_every_address_refuses(on_asyncio: Any, dns: Any) -> None:
    with refused() as url:
        dns(lambda host: ["127.0.0.2", "127.0.0.1"])
        target = replace(Target.parse(url), host="model.example")
        on_asyncio(fails(target, "refused the connection", "refused"))


def test_a_hanging_name_takes_one_thread_and_nobody_else(on_asyncio: Any, dns: Any) -> None:
    async def main() -> None:
        release = threading.Event()

        def hang(host: str) -> list[str]:
            if host == "hanging.example":
                release.wait(10)
            return ["127.0.0.1"]

        asked = dns(hang)
        async with FakeUpstream(reply(b"x")) as server, client(server) as c:
            c.limits = replace(LIMITS, connect_s=0.1)
            c.target = named(server, "hanging.example")
            results = await asyncio.gather(*(c.get() for _ in range(50)), return_exceptions=True)
            assert {type(result) for result in results} == {UpstreamTimeoutError}
            assert "finding the address of hanging.example" in str(results[0])
            assert asked == ["hanging.example"]
            c.target = named(server)
            assert await c.get() == (200, b"x")
            release.set()

    on_asyncio(main())


# TLS


def test_tls_is_verified_and_kept(run: Any, authority: Any) -> None:
    async def main() -> None:
        tls = authority.server("127.0.0.1", "model.example")
        answers = [reply(b"one"), chunked(b"t", b"wo"), close(b"HTTP/1.1 200 OK\r\n\r\nthree")]
        async with (
            FakeUpstream(*answers, tls=tls) as server,
            client(server, ssl_context_factory=authority.client) as c,
        ):
            assert server.url.startswith("https://")
            assert await c.get() == (200, b"one")
            assert await c.get(body=b"x" * 1_000_000) == (200, b"two")
            assert len(server.connections) == 1
            assert len(server.requests[1].body) == 1_000_000
            assert await c.get() == (200, b"three")

    run(main())


@pytest.mark.parametrize(
    ("name", "days", "is_trusted", "match"),
    [
        ("127.0.0.1", 7, False, "cannot be trusted.*SSL_CERT_FILE"),
        ("other.example", 7, True, "cannot be trusted.*base_url"),
        ("127.0.0.1", -1, True, "cannot be trusted.*expired.*renew"),
    ],
)
def test_a_certificate_that_does_not_hold(
    run: Any, authority: Any, name: str, days: int, is_trusted: bool, match: str
) -> None:
    async def main() -> None:
        factory = authority.client if is_trusted else None
        tls = authority.server(name, days=days)
        async with (
            FakeUpstream(tls=tls) as server,
            client(server, ssl_context_factory=factory) as c,
        ):
            for _ in range(2):
                with pytest.raises(UpstreamUnavailableError, match=match) as caught:
                    await c.ask()
                assert caught.value.reason == "tls"
            assert server.requests == []
            await server.until(lambda s: not s.open_connections)

    run(main())


def test_ssl_cert_file_is_honoured(
    run: Any, authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    async def main() -> None:
        tls = authority.server("127.0.0.1")
        async with FakeUpstream(reply(b"x"), tls=tls) as server, client(server) as c:
            assert await c.get() == (200, b"x")

    run(main())


def test_the_tls_context_is_made_late_and_once(run: Any, authority: Any) -> None:
    async def main() -> None:
        made: list[int] = []

        def make() -> Any:
            made.append(threading.get_ident())
            return authority.client()

        tls = authority.server("127.0.0.1")
        async with FakeUpstream(reply(b"x")) as plain, client(plain, ssl_context_factory=make) as c:
            await c.get()
            assert made == []
            async with FakeUpstream(reply(b"x"), tls=tls) as server:
                c.target = Target.parse(server.url)
                for _ in range(3):
                    await c.get()
                assert len(made) == 1
                assert made[0] != threading.get_ident(), "not on the loop's own thread"

    run(main())


def test_https_to_a_server_without_tls(run: Any) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            writer.close()

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.close()

        for handler in (serve, hang_up):
            listening = await asyncio.start_server(handler, "127.0.0.1", 0)
            port = listening.sockets[0].getsockname()[1]
            await fails(Target.parse(f"https://127.0.0.1:{port}"), "http:// address", "tls")
            listening.close()

    run(main())


def test_http_to_a_server_with_tls(run: Any, authority: Any) -> None:
    async def main() -> None:
        tls = authority.server("127.0.0.1")
        async with FakeUpstream(reply(), tls=tls) as server, client(server) as c:
            c.target = Target.parse(server.url.replace("https", "http"))
            with pytest.raises((UpstreamProtocolError, UpstreamUnavailableError)):
                await c.ask()

    run(main())
