"""Start, idle, drain and end of a server in the test's own loop."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import weakref
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from openbr import tls
from openbr.config import TLS
from openbr.errors import ConfigError, OpenbrError
from openbr.server.lifecycle import Lifespan, Server
from openbr.server.memory import IdleTrim, trim
from openbr.server.sockets import open_sockets
from openbr.server.state import Limits, State
from server.conftest import App, Run, eventually, running

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"


# start and end


def test_the_app_is_started_before_the_first_request_and_ended_after_the_last(run: Run) -> None:
    app = App()

    async def scenario() -> None:
        async with running(app) as gateway:
            assert app.events == ["startup"]
            await gateway.ask(GET % b"")
            assert app.events == ["startup"]
        assert app.events == ["startup", "shutdown"]

    run(scenario())


@pytest.mark.parametrize("error", [ConfigError("the store is gone"), ValueError("a defect")])
def test_what_the_app_raises_at_its_start_comes_out(run: Run, error: Exception) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise error

    async def scenario() -> None:
        with pytest.raises(type(error), match=str(error)):
            async with running(app):
                pass

    run(scenario())


def test_an_app_may_also_say_that_it_failed(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no room"})

    async def scenario() -> None:
        with pytest.raises(OpenbrError, match="no room"):
            async with running(app):
                pass

    run(scenario())


def test_an_app_that_ends_too_early(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def scenario() -> None:
        with pytest.raises(OpenbrError, match="ended before its startup"):
            await Lifespan(app).startup()

    run(scenario())


def test_state_of_the_lifespan_reaches_requests(run: Run) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["state"]["room"])
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            return
        scope["state"]["room"] = 7
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})

    async def scenario() -> None:
        async with running(app) as gateway:
            assert (await gateway.ask(GET % b"")).status == 204

    run(scenario())
    assert seen == [7]


# drain


def test_running_answers_finish(run: Run) -> None:
    app = App()
    told = []

    async def scenario() -> None:
        async with running(app, on_drain=lambda: told.append(True)) as gateway:
            streams = [await gateway.connect() for _ in range(50)]
            for client in streams:
                await client.send(GET % b"v1/stream")
            await eventually(lambda: len(app.requests) == 50)
            gateway.server.stop()
            assert told == [True]
            await eventually(lambda: not gateway.server.servers[0].is_serving())
            with pytest.raises(ConnectionError):
                await gateway.connect()
            app.go.set()
            for client in streams:
                answer = await client.answer()
                assert (answer.body, answer.complete) == (b"firstlast", True)
                assert await client.end() == b""
            async with asyncio.timeout(5):
                await gateway.task
        assert app.cancelled == []
        assert app.events == ["startup", "shutdown"]

    run(scenario())


def test_an_idle_connection_is_answered_while_others_finish(run: Run) -> None:
    """So that whoever asks for readiness is told, and no request falls between two chairs."""
    app = App()

    async def scenario() -> None:
        async with running(app) as gateway:
            idle = await gateway.connect()
            await idle.send(GET % b"readyz")
            assert "connection" not in (await idle.answer()).headers
            busy = await gateway.connect()
            await busy.send(GET % b"slow")
            await eventually(lambda: len(app.requests) == 2)
            gateway.server.stop()
            await eventually(lambda: not gateway.server.servers[0].is_serving())
            await idle.send(GET % b"readyz")
            assert (await idle.answer()).headers["connection"] == "close"
            assert await idle.end() == b""
            app.go.set()
            answer = await busy.answer()
            assert (answer.body, answer.headers["connection"]) == (b"slow", "close")

    run(scenario())


def test_idle_connections_do_not_hold_the_end_up(run: Run) -> None:
    async def scenario() -> None:
        async with running(App(), drain_s=60.0) as gateway:
            clients = [await gateway.connect() for _ in range(3)]
            await clients[0].send(GET % b"")
            await clients[0].answer()
            await clients[1].send(b"GET / HTT")
            await eventually(lambda: len(gateway.connections()) == 3)
            gateway.server.stop()
            for client in clients:
                assert await client.end() == b""
                await client.close()
            async with asyncio.timeout(5):
                await gateway.task

    run(scenario())


@pytest.mark.parametrize("path", [b"v1/hang", b"ui/hang", b"v1/flood", b"slow"])
def test_what_does_not_finish_in_time_is_cut(run: Run, path: bytes) -> None:
    app = App()

    async def scenario() -> None:
        async with running(app, drain_s=0.1) as gateway:
            client = await gateway.connect(limit=1024)
            await client.send(GET % path)
            await app.entered.wait()
            gateway.server.stop()
            async with asyncio.timeout(5):
                await gateway.task
            state = gateway.server.server_state
            assert not state.tasks and not state.connections
            assert bool(app.cancelled) is (path != b"ui/hang")
        assert app.events == ["startup", "shutdown"]

    run(scenario())


def test_an_answer_that_the_client_takes_slowly_still_arrives_whole(run: Run) -> None:
    size = 3_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for what in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{what}.complete"})
            return
        length = (b"content-length", b"%d" % size)
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b"x" * size})

    async def scenario() -> None:
        async with running(app) as gateway:
            client = await gateway.connect(limit=1024)
            await client.send(GET % b"")
            state = gateway.server.server_state
            await eventually(lambda: state.total_requests == 1)
            gateway.server.stop()
            assert len((await client.answer()).body) == size
            assert await client.end() == b""

    run(scenario())


def test_an_app_that_does_not_close_is_left(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with running(app):
            pass

    monkeypatch.setattr("openbr.server.lifecycle.APP_CLOSE_S", 0.05)
    run(scenario())
    assert "did not close" in caplog.text


# https


@pytest.fixture
def secured(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's context and a client's that trusts it."""
    made, context = tls.prepare(TLS(mode="auto"), tmp_path, ["localhost", "127.0.0.1"])
    return context, ssl.create_default_context(cafile=str(made.cert))


