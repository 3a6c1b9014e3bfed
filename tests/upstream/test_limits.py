"""Limits of time and of memory, and what happens when the caller leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fake_upstream import (
    CHUNKED,
    FakeUpstream,
    Gate,
    black_hole,
    chunked,
    delayed,
    error,
    flood,
    head,
    held,
    reply,
    silence,
    sliced,
    throttled,
)

from openbr.errors import UpstreamError, UpstreamTimeoutError
from openbr.upstream import Target, Upstream
from openbr.upstream.connection import MAX_UNREAD, WRITE_PIECE
from upstream.calls import LIMITS, client

SHORT_S = 0.15
READ_SIZE = 256 * 1024
"""The most that one read of either loop gives."""


@contextlib.asynccontextmanager
async def times_out(match: str, at_least_s: float = SHORT_S) -> AsyncIterator[None]:
    """The block ends in a timeout that says which, not before its time and not long after."""
    begun = time.monotonic()
    with pytest.raises(UpstreamTimeoutError, match=match) as caught:
        yield
    passed = time.monotonic() - begun
    assert at_least_s - 0.01 <= passed < at_least_s + 2
    assert (caught.value.reason, caught.value.status) == ("timeout", 504)


def test_connect_timeout(run: Any) -> None:
    async def main() -> None:
        upstream = Upstream()
        with black_hole() as url:
            async with times_out("connect timeout: connecting to 127"):
                limits = replace(LIMITS, connect_s=SHORT_S)
                await upstream.request(Target.parse(url), b"GET", b"/", b"", b"", limits)
        await upstream.aclose()

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        silence(),
        silence(b"HTTP/1.1 200 OK\r\nx: y\r\n"),
        silence(b"HTTP/1.1 100 Continue\r\n\r\n"),
        throttled(head(200, {"x": "y" * 5000}), 400, size=4),
    ],
)
def test_first_byte_timeout_covers_the_whole_head(run: Any, answer: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(answer) as server,
            client(server, replace(LIMITS, first_byte_s=SHORT_S)) as c,
        ):
            async with times_out("first-byte timeout"):
                await c.ask()
            await server.until(lambda s: s.connections[0].closed_by == "client")

    run(main())


@pytest.mark.parametrize(
    "begin", [head(200, CHUNKED), head(200, {"content-length": "9"}) + b"part", head(200)]
)
def test_idle_timeout_inside_a_body(run: Any, begin: bytes) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(silence(begin)) as server,
            client(server, replace(LIMITS, idle_s=SHORT_S)) as c,
        ):
            async with times_out("idle timeout: silent"):
                response = await c.ask()
                while await response.next():
                    pass
            assert response.status == 200
            response.close()
            await server.until(lambda s: s.connections[0].closed_by == "client")

    run(main())


def test_a_slow_body_is_no_silence(run: Any) -> None:
    async def main() -> None:
        body = b"x" * 100
        # A piece every 0.1 s, 1.4 s in all.
        answer = throttled(head(200, {"content-length": "100"}) + body, 100, size=10)
        async with FakeUpstream(answer) as server, client(server, replace(LIMITS, idle_s=0.7)) as c:
            assert await c.get() == (200, body)

    run(main())


def test_total_timeout_ends_a_busy_stream(run: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(throttled(head(200) + b"x" * 100_000, 2000, size=20)) as server,
            client(server, replace(LIMITS, total_s=2 * SHORT_S)) as c,
        ):
            async with times_out("total timeout", 2 * SHORT_S):
                response = await c.ask()
                while await response.next():
                    pass
            await server.until(lambda s: s.connections[0].closed_by == "client")

    run(main())


def test_a_short_limit_after_a_long_one_on_the_same_connection(run: Any) -> None:
    async def main() -> None:
        answers = [reply(b"a"), silence(), reply(b"b"), silence(head(200, CHUNKED))]
        async with FakeUpstream(*answers) as server, client(server) as c:
            assert await c.get() == (200, b"a")
            c.limits = replace(LIMITS, first_byte_s=SHORT_S)
            async with times_out("first-byte"):
                await c.ask()
            c.limits = LIMITS
            assert await c.get() == (200, b"b")
            c.limits = replace(LIMITS, first_byte_s=60, idle_s=SHORT_S)
            async with times_out("idle"):
                await c.get()
            assert [r.connection.number for r in server.requests] == [0, 0, 1, 1]

    run(main())


def test_a_limit_that_has_passed_does_not_touch_the_next_request(run: Any) -> None:
    async def main() -> None:
        answers = [reply(b"a"), delayed(2.5 * SHORT_S, reply(b"b")), reply(b"c")]
        async with (
            FakeUpstream(*answers) as server,
            client(server, replace(LIMITS, first_byte_s=SHORT_S)) as c,
        ):
            assert await c.get() == (200, b"a")
            c.limits = LIMITS  # the timer of the first request fires during the second
            assert await c.get() == (200, b"b")
            assert await c.get() == (200, b"c")
            assert len(server.connections) == 1

    run(main())


@pytest.mark.parametrize("is_tls", [False, True])
def test_an_unread_body_stops_the_upstream(run: Any, authority: Any, is_tls: bool) -> None:
    async def main() -> None:
        tls = authority.server("127.0.0.1") if is_tls else None
        other = delayed(0.7, reply(b"other"))
        async with (
            FakeUpstream(flood(), other, tls=tls) as server,
            client(server, replace(LIMITS, idle_s=0.5), ssl_context_factory=authority.client) as c,
        ):
            response = await c.ask()
            await server.until(lambda s: s.connections[0].is_blocked)
            # Longer than idle_s: a slow reader of ours is not the upstream's silence.
            assert await c.get() == (200, b"other")
            sent = server.connections[0].sent_bytes
            assert server.connections[0].is_blocked
            assert MAX_UNREAD < response.unread <= MAX_UNREAD + READ_SIZE
            got = 0
            while got < 2 * sent + 8_000_000:
                got += len(await response.next())
                assert response.unread <= MAX_UNREAD + READ_SIZE
            assert server.connections[0].sent_bytes > sent
            await server.until(lambda s: s.connections[0].is_blocked)
            response.close()
            await server.until(lambda s: s.connections[0].closed_at)

    run(main())


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_large_body_waits_for_its_reader(run: Any, authority: Any, is_tls: bool) -> None:
    async def main() -> None:
        tls = authority.server("127.0.0.1") if is_tls else None
        reading = Gate()
        body = bytes(range(256)) * 4096 * 24  # 24 MiB
        async with (
            FakeUpstream(reply(b"thanks"), tls=tls, reading=reading) as server,
            client(server, ssl_context_factory=authority.client) as c,
        ):
            if is_tls:
                reading.release()  # the handshake needs a reader: what comes later is one too
                reading.open()
            asking = asyncio.create_task(c.get(body=body))
            if not is_tls:
                pool = await waiting_pool(c.upstream)
                (connection,) = pool.open
                # A piece may be whole in the buffer, never much more.
                assert connection._transport.get_write_buffer_size() <= 2 * WRITE_PIECE
                assert not asking.done()
                reading.open()
            assert await asking == (200, b"thanks")
            assert server.requests[0].body == body
            assert await c.get() == (200, b"thanks")
            assert len(server.connections) == 1

    run(main())


async def waiting_pool(upstream: Upstream) -> Any:
    """The upstream's only pool, when its only connection waits for its peer to read."""
    async with asyncio.timeout(5):
        while True:
            await asyncio.sleep(0)
            for pool in upstream._pools.values():
                for connection in pool.open:
                    if connection._drained is not None:
                        return pool


