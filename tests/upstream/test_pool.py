"""Kept connections: which is used, when one is replaced, when they are closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fake_upstream import (
    CHUNKED,
    FakeUpstream,
    Gate,
    close,
    delayed,
    head,
    held,
    raw,
    reply,
    reset,
    silence,
)

from openbr.errors import UpstreamTimeoutError, UpstreamUnavailableError
from openbr.upstream import Target, TargetStats, Upstream, UpstreamStats
from upstream.calls import LIMITS, client


def test_one_connection_serves_one_request_after_the_other(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"x")) as server, client(server) as c:
            for _ in range(20):
                assert await c.get() == (200, b"x")
            assert len(server.connections) == 1
            place = f"127.0.0.1:{server.port}"
            assert c.upstream.stats() == UpstreamStats(
                open=1, idle=1, targets=(TargetStats(target=place, open=1, idle=1),)
            )

    run(main())


def test_requests_at_one_time_have_connections_of_their_own(run: Any) -> None:
    async def main() -> None:
        gate = Gate()
        async with (
            FakeUpstream(held(gate, reply(b"x"))) as server,
            client(server, max_idle_per_target=2) as c,
        ):
            asking = [asyncio.create_task(c.get()) for _ in range(5)]
            await server.until(lambda s: len(s.requests) == 5)
            assert c.upstream.stats().open == 5
            assert c.upstream.stats().idle == 0
            gate.open()
            assert await asyncio.gather(*asking) == [(200, b"x")] * 5
            assert c.upstream.stats().idle == 2, "more are not kept"
            await server.until(lambda s: len(s.open_connections) == 2)

    run(main())


def test_the_connection_used_last_is_used_first(run: Any) -> None:
    async def main() -> None:
        first, second = Gate(), Gate()
        answers = [held(first, reply()), held(second, reply()), reply()]
        async with FakeUpstream(*answers) as server, client(server) as c:
            one = asyncio.create_task(c.get())
            await server.until(lambda s: len(s.requests) == 1)
            two = asyncio.create_task(c.get())
            await server.until(lambda s: len(s.requests) == 2)
            second.open()
            await two
            first.open()
            await one
            await c.get()
            await c.get()
            assert [r.connection.number for r in server.requests] == [0, 1, 0, 0]

    run(main())


def test_targets_on_one_server_share_its_connections(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply()) as server, client(server) as c:
            for prefix in ("/v1", "/api/v2", ""):
                c.target = Target.parse(server.url + prefix)
                await c.get(path=b"/models")
            assert [r.path for r in server.requests] == ["/v1/models", "/api/v2/models", "/models"]
            assert len(server.connections) == 1

    run(main())


@pytest.mark.parametrize("death", [close(), reset()])
@pytest.mark.parametrize("body", [b"small", b"large" * 200_000])
def test_a_kept_connection_that_died_is_replaced_once(run: Any, death: Any, body: bytes) -> None:
    async def main() -> None:
        answers = [reply(b"one"), death, reply(b"two")]
        async with FakeUpstream(*answers) as server, client(server) as c:
            assert await c.get() == (200, b"one")
            assert await c.get(body=body) == (200, b"two")
            assert [r.connection.number for r in server.requests] == [0, 0, 1]
            assert server.requests[2].body == body

    run(main())


def test_a_connection_closed_between_requests_is_not_used(run: Any) -> None:
    async def main() -> None:
        async def answer_and_leave(exchange: Any) -> None:
            await exchange.send(head(200, {"content-length": "3"}) + b"one")
            exchange.close()

        async with FakeUpstream(answer_and_leave) as server, client(server) as c:
            for number in range(5):
                assert await c.get() == (200, b"one")
                await server.until(lambda s, n=number: s.connections[n].closed_at)
            assert len(server.requests) == 5, "each was sent once"

    run(main())


def test_it_is_replaced_no_more_than_once(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"one"), close()) as server, client(server) as c:
            await c.get()
            with pytest.raises(UpstreamUnavailableError, match="before it answered"):
                await c.get()
            assert len(server.requests) == 3

    run(main())


def test_the_new_connection_is_new_even_when_others_are_idle(run: Any) -> None:
    async def main() -> None:
        gate = Gate()
        answers = [held(gate, reply())] * 3
        async with FakeUpstream(*answers, close(), reply(b"new")) as server, client(server) as c:
            asking = [asyncio.create_task(c.get()) for _ in answers]
            await server.until(lambda s: len(s.requests) == 3)
            gate.open()
            await asyncio.gather(*asking)
            assert await c.get() == (200, b"new")
            assert server.requests[-1].connection.number == 3

    run(main())


@pytest.mark.parametrize("answer", [close(b"H"), raw(b"HTTP/1.1 2", then="half_close")])
def test_not_again_once_a_byte_came_back(run: Any, answer: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply(), answer) as server, client(server) as c:
            await c.get()
            with pytest.raises(UpstreamUnavailableError, match="before it answered"):
                await c.get()
            assert len(server.requests) == 2

    run(main())


def test_not_again_after_a_timeout(run: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(reply(), silence()) as server,
            client(server, replace(LIMITS, first_byte_s=0.1)) as c,
        ):
            await c.get()
            with pytest.raises(UpstreamTimeoutError):
                await c.get()
            assert len(server.requests) == 2

    run(main())


def test_idle_connections_are_closed_and_no_timer_stays(run: Any) -> None:
    async def main() -> None:
        gate = Gate()
        async with (
            FakeUpstream(held(gate, reply())) as server,
            client(server, idle_close_s=0.1) as c,
        ):
            asking = [asyncio.create_task(c.get()) for _ in range(3)]
            await server.until(lambda s: len(s.requests) == 3)
            assert c.upstream._sweep is None, "nothing is idle, nothing to watch"
            gate.open()
            await asyncio.gather(*asking)
            assert c.upstream._sweep is not None
            await server.until(lambda s: not s.open_connections)
            assert {one.closed_by for one in server.connections} == {"client"}
            idle_s = [one.closed_at - one.requests[0].received_at for one in server.connections]
            assert all(0.09 < seconds < 2 for seconds in idle_s)
            while c.upstream.stats().open:
                await asyncio.sleep(0)
            assert c.upstream._sweep is None
            loop = asyncio.get_running_loop()
            if hasattr(loop, "_scheduled"):
                # What is left is the deadline that the fixture set for this test.
                ours = [h for h in loop._scheduled if not h._cancelled and "upstream" in repr(h)]
                assert ours == []

    run(main())


def test_a_used_connection_is_not_idle(run: Any) -> None:
    async def main() -> None:
        gate = Gate()
        async with (
            FakeUpstream(reply(), held(gate, reply(b"late"))) as server,
            client(server, idle_close_s=0.05) as c,
        ):
            await c.get()
            asking = asyncio.create_task(c.get())
            await server.until(lambda s: len(s.requests) == 2)
            while c.upstream._sweep is not None:
                await asyncio.sleep(0)
            gate.open()
            assert await asking == (200, b"late")
            assert len(server.connections) == 1

    run(main())


def test_the_oldest_goes_first(run: Any) -> None:
    async def main() -> None:
        first, second = Gate(), Gate()
        async with (
            FakeUpstream(held(first, reply()), held(second, reply()), reply()) as server,
            client(server, idle_close_s=0.2) as c,
        ):
            one = asyncio.create_task(c.get())
            await server.until(lambda s: len(s.requests) == 1)
            two = asyncio.create_task(c.get())
            await server.until(lambda s: len(s.requests) == 2)
            first.open()
            await one
            second.open()
            await two
            while not server.connections[0].closed_at:
                await c.get()
            assert server.connections[1].closed_at is None
            await server.until(lambda s: not s.open_connections)

    run(main())


def test_the_timer_comes_back_for_what_is_left(run: Any) -> None:
    async def main() -> None:
        async with (
            FakeUpstream(reply(), delayed(0.1, reply())) as server,
            client(server, idle_close_s=0.2) as c,
        ):
            late = asyncio.create_task(c.get())
            early = asyncio.create_task(c.get())
            await asyncio.gather(late, early)
            await server.until(lambda s: not s.open_connections)
            first, second = sorted(one.closed_at for one in server.connections)
            assert 0.05 < second - first < 1

    run(main())


def test_aclose_ends_what_runs(run: Any) -> None:
    async def main() -> None:
        answers = [silence(), silence(head(200, CHUNKED)), reply()]
        async with FakeUpstream(*answers) as server, client(server) as c:
            waiting = asyncio.create_task(c.ask())
            await server.until(lambda s: len(s.requests) == 1)
            reading = await c.ask()
            await c.get()
            assert c.upstream.stats().open == 3
            await c.upstream.aclose()
            assert c.upstream.stats() == UpstreamStats(open=0, idle=0, targets=())
            for failing in (waiting, reading.next(), c.ask(), c.ask(path=b"/other")):
                with pytest.raises(UpstreamUnavailableError, match="openbr is stopping"):
                    await failing
            await server.until(lambda s: not s.open_connections)
            await c.upstream.aclose()

    run(main())


def test_aclose_while_connecting(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply()) as server:
            upstream = Upstream()
            asking = asyncio.create_task(
                upstream.request(Target.parse(server.url), b"GET", b"/", b"", b"", LIMITS)
            )
            await asyncio.sleep(0)
            await upstream.aclose()
            with pytest.raises(UpstreamUnavailableError, match="openbr is stopping"):
                await asking
            await upstream.aclose()
            await server.until(lambda s: not s.open_connections)
            assert upstream.stats().open == 0

    run(main())


def test_two_clients_share_nothing(run: Any) -> None:
    async def main() -> None:
        async with FakeUpstream(reply()) as server, client(server) as a, client(server) as b:
            await a.get()
            await b.get()
            assert len(server.connections) == 2

    run(main())
