"""What leaves for the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_upstream import FakeUpstream, reply

from openbr.upstream import Target, encode_headers
from upstream.calls import client


def test_encode_headers() -> None:
    pairs = [("authorization", "Bearer k"), ("X-Name", " ação \t"), ("empty", "")]
    expected = "authorization: Bearer k\r\nX-Name: ação\r\nempty: \r\n"
    assert encode_headers(pairs) == expected.encode("latin-1")
    assert encode_headers([]) == b""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", "canary\r\nx: y"),
        ("a", "canary\n"),
        ("a", "canary\r"),
        ("a", "canary\x00"),
        ("a", "canary\x7f"),
        ("a", "canary€"),
        ("a\r\n", "canary"),
        ("a b", "canary"),
        ("a:", "canary"),
        ("", "canary"),
        ("ç", "canary"),
        ("Host", "canary"),
        ("content-length", "canary"),
        ("Transfer-Encoding", "canary"),
        ("Connection", "canary"),
    ],
)
def test_encode_headers_refuses(name: str, value: str) -> None:
    with pytest.raises(ValueError) as caught:
        encode_headers([(name, value)])
    assert "canary" not in str(caught.value)


def test_the_request_on_the_wire(run: Any) -> None:
    async def main() -> None:
        seen: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 204 No\r\n\r\n")
            await reader.read()
            writer.close()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with FakeUpstream(reply()) as unused, client(unused) as c:
            c.target = Target.parse(f"http://LOCALHOST:{port}/api/v1/")
            headers = encode_headers([("accept", "*/*")])
            await c.get(path=b"/models", method=b"GET", headers=headers)
        listening.close()
        assert seen == [
            b"GET /api/v1/models HTTP/1.1\r\nhost: localhost:%d\r\n"
            b"accept-encoding: identity\r\naccept: */*\r\n\r\n" % port
        ]

    run(main())


@pytest.mark.parametrize("size", [0, 1, 1000, 256 * 1024, 256 * 1024 + 1, 3_000_000])
def test_bodies_arrive_whole(run: Any, size: int) -> None:
    async def main() -> None:
        body = bytes(range(251)) * (size // 251 + 1)
        async with FakeUpstream(reply()) as server, client(server) as c:
            for _ in range(2):
                await c.get(body=body[:size])
            for request in server.requests:
                assert request.body == body[:size]
                assert request.headers["content-length"] == str(size)
                assert request.headers["accept-encoding"] == "identity"
                assert "transfer-encoding" not in request.headers
            assert len(server.connections) == 1

    run(main())


@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
def test_no_length_without_a_body(run: Any, method: bytes) -> None:
    async def main() -> None:
        async with FakeUpstream(reply()) as server, client(server) as c:
            await c.get(method=method)
            assert server.requests[0].method == method.decode()
            assert "content-length" not in server.requests[0].headers

    run(main())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"GET", b"/a b"),
        (b"GET", b"/a\r\nx: y"),
        (b"GET", b"/\xc3\xa7"),
        (b"GET", b"models"),
        (b"GET", b""),
        (b"get", b"/"),
        (b"GET /x HTTP/1.1\r\n", b"/"),
    ],
)
def test_a_line_cannot_be_broken(run: Any, method: bytes, path: bytes) -> None:
    async def main() -> None:
        async with FakeUpstream(reply()) as server, client(server) as c:
            with pytest.raises(ValueError):
                await c.ask(method=method, path=path)
            assert server.connections == []

    run(main())
