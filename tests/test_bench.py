"""What the gateway bench stands on: its upstream, its yardstick and its load do what they say.

A measurement of wrong answers is worth nothing; how fast they come is the bench's business.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bench.load import Load, make_ask, post, run_chats, run_own
from bench.servers import (
    BENCH,
    Server,
    compiled_upstream,
    count_requests,
    free_port,
    pass_through,
    python_upstream,
    running,
)

PATH = "/v1/chat/completions"


UPSTREAMS = ("compiled", "python")
RELAYS = ("pass-through", "pass-through, joined")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Server]:
    # Without a compiler the bench takes the one in Python, so that is what is tested twice then.
    compiled = compiled_upstream(tmp_path_factory.mktemp("upstream"))
    return {"compiled": compiled or python_upstream(), "python": python_upstream()}


@pytest.fixture(scope="module")
def ports(servers: dict[str, Server]) -> Iterator[dict[str, int]]:
    """Both upstreams, and a pass-through to each."""
    with ExitStack() as stack:

        def start(server: Server) -> int:
            return stack.enter_context(running(server)).port

        found = {name: start(servers[name]) for name in UPSTREAMS}
        found[RELAYS[0]] = start(pass_through(found["compiled"]))
        found[RELAYS[1]] = start(pass_through(found["python"], "--joined"))
        yield found


@pytest.fixture(params=UPSTREAMS)
def upstream(ports: dict[str, int], request: pytest.FixtureRequest) -> int:
    return ports[request.param]


@pytest.fixture(params=[*UPSTREAMS, *RELAYS])
def port(ports: dict[str, int], request: pytest.FixtureRequest) -> int:
    return ports[request.param]


def ask(port: int, model: str, **fields: Any) -> tuple[int, bytes]:
    status, _, body = post(port, json.dumps({"model": model, **fields}).encode())
    return status, body


def events(body: bytes) -> list[Any]:
    """The events of a stream before its [DONE], decoded."""
    *found, last, nothing = body.decode().split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in found]


def contents(body: bytes) -> list[str]:
    choices = [one["choices"][0] for one in events(body) if one["choices"]]
    assert choices[-1]["finish_reason"] == "stop"
    deltas = [one["delta"].get("content") for one in choices]
    return [one for one in deltas if one]


def encode(model: str, **fields: Any) -> bytes:
    body = json.dumps({"model": model, **fields}).encode()
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        PATH.encode(),
        len(body),
        body,
    )


class TestAnswers:
    """The same through the pass-through as without it."""

    def test_a_whole_answer_has_usage(self, port: int) -> None:
        status, body = ask(port, "bench/fast", messages=[])
        answer = json.loads(body)
        assert status == 200
        assert 350 < len(body) < 550
        assert answer["choices"][0]["message"]["content"].startswith("Brasilia")
        assert answer["usage"]["total_tokens"] == 36

    @pytest.mark.parametrize("size", [0, 1000, 100_000, 1_000_000])
    def test_the_body_arrives_whole(self, port: int, size: int) -> None:
        body = make_ask("echo", size).body("", 7)
        status, _, answer = post(port, body)
        assert status == 200
        content = json.loads(answer)["choices"][0]["message"]["content"]
        assert content == f"{len(body)} bytes"

    def test_a_large_answer_arrives_whole(self, port: int) -> None:
        status, body = ask(port, "large-3000")
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"] == "b" * 3000 * 1024

    @pytest.mark.parametrize(("model", "count"), [("fast", 10), ("burst", 200), ("burst-7", 7)])
    def test_a_burst_has_its_chunks(self, port: int, model: str, count: int) -> None:
        assert contents(ask(port, model, stream=True)[1]) == ["Brazil "] * count

    def test_a_paced_stream_says_when_each_chunk_left(self, port: int) -> None:
        found = contents(ask(port, "paced-4", stream=True)[1])
        stamps = [int(one.removeprefix("@")) for one in found]
        assert len(stamps) == 4
        assert stamps == sorted(set(stamps))

    def test_usage_comes_in_a_stream_when_asked(self, port: int) -> None:
        options = {"include_usage": True}
        last = events(ask(port, "burst-1", stream=True, stream_options=options)[1])[-1]
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 36)
        assert "usage" not in events(ask(port, "burst-1", stream=True)[1])[-1]

    def test_a_status_is_passed_on(self, port: int) -> None:
        status, body = ask(port, "fail-429", stream=True)
        assert (status, json.loads(body)["error"]["message"]) == (429, "as asked")
        assert ask(port, "fail")[0] == 503

    def test_a_cut_stream_is_seen_to_be_cut(self, port: int) -> None:
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(port, "cut", stream=True)
        assert caught.value.partial.count(b"Brazil") == 3

    def test_requests_of_a_connection_are_answered_in_turn(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for model in ("fast", "slow-1", "fast", "echo"):
            connection.request("POST", PATH, json.dumps({"model": model}))
            sock = connection.sock
            assert connection.getresponse().read()
            assert connection.sock is sock is not None
        connection.close()

    def test_pipelined_requests_are_answered_in_turn(self, port: int) -> None:
        models = ("slow-5", "large-1", "fast", "slow-1", "echo")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(b"".join(encode(model) for model in models[:-1]))
            sock.sendall(encode(models[-1])[:-1])
            sock.sendall(encode(models[-1])[-1:])
            found = []
            with sock.makefile("rb") as lines:
                for _ in models:
                    assert lines.readline() == b"HTTP/1.1 200 OK\r\n"
                    size = 0
                    while (line := lines.readline().lower()) != b"\r\n":
                        if line.startswith(b"content-length:"):
                            size = int(line[15:])
                    found.append(json.loads(lines.read(size))["choices"][0]["message"]["content"])
        assert [one[:4] for one in found] == ["Bras", "bbbb", "Bras", "Bras", "17 b"]

    def test_a_connection_is_closed_when_asked(self, port: int) -> None:
        request = encode("fast").replace(b"Host: x", b"Host: x\r\nConnection: close")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(request)
            with sock.makefile("rb") as whole:
                assert whole.read().endswith(b"}")


def test_the_upstream_counts_chats(upstream: int) -> None:
    before = count_requests(upstream)
    ask(upstream, "fast")
    ask(upstream, "burst-2", stream=True)
    assert count_requests(upstream) == before + 2


def test_the_upstream_lists_its_models(upstream: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=30)
    connection.request("GET", "/v1/models")
    names = {one["id"] for one in json.loads(connection.getresponse().read())["data"]}
    connection.close()
    assert {"fast", "burst", "paced"} <= names


@pytest.mark.parametrize("kind", UPSTREAMS)
def test_a_kept_connection_that_went_stale_is_replaced(
    servers: dict[str, Server], kind: str
) -> None:
    port = free_port()
    with ExitStack() as stack:
        with running(servers[kind], port):
            door = stack.enter_context(running(pass_through(port))).port
            assert ask(door, "fast")[0] == 200
        assert ask(door, "fast")[0] == 502
        with running(servers[kind], port):
            assert ask(door, "fast")[0] == 200


class TestLoad:
    def run(self, port: int, kind: str, model: str, chunks: int = 0, **fields: Any) -> Load:
        ask = make_ask(model, 300, **fields)
        return run_own(port, kind, ask, connections=3, seconds=0.1, chunks=chunks)

    @pytest.mark.parametrize("kind", ["chat", "batch"])
    def test_all_answers_are_counted(self, upstream: int, kind: str) -> None:
        before = count_requests(upstream)
        found = self.run(upstream, kind, "fast")
        assert found.failed == 0
        assert found.requests == count_requests(upstream) - before >= 3
        assert 0 < found.p50_s <= found.p95_s <= found.p99_s

    @pytest.mark.parametrize("kind", ["chat", "batch", "stream"])
    def test_failures_are_counted(self, upstream: int, kind: str) -> None:
        found = self.run(upstream, kind, "fail-500")
        assert found.requests == 0
        assert found.failed >= 3

    def test_streams_tell_how_late_each_chunk_is(self, upstream: int) -> None:
        found = self.run(upstream, "stream", "paced-4", 4, stream=True)
        assert (found.requests, found.failed, found.chunks, len(found.lags_s)) == (3, 0, 12, 12)
        assert all(lag > 0 for lag in found.lags_s)

    @pytest.mark.parametrize(("model", "chunks"), [("burst-4", 5), ("cut", 3)])
    def test_a_stream_that_is_not_whole_fails(self, upstream: int, model: str, chunks: int) -> None:
        found = self.run(upstream, "stream", model, chunks, stream=True)
        assert (found.requests, found.failed) == (0, 3)

    def test_a_server_that_is_not_there_is_no_answer(self) -> None:
        with pytest.raises(RuntimeError, match="refused"):
            self.run(free_port(), "chat", "fast")

    @pytest.mark.parametrize(("model", "is_answered"), [("fast", True), ("fail", False)])
    def test_the_usual_way_counts_the_same(
        self, upstream: int, model: str, is_answered: bool
    ) -> None:
        found = run_chats(upstream, make_ask(model, 300), connections=2, seconds=0.1)
        assert (found.requests > 0, found.failed > 0) == (is_answered, not is_answered)

    def test_bodies_differ_unless_asked_not_to(self) -> None:
        ask = make_ask("m", 1024, temperature=0)
        assert ask.body("a", 1) != ask.body("a", 2) != ask.body("b", 2)
        same = make_ask("m", 1024, temperature=0, is_unique=False)
        assert same.body("a", 1) == same.body("b", 2)
        for body in (ask.body("0123456789ab-", 1), same.body("", 1)):
            assert json.loads(body)["temperature"] == 0
            assert 900 < len(body) < 1100


def test_the_bench_tells_what_it_can_do() -> None:
    command = [sys.executable, str(BENCH / "bench_gateway.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "chat-16" in done.stdout