async def all_closed(upstream: Upstream) -> None:
    """For a server that does not read, and so cannot see that its client left."""
    async with asyncio.timeout(1):
        while upstream.stats().open:
            await asyncio.sleep(0)


def test_nobody_reads_the_request(run: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(reply(), reading=Gate()) as server,
            client(server, replace(LIMITS, idle_s=SHORT_S)) as c,
        ):
            async with times_out("read nothing of the request"):
                await c.ask(body=b"x" * 30_000_000)
            await all_closed(c.upstream)
            assert server.connections[0].received_bytes == 0

    run(main())


def test_an_early_refusal_of_a_large_body_arrives(run: Any) -> None:
    async def main() -> None:
        async def too_large(exchange: Any) -> None:
            exchange.stop_reading()
            await error(413, "too large")(exchange)
            await exchange.silence()

        async with FakeUpstream(too_large, early=True) as server, client(server) as c:
            status, said = await c.get(body=b"x" * 30_000_000)
            assert status == 413 and b"too large" in said
            await all_closed(c.upstream)
            assert server.connections[0].received_bytes < 30_000_000

    run(main())


def test_an_early_refusal_is_heard_before_its_body_ends(run: Any) -> None:
    async def main() -> None:
        async def too_large(exchange: Any) -> None:
            exchange.stop_reading()
            await exchange.send(head(413, CHUNKED))
            await exchange.silence()

        async with FakeUpstream(too_large, early=True) as server, client(server) as c:
            response = await c.ask(body=b"x" * 30_000_000)
            assert response.status == 413
            response.close()
            await all_closed(c.upstream)

    run(main())


