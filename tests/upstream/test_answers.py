"""What of an answer is accepted, and how a broken one is told from a short one."""

from __future__ import annotations

from typing import Any

import pytest
from fake_upstream import (
    FakeUpstream,
    chunk,
    chunked,
    close,
    cut_chunked,
    head,
    lying_length,
    raw,
    redirect,
    reply,
    reset,
    sliced,
)

from openbr.errors import UpstreamError, UpstreamProtocolError, UpstreamUnavailableError
from upstream.calls import HEAD, client

ONE = b"content-length: 1\r\n\r\nx"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def test_a_length_body(run: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(reply({"ok": True}, headers={"X-Thing": " a b "})) as server,
            client(server) as c,
        ):
            response = await c.ask()
            assert response.status == 200
            assert response.header(b"x-thing") == b"a b"
            assert response.header(b"content-type") == b"application/json"
            assert response.header(b"missing") is None
            assert await response.next() == b'{"ok": true}'
            assert await response.next() == b""
            assert await response.next() == b""
            response.close()
            response.close()

    run(main())


@pytest.mark.parametrize(
    ("answer", "body", "is_kept"),
    [
        (chunked(b"one ", b"two"), b"one two", True),
        (chunked(), b"", True),
        (raw(CHUNKED + b"3;ext=1\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n"), b"abc", True),
        (raw(HEAD + b"content-length: 0\r\n\r\n"), b"", True),
        (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), b"", True),
        (raw(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"), b"", True),
        (raw(CONTINUE * 3 + HEAD + ONE), b"x", True),
        (raw(b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n" + HEAD + ONE), b"x", True),
        (raw(b"HTTP/1.1 200\r\n" + ONE), b"x", True),
        (raw(HEAD + b"content-encoding: identity\r\n" + ONE), b"x", True),
        (raw(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n" + ONE), b"x", True),
        (close(HEAD + b"\r\nuntil the end"), b"until the end", False),
        (close(b"HTTP/1.0 200 OK\r\n\r\nold"), b"old", False),
        (close(HEAD + b"\r\n"), b"", False),
        (raw(HEAD + b"connection: close\r\n" + ONE), b"x", False),
        (raw(b"HTTP/1.0 200 OK\r\n" + ONE), b"x", False),
    ],
)
def test_bodies(run: Any, answer: Any, body: bytes, is_kept: bool) -> None:
    async def main() -> None:
        async with FakeUpstream(answer) as server, client(server) as c:
            assert (await c.get())[1] == body
            assert (await c.get())[1] == body
            assert len(server.connections) == (1 if is_kept else 2)
            if not is_kept:
                await server.until(lambda s: s.connections[0].closed_at)

    run(main())


def test_an_answer_to_head_has_no_body(run: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(raw(head(200, {"content-length": "99"})), reply(b"x")) as server,
            client(server) as c,
        ):
            assert await c.get(method=b"HEAD") == (200, b"")
            assert await c.get(method=b"GET") == (200, b"x")

    run(main())


def test_a_redirect_is_an_answer(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(redirect("http://169.254.169.254/")) as server, client(server) as c:
            response = await c.ask()
            assert response.status == 302
            assert response.header(b"location") == b"http://169.254.169.254/"
            response.close()
            assert len(server.requests) == 1

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"<html>hello</html>",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: 1\r\ncontent-length: 1\r\n\r\nx",
        HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx",
        HEAD + b"content-length: 1, 1\r\n\r\nx",
        HEAD + b"content-length: -1\r\n\r\nx",
        HEAD + b"content-length: 0x1\r\n\r\nx",
        HEAD + b"content-length: 99999999999999999999999\r\n\r\nx",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: identity\r\n\r\nx",
        HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: xchunked\r\n\r\nabc",
        HEAD + b"content-encoding: gzip\r\ncontent-length: 1\r\n\r\nx",
        HEAD + b"Content-Encoding: BR\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"bad header\r\n\r\n",
        HEAD + b"bad : header\r\n\r\n",
        HEAD + b"a: b\r\n folded\r\ncontent-length: 0\r\n\r\n",
        HEAD + b"a: \x00\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(run: Any, answer: bytes) -> None:
    async def main() -> None:
        async with FakeUpstream(raw(answer, then="silence")) as server, client(server) as c:
            with pytest.raises(UpstreamProtocolError) as caught:
                await c.get()
            assert caught.value.reason == "protocol"
            await server.until(lambda s: s.connections[0].closed_by == "client")
            assert len(server.requests) == 1, "not retried"

    run(main())


@pytest.mark.parametrize(
    "rest",
    [b"zz\r\nabc\r\n", b"3\r\nabcde", b"fffffffffffffffff\r\n", b"-1\r\n", b"3\nabc\n0\n\n"],
)
def test_broken_chunks(run: Any, rest: bytes) -> None:
    async def main() -> None:
        answer = raw(CHUNKED + chunk(b"sound") + rest, then="silence")
        async with FakeUpstream(answer) as server, client(server) as c:
            with pytest.raises(UpstreamProtocolError):
                await c.get()
            await server.until(lambda s: s.connections[0].closed_at)

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        cut_chunked(b"first"),
        close(CHUNKED + b"5\r\nfirst\r\n0\r\n"),
        lying_length(b"first", 99),
        raw(CHUNKED + chunk(b"first"), then="half_close"),
        raw(head(200, {"content-length": "9"}) + b"first", then="half_close"),
    ],
)
def test_a_cut_body_gives_what_came_and_then_fails(run: Any, answer: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(answer) as server, client(server) as c:
            response = await c.ask()
            got = b""
            with pytest.raises(UpstreamUnavailableError, match="middle of its answer") as caught:
                while data := await response.next():
                    got += data
            assert got == b"first"
            assert (caught.value.reason, caught.value.upstream_status) == ("server", 200)
            with pytest.raises(UpstreamUnavailableError):
                await response.next()
            response.close()
            await server.until(lambda s: s.connections[0].closed_at)
            assert len(server.requests) == 1

    run(main())


def test_a_reset_in_the_middle(run: Any) -> None:
    async def main() -> None:
        from fake_upstream import Gate

        gate = Gate()

        async def answer(exchange: Any) -> None:
            await exchange.send(CHUNKED + chunk(b"first"))
            await gate.wait()
            exchange.reset()

        async with FakeUpstream(answer) as server, client(server) as c:
            response = await c.ask()
            assert await response.next() == b"first"
            gate.open()
            with pytest.raises(UpstreamUnavailableError, match="middle of its answer"):
                await response.next()

    run(main())


@pytest.mark.parametrize("answer", [close(), reset(), close(b"HTTP/1.1 2"), close(HEAD)])
def test_no_answer_at_all(run: Any, answer: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(answer) as server, client(server) as c:
            with pytest.raises(UpstreamUnavailableError, match="before it answered") as caught:
                await c.get()
            assert caught.value.reason == "server"
            assert len(server.requests) == 1, "a new connection is not tried again"

    run(main())


def test_one_byte_at_a_time(run: Any) -> None:
    async def main() -> None:
        text = "data: olá, 世界 🇧🇷\r\n\r\n".encode()
        answer = CHUNKED + chunk(text) + chunk(b"end") + b"0\r\n\r\n"
        async with FakeUpstream(sliced(answer), sliced(answer, 3)) as server, client(server) as c:
            for _ in range(2):
                assert await c.get() == (200, text + b"end")
            assert len(server.connections) == 1

    run(main())


@pytest.mark.parametrize(
    "fill",
    [
        b"a: b\r\n" * 12_000,
        b"x: " + b"y" * 70_000 + b"\r\n",
        b"z" * 70_000,
    ],
)
def test_a_head_has_a_limit(run: Any, fill: bytes) -> None:
    async def main() -> None:
        whole = HEAD + fill + b"content-length: 0\r\n\r\n"
        endless = raw(HEAD + fill, then="silence")
        for answer in (raw(whole), endless, sliced(whole, 9_000)):
            async with FakeUpstream(answer) as server, client(server) as c:
                with pytest.raises(UpstreamProtocolError):
                    await c.get()
                await server.until(lambda s: s.connections[0].closed_at)

    run(main())


def test_endless_interim_answers_have_the_same_limit(run: Any) -> None:
    async def main() -> None:
        answer = raw(b"HTTP/1.1 102 Processing\r\n\r\n" * 4_000, then="silence")
        async with FakeUpstream(answer) as server, client(server) as c:
            with pytest.raises(UpstreamProtocolError, match="64 KiB"):
                await c.get()

    run(main())


def test_a_large_head_below_the_limit_with_its_body(run: Any) -> None:
    async def main() -> None:
        body = b"b" * 200_000
        answer = reply(body, headers={"x-large": "y" * 60_000})
        async with FakeUpstream(answer) as server, client(server) as c:
            assert await c.get() == (200, body)

    run(main())


def test_read_has_a_limit(run: Any) -> None:
    async def main() -> None:
        answers = [reply(b"x" * 1001), chunked(b"x" * 600, b"x" * 401), reply(b"x" * 300_000)]
        async with FakeUpstream(*answers, reply(b"x" * 1000)) as server, client(server) as c:
            for _ in answers:
                with pytest.raises(UpstreamProtocolError, match="larger than 1000 bytes"):
                    await c.get(1000)
            assert await c.get(1000) == (200, b"x" * 1000)

    run(main())


def test_bytes_after_an_answer_are_never_the_next_answer(run: Any) -> None:
    async def main() -> None:
        poison = HEAD + b"content-length: 4\r\n\r\ntrue" + head(201, {"content-length": "7"})

        async def plant(exchange: Any) -> None:
            await exchange.send(poison + b"planted")

        async def later(exchange: Any) -> None:
            await exchange.send(HEAD + b"content-length: 4\r\n\r\ntrue")
            await exchange.send(b"HTTP/1.1 201 C")

        for answer in (plant, later, raw(HEAD + b"content-length: 4\r\n\r\ntrueX")):
            async with FakeUpstream(answer, reply(b"sound")) as server, client(server) as c:
                assert await c.get() == (200, b"true")
                await server.until(lambda s: s.connections[0].closed_by == "client")
                assert await c.get() == (200, b"sound")

    run(main())


def test_errors_name_the_place_and_not_the_key(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(close()) as server, client(server) as c:
            with pytest.raises(UpstreamError) as caught:
                await c.ask(headers=b"authorization: Bearer canary-secret\r\n")
            assert f"127.0.0.1:{server.port}" in str(caught.value)
            assert "canary" not in str(caught.value)

    run(main())
