"""What an app sends, and what a client gets of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from openbr.server.cycle import Cycle, run
from openbr.stream import CLIENT_GONE
from server.conftest import App, Run, eventually, running

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n%b\r\n"
START = "http.response.start"
BODY = "http.response.body"
Headers = Sequence[tuple[bytes, bytes]]


class Transport:
    """Notes what is written, a write at a time."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Flow:
    write_paused = False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def answer(
    *messages: dict[str, Any], method: str = "GET", version: str = "1.1", keep_alive: bool = True
) -> Transport:
    """Run an app that sends these messages."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    transport = Transport()
    cycle = Cycle(
        {"type": "http", "method": method, "http_version": version, "path": "/"},
        transport,
        Flow(),  # type: ignore[arg-type]
        asyncio.get_running_loop(),
        lambda: None,
        b"date: now\r\n",
        keep_alive,
        False,
    )
    await run(cycle, app, lambda task: None)
    return transport


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": headers}


def piece(body: bytes, more_body: bool = False) -> dict[str, Any]:
    return {"type": BODY, "body": body, "more_body": more_body}


LENGTH = (b"content-length", b"5")


@pytest.mark.parametrize(
    ("messages", "how", "writes"),
    [
        pytest.param(
            [start(LENGTH), piece(b"hello")],
            {},
            [b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\nhello"],
            id="a head that knows its length leaves with its body",
        ),
        pytest.param(
            [start(), piece(b"a", True), piece(b"bc", True), piece(b"")],
            {},
            [
                b"HTTP/1.1 200 OK\r\ndate: now\r\ntransfer-encoding: chunked\r\n\r\n",
                b"1\r\na\r\n",
                b"2\r\nbc\r\n",
                b"0\r\n\r\n",
            ],
            id="a streamed head leaves at once",
        ),
        pytest.param(
            [start(), piece(b"a", True), piece(b"bc")],
            {"version": "1.0"},
            [b"HTTP/1.1 200 OK\r\ndate: now\r\nconnection: close\r\n\r\n", b"a", b"bc"],
            id="no chunks for HTTP/1.0",
        ),
        pytest.param(
            [start(LENGTH), piece(b"hello")],
            {"method": "HEAD"},
            [b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\n\r\n"],
            id="no body for HEAD",
        ),
        pytest.param(
            [start(status=204), piece(b"")],
            {},
            [b"HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n"],
            id="no body where the status has none",
        ),
        pytest.param(
            [start(LENGTH, (b"connection", b"close")), piece(b"he", True), piece(b"llo")],
            {},
            [
                b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhe",
                b"llo",
            ],
            id="the app may close",
        ),
        pytest.param(
            [start(LENGTH, (b"connection", b"keep-alive")), piece(b"hello")],
            {"keep_alive": False},
            [
                b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\n"
                b"connection: close\r\n\r\nhello"
            ],
            id="the connection says once that it closes",
        ),
    ],
)
def test_what_is_written(
    messages: list[dict[str, Any]], how: dict[str, Any], writes: list[bytes]
) -> None:
    transport = asyncio.run(answer(*messages, **how))
    assert transport.writes == writes
    assert transport.closed == any(b"connection: close" in one for one in writes)


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"b\r\nset-cookie: evil=1"),
        (b"x-a", b"b\nc"),
        (b"x-a", b"b\rc"),
        (b"x-a", b"b\0c"),
        (b"x-a", b"b\x7fc"),
        (b"x-a\r\nx-b", b"c"),
    ],
)
def test_nothing_in_a_header_ends_its_line(
    header: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The app's defect: one line in the log, and 500 in place of what it said."""
    transport = asyncio.run(answer(start(LENGTH, header), piece(b"hello")))
    said = b"".join(transport.writes)
    assert said.startswith(b"HTTP/1.1 500 ") and b"evil" not in said and b"x-b" not in said
    assert [record.message for record in caplog.records] == ["a defect in openbr"]


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([start(LENGTH), piece(b"hell")], id="too short"),
        pytest.param([start(LENGTH), piece(b"hello!")], id="too long"),
        pytest.param([start(LENGTH), start()], id="begun twice"),
        pytest.param([start(), piece(b"a", True)], id="unfinished"),
    ],
)
def test_an_answer_that_is_not_whole_ends_the_connection(messages: list[dict[str, Any]]) -> None:
    transport = asyncio.run(answer(*messages))
    said = b"".join(transport.writes)
    assert transport.closed
    assert not said.endswith(b"0\r\n\r\n") and said.count(b"HTTP/1.1") <= 1


def test_what_comes_after_a_whole_answer_is_the_apps_defect_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = asyncio.run(answer(start(LENGTH), piece(b"hello"), piece(b"!")))
    assert len(transport.writes) == 1 and transport.writes[0].endswith(b"\r\n\r\nhello")
    assert not transport.closed
    assert [record.message for record in caplog.records] == ["a defect in openbr"]


@pytest.mark.parametrize("message", [piece(b"hello"), {"type": "http.response.trailers"}])
def test_an_answer_begins_with_its_start(message: dict[str, Any]) -> None:
    transport = asyncio.run(answer(message))
    assert b"".join(transport.writes).startswith(b"HTTP/1.1 500 ")


def test_a_stream_to_an_http_1_0_client_ends_with_its_connection(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            await client.send(b"GET /stream HTTP/1.0\r\n\r\n")
            app.go.set()
            head, _, body = (await client.end()).partition(b"\r\n\r\n")
            assert b"chunked" not in head and b"connection: close" in head
            assert body == b"firstlast"

    run(scenario())


@pytest.mark.parametrize("is_spared", [False, True])
def test_a_request_goes_on_without_its_client_if_others_wait(run: Run, is_spared: bool) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app, spare=lambda task: is_spared) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"v1/slow", b""))
            await app.entered.wait()
            (task,) = gateway.server.server_state.tasks
            await client.close()
            await eventually(lambda: not gateway.connections())
            if is_spared:
                assert not task.done() and app.cancelled == []
                app.go.set()
            await eventually(lambda: not gateway.server.server_state.tasks)
            assert app.cancelled == ([] if is_spared else [(CLIENT_GONE,)])

    run(scenario())