def test_an_answer_that_begins_before_its_request_ends(run: Any) -> None:
    async def main() -> None:
        async def eager(exchange: Any) -> None:
            await exchange.send(head(200, {"content-length": "4"}))
            size = len(b"x" * 5_000_000)
            await server.until(lambda s: len(s.requests[0].body) == size)
            await exchange.send(b"done")

        async with FakeUpstream(eager, early=True) as server, client(server) as c:
            assert await c.get(body=b"x" * 5_000_000) == (200, b"done")

    run(main())


@contextlib.asynccontextmanager
async def closed_within_a_second(server: FakeUpstream) -> AsyncIterator[None]:
    begun = time.monotonic()
    yield
    await server.until(lambda s: s.connections[-1].closed_at)
    assert server.connections[-1].closed_by == "client"
    assert server.connections[-1].closed_at - begun < 1  # type: ignore[operator]


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(
    "answer", [silence(), silence(b"HTTP/1.1 200 OK\r\n"), silence(head(200, CHUNKED)), flood()]
)
def test_cancelled_while_waiting(run: Any, authority: Any, answer: Any, is_tls: bool) -> None:
    async def main() -> None:
        tls = authority.server("127.0.0.1") if is_tls else None
        async with (
            FakeUpstream(answer, tls=tls) as server,
            client(server, ssl_context_factory=authority.client) as c,
        ):
            asking = asyncio.create_task(c.get(1 << 40))
            await server.until(lambda s: s.requests)
            async with closed_within_a_second(server):
                await cancel(asking)

    run(main())


def test_a_cancelled_next_loses_nothing_until_close(run: Any) -> None:
    async def main() -> None:
        gate = Gate()
        async with (
            FakeUpstream(chunked(b"one", b"two", gate=gate, then="silence")) as server,
            client(server) as c,
        ):
            response = await c.ask()
            reading = asyncio.create_task(response.next())
            await asyncio.sleep(0)
            await cancel(reading)
            gate.release()
            assert await response.next() == b"one"
            reading = asyncio.create_task(response.next())
            await asyncio.sleep(0)
            await cancel(reading)
            async with closed_within_a_second(server):
                response.close()
            with pytest.raises(UpstreamError):
                await response.next()

    run(main())


def test_cancelled_while_connecting(run: Any) -> None:
    async def main() -> None:
        upstream = Upstream()
        with black_hole() as url:
            asking = asyncio.create_task(
                upstream.request(Target.parse(url), b"GET", b"/", b"", b"", LIMITS)
            )
            for _ in range(5):
                await asyncio.sleep(0)
            await cancel(asking)
        assert upstream.stats().open == 0
        await upstream.aclose()

    run(main())


def test_cancelled_during_the_handshake(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        hello, gone = asyncio.Event(), asyncio.Event()

        class Mute(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                hello.set()

            def connection_lost(self, exc: Exception | None) -> None:
                gone.set()

        listening = await loop.create_server(Mute, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        upstream = Upstream()
        target = Target.parse(f"https://127.0.0.1:{port}")
        asking = asyncio.create_task(upstream.request(target, b"GET", b"/", b"", b"", LIMITS))
        await hello.wait()
        await cancel(asking)
        async with asyncio.timeout(1):
            await gone.wait()
        gone.clear()
        limits = replace(LIMITS, connect_s=SHORT_S)
        async with times_out("connect timeout: the TLS handshake"):
            await upstream.request(target, b"GET", b"/", b"", b"", limits)
        await upstream.aclose()
        await gone.wait()
        listening.close()

    run(main())


def test_cancelled_while_sending(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(), reading=Gate()) as server, client(server) as c:
            asking = asyncio.create_task(c.ask(body=b"x" * 30_000_000))
            await waiting_pool(c.upstream)
            await server.until(lambda s: s.connections)
            await cancel(asking)
            await all_closed(c.upstream)

    run(main())


def test_close_before_the_end_and_after(run: Any) -> None:
    async def main() -> None:
        gate = Gate()
        async with (
            FakeUpstream(held(gate, reply(b"whole")), silence(head(200, CHUNKED))) as server,
            client(server) as c,
        ):
            gate.open()
            whole = await c.ask()
            whole.close()
            assert await whole.read(100) == b"whole", "what was whole stays readable"
            part = await c.ask()
            async with closed_within_a_second(server):
                part.close()
                part.close()
            assert len(server.connections) == 1

    run(main())


def test_small_pieces_leave_nothing_behind(run: Any) -> None:
    async def main() -> None:
        data = b"data: x\n\n" * 2000
        async with (
            FakeUpstream(sliced(head(200, {"content-length": str(len(data))}) + data, 100)) as s,
            client(s) as c,
        ):
            response = await c.ask()
            got = b""
            while piece := await response.next():
                got += piece
                assert response.unread == 0
            assert got == data

    run(main())
