"""The fault server does what it promises, so that the tests that lean on it prove something.

Spoken to by plain sockets and the standard library's client alone.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from typing import Any

import pytest
from fake_upstream import (
    FakeUpstream,
    Gate,
    OpenAIUpstream,
    black_hole,
    broken_stream,
    close,
    cut_chunked,
    delayed,
    error,
    flood,
    half_close,
    lying_length,
    refused,
    reply,
    reset,
    silence,
    sse,
)

REQUEST = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"


def exchange(server: FakeUpstream, request: bytes = REQUEST) -> bytes:
    """Send, hang up our half, and read to the end."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(request)
        data = b""
        while piece := client.recv(65536):
            data += piece
        return data


def ask(server: FakeUpstream, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def events(body: bytes) -> list[Any]:
    texts = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def test_it_records_what_arrived_and_who_left() -> None:
    with FakeUpstream(close(b"bye")) as server:
        assert exchange(server) == b"bye"
        server.wait(lambda s: s.connections[0].closed_at)
        (request,) = server.requests
        assert (request.method, request.path, request.body) == ("POST", "/a?b=c", b"body")
        assert request.headers == {"host": "x", "content-length": "4"}
        assert server.connections[0].closed_by == "upstream"

    with FakeUpstream(silence()) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(REQUEST)
            server.wait(lambda s: s.requests)
            assert server.open_connections
        server.wait(lambda s: s.connections[0].closed_at)
        assert server.connections[0].closed_by == "client"


def test_the_last_answer_repeats() -> None:
    with FakeUpstream(reply({"n": 1}), error(503, "busy"), reply({"n": 3})) as server:
        assert ask(server, "/") == (200, b'{"n": 1}')
        status, said = ask(server, "/")
        assert (status, json.loads(said)["error"]["message"]) == (503, "busy")
        assert ask(server, "/") == ask(server, "/") == (200, b'{"n": 3}')


def test_faults() -> None:
    answers = [reset(b"lost"), cut_chunked(b"abc"), lying_length(b"abc", 9), half_close(b"half")]
    with FakeUpstream(*answers) as server:
        with pytest.raises(ConnectionResetError):
            exchange(server)
        for kind in (http.client.IncompleteRead, http.client.IncompleteRead):
            with pytest.raises(kind):
                ask(server, "/")
        assert exchange(server) == b"half"


def test_a_fault_in_an_answer_is_the_test_s_fault() -> None:
    async def wrong(_: Any) -> None:
        raise AssertionError("a mistake in the test")

    with pytest.raises(AssertionError, match="a mistake"), FakeUpstream(wrong) as server:
        exchange(server)


def test_delays_and_gates() -> None:
    gate = Gate()
    with FakeUpstream(delayed(0.1, reply()), sse({"n": 1}, {"n": 2}, gate=gate)) as server:
        begun = time.monotonic()
        ask(server, "/")
        assert time.monotonic() - begun >= 0.1
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(REQUEST)
            got = client.recv(65536)
            gate.release()
            while b'{"n": 1}' not in got:
                got += client.recv(65536)
            assert b'{"n": 2}' not in got
            gate.open()
            while not got.endswith(b"0\r\n\r\n"):
                got += client.recv(65536)
            assert b'{"n": 2}' in got and b"[DONE]" in got


def test_it_notices_a_client_that_does_not_read() -> None:
    with FakeUpstream(flood()) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(REQUEST)
            server.wait(lambda s: s.connections and s.connections[0].is_blocked)
        server.wait(lambda s: s.connections[0].closed_at)


def test_waiting_has_an_end() -> None:
    with FakeUpstream() as server, pytest.raises(TimeoutError, match="0 requests"):
        server.wait(lambda s: s.requests, 0.01)

    async def main() -> None:
        async with FakeUpstream() as server:
            with pytest.raises(TimeoutError, match="0 requests"):
                await server.until(lambda s: s.requests, 0.01)

    asyncio.run(main())


def test_in_the_loop_of_the_test() -> None:
    async def main() -> None:
        async with FakeUpstream(reply(b"x")) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(REQUEST)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            await server.until(lambda s: s.connections[0].closed_at)

    asyncio.run(main())


def test_places_that_do_not_answer() -> None:
    with refused() as url, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=2)
    with black_hole() as url, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=0.2)


def test_openai_models_and_keys() -> None:
    with OpenAIUpstream(models=["one", "two"], key="sk-right") as server:
        status, said = ask(server, "/v1/models", authorization="Bearer sk-right")
        assert status == 200
        assert [model["id"] for model in json.loads(said)["data"]] == ["one", "two"]
        status, said = ask(server, "/v1/models")
        assert (status, json.loads(said)["error"]["code"]) == (401, "invalid_api_key")
        server.key = None
        server.list_answer = reply({"data": []})
        assert ask(server, "/v1/models") == (200, b'{"data": []}')
        assert ask(server, "/v2")[0] == 404


def test_openai_completions() -> None:
    with OpenAIUpstream(failures={"bad": error(500, "no"), "cut": broken_stream("Hi")}) as server:
        asked: dict[str, Any] = {"model": "alpha", "messages": []}
        status, said = ask(server, "/v1/chat/completions", asked)
        whole = json.loads(said)
        assert (status, whole["model"]) == (200, "alpha")
        assert whole["choices"][0]["message"]["content"] == "Hello"
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage, done = events(ask(server, "/v1/chat/completions", asked)[1])
        texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(texts) == "Hello"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 7, "[DONE]")
        assert ask(server, "/v1/chat/completions", {**asked, "model": "bad"})[0] == 500
        assert ask(server, "/v1/chat/completions", {**asked, "model": "nobody"})[0] == 404
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            ask(server, "/v1/chat/completions", {**asked, "model": "cut"})
        assert len(server.chats) == len(server.requests) == 5
