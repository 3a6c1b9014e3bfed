"""What a client may send, and what it gets: raw bytes over a real socket, on both kinds of loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest

from openbr.stream import CLIENT_GONE
from server.conftest import App, Run, eventually, running

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n%b\r\n"
POST = b"POST /%b HTTP/1.1\r\nHost: a\r\n%b\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: a\r\n"

REFUSED = {
    "length and chunked": LENGTH
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": LENGTH + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "two equal lengths": LENGTH + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": LENGTH + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": LENGTH + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": LENGTH + b"Content-Length: -5\r\n\r\nhello",
    "a hexadecimal length": LENGTH + b"Content-Length: 0x5\r\n\r\nhello",
    "an empty length": LENGTH + b"Content-Length: \r\n\r\nhello",
    "a length in two": LENGTH + b"Content-Length: 5 5\r\n\r\nhello",
    "an endless length": LENGTH + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "chunked twice": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": LENGTH + b"Transfer-Encoding: identity\r\n\r\n",
    "identity, chunked": LENGTH + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": LENGTH + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": LENGTH + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": LENGTH + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "vertical tab": LENGTH + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": LENGTH + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "an empty encoding": LENGTH + b"Transfer-Encoding: \r\n\r\n",
    "chunked in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "bare LF after a header": b"GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare LF only": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\rA: b\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
    "a header folded by a tab": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\tc\r\n\r\n",
    "the first header folded": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nHost: a\r\nA\0: b\r\n\r\n",
    "a header without colon": b"GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n",
    "a header without name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "LF after a chunk's size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "LF after a chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "LF after the last chunk": CHUNKED + b"5\r\nhello\r\n0\n\n",
    "a space in a chunk's size": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "0x in a chunk's size": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk too large for a number": CHUNKED + b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"5\r\nhelloXX0\r\n\r\n",
    "a length in a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown method": b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "another authority": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control character in the path": b"GET /a\x01b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a path beyond ASCII": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    "nonsense": b"\xff\xfe\xfd\r\n\r\n",
}

SERVED = {
    "chunked": CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
    "chunked after a tab": LENGTH + b"Transfer-Encoding:\tchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks with extensions": CHUNKED + b"2;a=b\r\nhe\r\n3;c\r\nllo\r\n0\r\n\r\n",
    "a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX-Late: 1\r\nHost: b\r\n\r\n",
    "a length": LENGTH + b"Content-Length: 5\r\n\r\nhello",
    "a body with GET": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "CRLF before": b"\r\n\r\n" + LENGTH + b"Content-Length: 5\r\n\r\nhello",
    "the same authority": b"POST http://A/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.0": b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    "an upgrade that is not made": LENGTH
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    + b"Content-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("bytewise", [False, True])
def test_what_two_parsers_could_read_differently_is_refused(
    run: Run, name: str, bytewise: bool
) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            data = REFUSED[name]
            # What stands behind must not be read as a request, whatever the parser thinks.
            data += b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            if bytewise:
                await client.send_bytewise(data)
            else:
                await client.send(data)
            answer = await client.answer()
            assert answer.status == 400
            assert answer.headers["connection"] == "close"
            assert answer.headers["x-request-id"]
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
            assert await client.end() == b""
            assert not [path for _, path, _ in app.requests if "smuggled" in path]

    run(scenario())


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("bytewise", [False, True])
def test_what_is_http_is_served(run: Run, name: str, bytewise: bool) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            client = await gateway.connect()
            await (client.send_bytewise if bytewise else client.send)(SERVED[name])
            answer = await client.answer()
            assert answer.status == 200
            said = answer.json()
            assert (said["path"], said["body"]) == ("/", "hello")
            assert "x-late" not in said["headers"], "a trailer is no header"
            assert said["headers"].count("host") <= 1
            assert "upgrade" not in said["headers"]
            if "1.0" in name:
                assert answer.headers["connection"] == "close"
                assert await client.end() == b""
            else:
                await client.send(GET % (b"next", b""))
                assert (await client.answer()).json()["path"] == "/next"

    run(scenario())


# sizes


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 5000,
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"x" * 5000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 129 + b"\r\n",
        b"\r\n" * 2500,
        CHUNKED + b"5\r\nhello\r\n0\r\nX-Late: " + b"x" * 5000,
        CHUNKED + b"5;a=" + b"x" * 5000,
    ],
    ids=[
        "one header",
        "one header, unfinished",
        "the path",
        "the path, unfinished",
        "many headers",
        "empty lines",
        "a trailer",
        "a chunk extension",
    ],
)
def test_heads_have_a_size(run: Run, data: bytes) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app, limits={"max_head_bytes": 4096}) as gateway:
            for bytewise in (False, True):
                app.entered.clear()
                client = await gateway.connect()
                await (client.send_bytewise if bytewise else client.send)(data)
                if data.startswith(CHUNKED) and not bytewise:
                    # What came with the last piece of the body is counted from the next read on.
                    await app.entered.wait()
                    await client.send(b"x" * 5000)
                answer = await client.answer()
                assert answer.status == 431
                assert answer.json()["error"]["code"] == "headers_too_large"
                assert await client.end() == b""

    run(scenario())


def test_large_bodies_are_no_large_heads(run: Run) -> None:
    async def scenario() -> None:
        async with running(App(), limits={"max_head_bytes": 4096}) as gateway:
            whole = LENGTH + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000
            assert len((await gateway.ask(whole)).json()["body"]) == 300_000
            chunks = CHUNKED + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
            assert len((await gateway.ask(chunks)).json()["body"]) == 20_000
            client = await gateway.connect()
            await client.send((GET % (b"", b"")) * 60)
            for _ in range(60):
                assert (await client.answer()).status == 200

    run(scenario())


# times


def test_a_head_has_a_time(run: Run) -> None:
    async def scenario() -> None:
        async with running(App(), limits={"head_s": 0.05, "body_rest_s": 0.1}) as gateway:
            client = await gateway.connect()
            await client.send(b"GET / HTTP/1.1\r\nHost:")
            answer = await client.answer()
            assert (answer.status, answer.json()["error"]["code"]) == (408, "head_timeout")
            assert await client.end() == b""
            # Dribbling does not buy time.
            client = await gateway.connect()
            with pytest.raises(ConnectionError):
                for _ in range(10_000):
                    await client.send(b"\r\n")
                    await asyncio.sleep(0.001)

    run(scenario())


def test_a_body_may_be_slow_but_not_silent(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app, limits={"body_s": 0.1, "body_rest_s": 0.1}) as gateway:
            client = await gateway.connect()
            await client.send(POST % (b"v1/echo", b"Content-Length: 9\r\n"))
            for _ in range(8):
                await client.send(b"x")
                await asyncio.sleep(0.03)  # slow, and longer than body_s in all
            await client.send(b"x")
            assert (await client.answer()).json()["body"] == "x" * 9
            await client.send(POST % (b"v1/echo", b"Content-Length: 9\r\n") + b"xx")
            answer = await client.answer()
            assert (answer.status, answer.json()["error"]["code"]) == (408, "body_timeout")
            assert await client.end() == b""
            assert app.cancelled == [(CLIENT_GONE,)]

    run(scenario())


def test_a_connection_that_says_nothing_is_closed(run: Run) -> None:
    async def scenario() -> None:
        async with running(App(), limits={"head_s": 0.05}) as gateway:
            client = await gateway.connect()
            assert await client.end() == b""

    run(scenario())


def test_an_idle_connection_is_closed_after_keep_alive(run: Run) -> None:
    async def scenario() -> None:
        limits = {"keep_alive_s": 0.05, "head_s": 5.0}
        async with running(App(), limits=limits) as gateway:
            client = await gateway.connect()
            for _ in range(3):
                await client.send(GET % (b"", b""))
                assert (await client.answer()).status == 200
            assert await client.end() == b""

    run(scenario())


def test_a_head_may_wait_for_the_answer_before_it(run: Run) -> None:
    """The time of a pipelined head begins when the client can be blamed for it."""

    async def scenario() -> None:
        app = App()
        async with running(app, limits={"head_s": 0.05}) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"slow", b"") + b"GET / HTTP/1.1\r\nHo")
            await app.entered.wait()
            (connection,) = gateway.connections()
            assert connection._in_head and connection._timer is None
            app.go.set()
            assert (await client.answer()).body == b"slow"
            await client.send(b"st: a\r\n\r\n")
            assert (await client.answer()).status == 200
            await client.send(b"GET / HTTP/1.1\r\nHo")
            assert (await client.answer()).status == 408

    run(scenario())


def test_a_client_that_takes_nothing_is_cut(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app, limits={"write_s": 0.1}) as gateway:
            client = await gateway.connect(limit=1024)
            await client.send(GET % (b"v1/flood", b""))
            await eventually(lambda: app.cancelled)
            assert app.cancelled == [(CLIENT_GONE,)]
            await eventually(lambda: not gateway.server.server_state.connections)

    run(scenario())


# order


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            body = LENGTH + b"Content-Length: 3\r\n\r\ntwo"
            await client.send(GET % (b"slow", b"") + body + GET % (b"three", b""))
            await app.entered.wait()
            app.go.set()
            assert (await client.answer()).body == b"slow"
            assert (await client.answer()).json()["body"] == "two"
            assert (await client.answer()).json()["path"] == "/three"

    run(scenario())


@pytest.mark.parametrize("bad", ["bare LF only", "no Host", "two lengths", "nonsense"])
def test_a_refusal_does_not_overtake_the_answers_before_it(run: Run, bad: str) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"slow", b"") + GET % (b"two", b"") + REFUSED[bad])
            await app.entered.wait()
            (connection,) = gateway.connections()
            await eventually(lambda: connection._refused)
            app.go.set()
            assert (await client.answer()).body == b"slow"
            assert (await client.answer()).json()["path"] == "/two"
            assert (await client.answer()).status == 400
            assert await client.end() == b""

    run(scenario())


def test_a_broken_body_behind_a_slow_answer(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"slow", b"") + CHUNKED + b"zz\r\n")
            await app.entered.wait()
            app.go.set()
            assert (await client.answer()).body == b"slow"
            assert (await client.answer()).status == 400
            assert await client.end() == b""
            assert [path for _, path, _ in app.requests] == ["/slow"]

    run(scenario())


def test_too_many_pipelined_requests_are_refused(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app, limits={"max_pipelined": 3}) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"slow", b"") + (GET % (b"", b"")) * 5)
            await app.entered.wait()
            app.go.set()
            assert [(await client.answer()).status for _ in range(5)] == [200, 200, 200, 200, 400]
            assert await client.end() == b""

    run(scenario())


# bodies that break, and answers before their end


@pytest.mark.parametrize("path, cancelled", [(b"v1/echo", True), (b"ui/echo", False)])
def test_a_body_that_breaks_ends_its_request(run: Run, path: bytes, cancelled: bool) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            await client.send(POST % (path, b"Transfer-Encoding: chunked\r\n") + b"2\r\nhe\r\n")
            await app.entered.wait()
            await client.send(b"zz\r\n")
            assert (await client.answer()).status == 400
            assert await client.end() == b""
            await eventually(lambda: not gateway.server.server_state.tasks)
            assert bool(app.cancelled) is cancelled
            assert bool(app.disconnected) is not cancelled

    run(scenario())


@pytest.mark.parametrize("path", [b"early", b"early_close"])
def test_an_answer_before_the_body_arrives_whole(run: Run, path: bytes) -> None:
    """A socket closed with unread input would be reset, and the answer lost with it."""

    async def scenario() -> None:
        async with running(App(), limits={"body_rest_s": 0.5}) as gateway:
            client = await gateway.connect()
            await client.send(POST % (path, b"Content-Length: 50000000\r\n"))
            for _ in range(100):
                await client.send(b"x" * 10_000)
            assert (await client.answer()).body == b"no need to read that"
            assert await client.end() == b""

    run(scenario())


def test_the_rest_of_a_body_is_dropped_and_the_connection_goes_on(run: Run) -> None:
    async def scenario() -> None:
        async with running(App(), limits={"body_rest_s": 0.2}) as gateway:
            client = await gateway.connect()
            await client.send(POST % (b"early", b"Content-Length: 10\r\n"))
            assert (await client.answer()).status == 200
            await client.send(b"0123456789")
            (connection,) = gateway.connections()
            await eventually(lambda: connection.timeout_keep_alive_task)
            assert connection._timer is None
            await client.send(GET % (b"next", b""))
            assert (await client.answer()).json()["path"] == "/next"
            # And the other way: a rest that never ends is not waited for.
            await client.send(POST % (b"early", b"Content-Length: 10\r\n"))
            assert (await client.answer()).status == 200
            assert await client.end() == b""

    run(scenario())


def test_expect_continue(run: Run) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            client = await gateway.connect()
            await client.send(POST % (b"", b"Content-Length: 5\r\nExpect: 100-continue\r\n"))
            assert await client.line() == b"HTTP/1.1 100 Continue\r\n"
            assert await client.line() == b"\r\n"
            await client.send(b"hello")
            assert (await client.answer()).json()["body"] == "hello"

    run(scenario())


def test_head_has_no_body(run: Run) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            client = await gateway.connect()
            await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET % (b"two", b""))
            assert (await client.answer(is_head=True)).status == 200
            assert (await client.answer()).json()["path"] == "/two"

    run(scenario())


# clients that leave


def test_a_v1_request_is_cancelled_when_its_client_leaves(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            for path in (b"v1/hang", b"v1/slow", b"v1/stream"):
                app.entered.clear()
                client = await gateway.connect()
                await client.send(GET % (path, b""))
                await app.entered.wait()
                await client.close()
                await eventually(lambda: not gateway.server.server_state.tasks)
            assert app.cancelled == [(CLIENT_GONE,)] * 3

    run(scenario())


def test_another_request_is_told_but_not_cancelled(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"ui/hang", b"") + GET % (b"ui/queued", b""))
            await app.entered.wait()
            await client.close()
            await eventually(lambda: app.disconnected)
            await eventually(lambda: not gateway.server.server_state.tasks)
            assert app.cancelled == []
            assert [path for _, path, _ in app.requests] == ["/ui/hang"]

    run(scenario())


def test_a_connection_that_ended_leaves_nothing_to_collect(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        async with running(app) as gateway:
            for path in (b"", b"v1/hang", b"cut", b"early"):
                client = await gateway.connect()
                await client.send(GET % (path, b""))
                await eventually(gateway.connections)
                connection = weakref.ref(*gateway.connections())
                if b"hang" not in path:
                    await client.answer()
                await client.close()
                await eventually(lambda: connection() is None)  # noqa: B023

    gc.collect()
    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()


# the app's side


def test_an_answer_left_unfinished_is_cut(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            client = await gateway.connect()
            await client.send(GET % (b"cut", b""))
            answer = await client.answer()
            assert (answer.body, answer.complete) == (b"half an ans", False)

    with caplog.at_level(logging.INFO):
        run(scenario())
    assert not caplog.records, "cutting a broken stream is not a defect"


@pytest.mark.parametrize("path", [b"broken", b"silent"])
def test_a_defect_is_a_500_in_the_envelope(
    run: Run, path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            answer = await gateway.ask(GET % (path, b""))
            assert answer.status == 500
            assert answer.json()["error"]["type"] == "server_error"
            assert answer.headers["x-request-id"]

    with caplog.at_level(logging.ERROR, "openbr"):
        run(scenario())
    assert bool(caplog.records) is (path == b"broken")


def test_every_answer_has_a_date_and_no_server_name(run: Run) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            for request in (GET % (b"", b""), REFUSED["no Host"]):
                answer = await gateway.ask(request)
                assert answer.headers["date"].endswith(" GMT")
                assert "server" not in answer.headers

    run(scenario())


# many connections


def test_beyond_the_limit_of_connections_a_client_is_told_so(run: Run) -> None:
    async def scenario() -> None:
        app = App()
        limits = {"max_connections": 2, "max_spare": 1}
        async with running(app, limits=limits) as gateway:
            state = gateway.server.server_state
            first, second = await gateway.connect(), await gateway.connect()
            await eventually(lambda: len(state.connections) == 2)
            third = await gateway.connect()
            await third.send(GET % (b"v1/models", b""))
            answer = await third.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "overloaded"
            assert await third.end() == b""
            assert app.requests == []
            await third.close()
            await eventually(lambda: len(state.connections) == 2)
            spare = await gateway.connect()
            await eventually(lambda: len(state.connections) == 3)
            beyond = await gateway.connect()
            assert await beyond.end() == b""
            for client in (first, second):
                await client.send(GET % (b"", b""))
                assert (await client.answer()).status == 200
            await spare.close()
            await first.close()
            await eventually(lambda: len(state.connections) == 1)
            assert (await gateway.ask(GET % (b"", b""))).status == 200

    run(scenario())


def test_many_slow_clients_do_not_slow_the_others(run: Run) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            slow = [await gateway.connect() for _ in range(300)]
            for client in slow:
                await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Len")
            await eventually(lambda: len(gateway.connections()) == 300)
            times = []
            for _ in range(5):
                begun = asyncio.get_running_loop().time()
                assert (await gateway.ask(GET % (b"healthz", b""))).status == 200
                times.append(asyncio.get_running_loop().time() - begun)
            assert min(times) < 0.1

    run(scenario())


def test_speaking_tls_to_an_http_port_is_told_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running(App()) as gateway:
            for _ in range(3):
                await gateway.ask(REFUSED["TLS"])

    run(scenario())
    told: list[Any] = [record for record in caplog.records if "--tls" in record.getMessage()]
    assert len(told) == 1
