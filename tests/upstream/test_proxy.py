"""Which proxy a target is reached through, and the way through it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_upstream import FakeUpstream, reply

from openbr.errors import UpstreamProtocolError, UpstreamTimeoutError, UpstreamUnavailableError
from openbr.upstream import Target, Timeouts, Upstream
from openbr.upstream.proxy import Proxy, find_proxy

LIMITS = Timeouts(connect_s=2, first_byte_s=2, idle_s=2, total_s=10)
PROXY = "http://proxy.example:3128"


def found(url: str, **proxies: str) -> Proxy | None:
    return find_proxy(Target.parse(url), proxies)


def test_each_scheme_has_its_proxy() -> None:
    both = {"http": "http://a:1", "https": "http://b:2"}
    assert found("http://x", **both) == Proxy("a", 1)
    assert found("https://x", **both) == Proxy("b", 2)
    assert found("http://x", all="http://c:3") == Proxy("c", 3)
    assert found("https://x", http="http://a:1") is None
    assert found("http://x") is None


def test_the_spellings_of_a_proxy() -> None:
    assert found("http://x", http="proxy.example:3128") == Proxy("proxy.example", 3128)
    assert found("http://x", http="http://[2001:db8::1]:8080/") == Proxy("2001:db8::1", 8080)
    assert found("http://x", http="http://proxy") == Proxy("proxy", 80)
    with_user = found("http://x", http="http://us%40er:p%3Ass@proxy:1")
    assert with_user is not None
    assert with_user.authorization == b"Basic " + base64.b64encode(b"us@er:p:ss")
    assert "cDpz" not in repr(with_user) and "Basic" not in repr(with_user)


@pytest.mark.parametrize(
    "text", ["socks5://user:canary@h:1", "https://h:1", "http://", "http://h:99999"]
)
def test_a_proxy_that_cannot_be_used_says_so(text: str) -> None:
    with pytest.raises(UpstreamUnavailableError, match="prox") as caught:
        found("http://x", all=text)
    assert "canary" not in str(caught.value)
    assert found("http://127.0.0.1:11434", all=text) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:11434",
        "http://127.0.0.1",
        "http://[::1]:8080",
        "https://app.localhost",
        "http://127.1.2.3",
    ],
)
def test_this_machine_is_never_behind_a_proxy(url: str) -> None:
    assert found(url, all=PROXY) is None


@pytest.mark.parametrize(
    ("url", "no", "direct"),
    [
        ("http://a.example.com", "*", True),
        ("http://a.example.com", "example.com", True),
        ("http://a.example.com", ".example.com", True),
        ("http://a.example.com", "*.example.com", True),
        ("http://example.com", ".example.com", True),
        ("http://a.example.com", "EXAMPLE.com.", True),
        ("http://badexample.com", "example.com", False),
        ("http://a.example.com", "b.example.com, a.example.com", True),
        ("http://a.example.com", "b.example.com a.example.com", True),
        ("http://a.example.com", "com:80", True),
        ("http://a.example.com", "example.com:8080", False),
        ("http://a.example.com:8080", "example.com:8080", True),
        ("http://a.example.com", "", False),
        ("http://a.example.com", ", ,", False),
        ("http://10.1.2.3", "10.0.0.0/8", True),
        ("http://10.1.2.3", "10.1.2.3", True),
        ("http://10.1.2.3:5", "10.1.2.3:5", True),
        ("http://10.1.2.3", "10.1.2.3:5", False),
        ("http://11.1.2.3", "10.0.0.0/8", False),
        ("http://10.1.2.3", "3", False),
        ("http://[2001:db8::5]", "2001:db8::/32", True),
        ("http://[2001:db8::5]", "2001:db8::5", True),
        ("http://[2001:db8::5]:9", "[2001:db8::5]:9", True),
        ("http://[2001:db8::5]", "[2001:db8::5]:9", False),
        ("http://[2001:db8::5]", "10.0.0.0/8", False),
        ("http://a.example.com", "10.0.0.0/99", False),
    ],
)
def test_no_proxy(url: str, no: str, direct: bool) -> None:
    assert (found(url, all=PROXY, no=no) is None) is direct


class FakeProxy:
    """CONNECT and absolute-form, to one place whatever the name. Records the heads it got."""

    def __init__(self, port: int, *, answer: bytes | None = None, is_silent: bool = False) -> None:
        self.heads: list[bytes] = []
        self.open = 0
        self._port = port
        self._answer = answer
        self._is_silent = is_silent

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self._is_silent:
                await reader.read()
            elif self._answer is not None:
                writer.write(self._answer)
            else:
                await self._forward(head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self._port)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: fake\r\n\r\n")
        else:
            onward.write(head)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(reader, onward), pump(there, writer))
        finally:
            onward.close()


@contextlib.asynccontextmanager
async def fake_proxy(port: int, **how: Any) -> AsyncIterator[tuple[FakeProxy, str]]:
    proxy = FakeProxy(port, **how)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def get(upstream: Upstream, url: str) -> tuple[int, bytes]:
    target = Target.parse(url)
    response = await upstream.request(target, b"GET", b"/models", b"", b"", LIMITS)
    try:
        return response.status, await response.read(10_000)
    finally:
        response.close()


def test_plain_http_goes_in_absolute_form(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply({"n": 1})) as there, fake_proxy(there.port) as (proxy, place):
            upstream = Upstream(proxies={"http": f"http://user:secret@{place}"})
            for _ in range(2):
                assert await get(upstream, "http://model.example:8080/v1") == (200, b'{"n": 1}')
            await upstream.aclose()
            assert there.requests[0].path == "http://model.example:8080/v1/models"
            assert there.requests[0].headers["host"] == "model.example:8080"
            credential = base64.b64encode(b"user:secret").decode()
            assert there.requests[0].headers["proxy-authorization"] == f"Basic {credential}"
            assert len(proxy.heads) == 1, "the connection to the proxy was kept"

    run(main())


def test_https_goes_through_a_tunnel(run: Any, authority: Any) -> None:
    async def main() -> None:
        tls = authority.server("model.example")
        async with (
            FakeUpstream(reply({"n": 1}), tls=tls) as there,
            fake_proxy(there.port) as (proxy, place),
        ):
            upstream = Upstream(
                proxies={"https": f"http://user:secret@{place}"},
                ssl_context_factory=authority.client,
            )
            assert await get(upstream, "https://model.example/v1") == (200, b'{"n": 1}')
            assert await get(upstream, "https://model.example/v1") == (200, b'{"n": 1}')
            await upstream.aclose()
        (head,) = proxy.heads
        assert head.startswith(b"CONNECT model.example:443 HTTP/1.1\r\nhost: model.example:443\r\n")
        assert b"proxy-authorization: Basic " in head
        assert there.requests[0].path == "/v1/models"
        assert "proxy-authorization" not in there.requests[0].headers

    run(main())


def test_a_proxy_that_wants_a_password(run: Any) -> None:
    async def main() -> None:
        refusal = b"HTTP/1.1 407 Authentication Required\r\ncontent-length: 0\r\n\r\n"
        async with fake_proxy(1, answer=refusal) as (_, place):
            upstream = Upstream(proxies={"all": place})
            for url in ("http://model.example", "https://model.example"):
                with pytest.raises(UpstreamUnavailableError, match="407") as caught:
                    await get(upstream, url)
                assert caught.value.reason == "refused"
            await upstream.aclose()

    run(main())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 503 No\r\n\r\n", UpstreamUnavailableError),
        (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno!", UpstreamUnavailableError),
        (b"HTTP/1.1 200 OK\r\n\r\nearly bytes", UpstreamProtocolError),
        (b"HTTP/1.1 200 OK\r\n", UpstreamProtocolError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", UpstreamProtocolError),
        (b"HTTP/1.1 two\r\n\r\n", UpstreamProtocolError),
        (b"x" * 40_000, UpstreamProtocolError),
        (b"", UpstreamProtocolError),
    ],
)
def test_a_proxy_that_does_not_connect(run: Any, answer: bytes, kind: type[Exception]) -> None:
    async def main() -> None:
        async with fake_proxy(1, answer=answer) as (_, place):
            upstream = Upstream(proxies={"https": place})
            with pytest.raises(kind, match=place.replace(".", r"\.")):
                await get(upstream, "https://model.example")
            await upstream.aclose()

    run(main())


def test_a_silent_proxy_is_a_connect_timeout(run: Any) -> None:
    async def main() -> None:
        async with fake_proxy(1, is_silent=True) as (_, place):
            upstream = Upstream(proxies={"https": place})
            limits = Timeouts(connect_s=0.1, first_byte_s=5, idle_s=5, total_s=5)
            with pytest.raises(UpstreamTimeoutError, match="connect timeout: the tunnel"):
                await upstream.request(
                    Target.parse("https://model.example"), b"GET", b"/", b"", b"", limits
                )
            await upstream.aclose()

    run(main())


def test_a_proxy_that_is_not_there(run: Any) -> None:
    async def main() -> None:
        from fake_upstream import refused

        with refused() as url:
            upstream = Upstream(proxies={"all": url})
            with pytest.raises(UpstreamUnavailableError, match="the proxy .* refused") as caught:
                await get(upstream, "http://model.example")
            assert caught.value.reason == "refused"
            await upstream.aclose()

    run(main())