def test_https(run: Run, secured: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    context, trusting = secured

    async def scenario() -> None:
        app = App()
        limits = {"body_rest_s": 0.1, "write_s": 0.1}
        async with running(app, ssl_context=context, limits=limits) as gateway:
            client = await gateway.connect(ssl=trusting)
            for _ in range(2):
                await client.send(GET % b"")
                assert (await client.answer()).json()["path"] == "/"
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            assert (await client.answer()).status == 400
            assert await client.end() == b""
            client = await gateway.connect(ssl=trusting)
            await client.send(b"POST /early_close HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            assert (await client.answer()).body == b"no need to read that"
            await client.end()
            client = await gateway.connect(ssl=trusting, limit=1024)
            await client.send(GET % b"v1/flood")
            await eventually(lambda: app.cancelled)
            plain = await gateway.connect()
            await plain.send(GET % b"")
            assert not (await plain.end()).startswith(b"HTTP")

    run(scenario())


def test_idle_https_clients_do_not_hold_up_the_end(
    run: Run, secured: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    context, trusting = secured

    async def scenario() -> None:
        async with running(App(), ssl_context=context, drain_s=60.0) as gateway:
            port = gateway.port

            def idle() -> ssl.SSLSocket:
                plain = socket.create_connection(("127.0.0.1", port), 10)
                return trusting.wrap_socket(plain, server_hostname="localhost")

            # A plain socket in a thread: nobody reads it, so nobody answers the goodbye.
            client = await asyncio.to_thread(idle)
            await eventually(lambda: gateway.connections())
            gateway.server.stop()
            async with asyncio.timeout(5):
                await gateway.task
            client.close()

    run(scenario())


# what all connections share


def test_the_date_is_made_once_a_second_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_700_000_000.2]
    monkeypatch.setattr("openbr.server.state.time.time", lambda: now[0])
    state = State(Limits())
    first = state.date_line
    assert first == b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
    now[0] += 0.7
    assert state.date_line is first
    now[0] += 0.2
    assert state.date_line == b"date: Tue, 14 Nov 2023 22:13:21 GMT\r\n"
    assert parsedate_to_datetime(first[6:-2].decode()).timestamp() == 1_700_000_000


def test_nothing_is_scheduled_when_nobody_is_connected() -> None:
    """On asyncio's own loop, where the timers can be seen."""

    def timers() -> list[Any]:
        loop: Any = asyncio.get_running_loop()
        return [t for t in loop._scheduled if not t.cancelled()]

    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            before = len(timers())  # one: the heap's trim after the start
            clients = [await gateway.connect() for _ in range(5)]
            for client, path in zip(
                clients, (b"", b"v1/hang", b"early", b"v1/flood", b""), strict=True
            ):
                await client.send(GET % path)
            await eventually(lambda: len(app.requests) == 5)
            await eventually(lambda: len(gateway.server.server_state.tasks) == 2)
            for client in clients:
                client.writer.transport.abort()
            await eventually(lambda: not gateway.connections())
            await eventually(lambda: not gateway.server.server_state.tasks)
            assert len(timers()) <= before
            gateway.clients.clear()

    asyncio.run(scenario())


class FakeLoop:
    """Timers that fire when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.armed: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> Any:
        self.armed.append((self.now + delay, callback))
        return self

    def cancel(self) -> None:
        self.armed.clear()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.armed and min(when for when, _ in self.armed) <= end:
            self.armed.sort(key=lambda one: one[0])
            self.now, callback = self.armed.pop(0)
            callback()
        self.now = end


def test_the_heap_is_trimmed_once_after_the_last_request() -> None:
    loop: Any = FakeLoop()
    busy, trims = [False], []
    idle = IdleTrim(loop, lambda: busy[0], lambda: trims.append(loop.now), after_s=10.0)
    idle.rest()
    loop.run(9)
    idle.rest()  # another request came and went: the ten seconds begin again
    assert len(loop.armed) == 1
    loop.run(9)
    assert trims == []
    loop.run(2)
    assert trims == [119.0]
    loop.run(1000)
    assert trims == [119.0] and loop.armed == []
    busy[0] = True
    idle.rest()
    loop.run(100)
    assert trims == [119.0] and loop.armed == [], "at work: the end of the work asks again"
    busy[0] = False
    idle.rest()
    idle.close()
    loop.run(100)
    assert len(trims) == 1


def test_trim_is_harmless() -> None:
    trim()


def test_servers_share_nothing(run: Run) -> None:
    async def scenario() -> None:
        async with running(App()) as one, running(App()) as two:
            await one.ask(GET % b"")
            assert one.server.server_state.total_requests == 1
            assert two.server.server_state.total_requests == 0

    run(scenario())


def test_another_thread_can_run_a_server_and_stop_it() -> None:
    """Signals belong to the main thread: elsewhere the owner calls stop()."""
    import threading

    sockets = open_sockets("127.0.0.1", 0)
    started = threading.Event()
    found: list[tuple[Server, asyncio.AbstractEventLoop]] = []

    def thread() -> None:
        async def main() -> None:
            server = Server(App(), drain_s=1.0, on_started=started.set)
            found.append((server, asyncio.get_running_loop()))
            await server.serve(sockets)

        asyncio.run(main())

    one = threading.Thread(target=thread)
    one.start()
    assert started.wait(10)
    server, loop = found[0]
    loop.call_soon_threadsafe(server.stop)
    one.join(10)
    assert not one.is_alive()


def test_request_ids_are_unlike_each_other(run: Run) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            ids = {(await gateway.ask(GET % b"silent")).headers["x-request-id"] for _ in range(3)}
            assert len(ids) == 3
            assert all(re.fullmatch(r"req_[0-9a-f]+", one) for one in ids)

    run(scenario())


def test_a_trim_collects_and_asks_the_app_for_what_it_can_spare(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ring:
        def __init__(self) -> None:
            self.me = self

    actions: list[Any] = []

    class Recorded(IdleTrim):
        def __init__(self, loop: Any, is_busy: Any, action: Any) -> None:
            actions.append(action)
            super().__init__(loop, is_busy, action)

    monkeypatch.setattr("openbr.server.lifecycle.IdleTrim", Recorded)
    asked: list[bool] = []

    async def scenario() -> None:
        async with running(App(), give_back=lambda: asked.append(ring() is None)):
            pass

    run(scenario())
    assert asked == []
    ring = weakref.ref(Ring())
    for action in actions:
        action()
    assert asked == [True]
