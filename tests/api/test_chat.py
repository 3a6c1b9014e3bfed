"""POST /v1/chat/completions: what arrives upstream, and what comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgi import call
from fake_upstream import (
    Exchange,
    Gate,
    OpenAIUpstream,
    broken_stream,
    error,
    raw,
    redirect,
    reply,
    reset,
    silence,
    sse,
)
from fake_upstream import completion as completion_of

from openbr.app import App

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Olá, ção 😀"}]


def events(body: bytes) -> list[Any]:
    """Payloads of a stream that holds nothing but data lines and single-newline comments."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        assert len(lines) == 1 and lines[0].startswith("data: ")
        payload = lines[0][6:]
        found.append(payload if payload == "[DONE]" else json.loads(payload))
    return found


def text_of(found: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in found
        if event != "[DONE]"
        for choice in event["choices"]
    )


def test_every_field_but_model_arrives_unchanged(serve: Any) -> None:
    body = {
        "messages": HELLO,
        "temperature": 0.7,
        "unknown_to_us": {"deep": [1, 2.50, "\u2028"]},
        "model": "fake/alpha",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "stream_options": None,
        "n": 1,
    }
    sent = json.dumps(body).replace("2.5", "2.50e0")

    async def act(app: App, upstream: OpenAIUpstream) -> None:
        answer = await call(app, "POST", CHAT, body=sent)
        assert answer.status == 200
        arrived = upstream.chats[0].body.decode()
        assert json.loads(arrived) == {**body, "model": "alpha"}
        assert "2.50e0" in arrived and list(json.loads(arrived)) == list(body)

    serve(act)


def test_a_whole_answer_names_who_answered(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for asked in ("fake/alpha", "alpha"):
            answer = await call(app, "POST", CHAT, body={"model": asked, "messages": HELLO})
            said = answer.json()
            assert answer.status == 200 and answer.complete
            assert said["choices"][0]["message"]["content"] == "Hello"
            assert said["usage"]["completion_tokens"] == 2
            assert said["model"] == answer.headers["x-openbr-model"] == "fake/alpha"
            assert answer.headers["x-openbr-provider"] == "fake"
            assert answer.headers["x-openbr-cache"] == "bypass"
            assert answer.headers["x-request-id"].startswith("req_")
            assert "x-openbr-fallback" not in answer.headers

    serve(act)


def test_a_streamed_answer_names_who_answered(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        body = {"model": "fake/alpha", "messages": HELLO, "stream": True}
        answer = await call(app, "POST", CHAT, body=body)
        found = events(answer.body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert found[-1] == "[DONE]" and text_of(found) == "Olá ção 😀" and answer.complete
        assert {event["model"] for event in found[:-1]} == {"fake/alpha"}
        assert answer.headers["x-openbr-model"] == "fake/alpha"
        assert answer.headers["x-openbr-upstream-model"] == "alpha-2026-01"
        assert not any("usage" in event for event in found[:-1])

    serve(act, deltas=["Olá ", "ção", " 😀"], name="alpha-2026-01")


def test_usage_comes_when_it_is_asked_for(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        body = {
            "model": "fake/alpha",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        found = events((await call(app, "POST", CHAT, body=body)).body)
        assert [e["usage"]["prompt_tokens"] for e in found[:-1] if "usage" in e] == [5]

    serve(act)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"model": "fake/alpha", "messages": [{}]} x', None),
        (b'{"model": "fake/alpha", "messages": [{"a": 01}]}', None),
        (b'{"model": "fake/alpha", "messages": [{"a": NaN}]}', None),
        (b'{"model": "fake/alpha", "messages": [{"a": "\\ud800"}]}', None),
        (b'{"model": "fake/alpha", "messages": [{"a": "\xff"}]}', None),
        (b'{"model": "fake/alpha", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b'{"messages": [{}]}', "model"),
        (b'{"model": 7, "messages": [{}]}', "model"),
        (b'{"model": "", "messages": [{}]}', "model"),
        (b'{"model": "a\\nb", "messages": [{}]}', "model"),
        (b'{"model": "fake/alpha"}', "messages"),
        (b'{"model": "fake/alpha", "messages": "hi"}', "messages"),
        (b'{"model": "fake/alpha", "messages": []}', "messages"),
        (b'{"model": "fake/alpha", "messages": [1]}', "messages[0]"),
        (b'{"model": "fake/alpha", "messages": [{}], "stream": "yes"}', "stream"),
        (b'{"model": "fake/alpha", "messages": [{}], "temperature": "hot"}', "temperature"),
        (b'{"model": "fake/alpha", "messages": [{}], "max_tokens": 1.5}', "max_tokens"),
        (b'{"model": "fake/alpha", "messages": [{}], "api_base": "http://x"}', "api_base"),
        (b'{"model": "fake/alpha", "messages": [{}], "api_key": "k"}', "api_key"),
        (b'{"model": "fake/alpha", "messages": [{}], "extra_headers": {}}', "extra_headers"),
    ],
)
def test_bad_bodies_are_400_with_param(serve: Any, body: bytes, param: str | None) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        answer = await call(app, "POST", CHAT, body=body)
        said = answer.json()["error"]
        assert (answer.status, said["type"]) == (400, "invalid_request_error")
        assert said["param"] == param
        assert upstream.chats == []

    serve(act)


def test_unknown_and_ambiguous_models(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for name in ("nothing", "nobody/alpha", "fake/"):
            answer = await call(app, "POST", CHAT, body={"model": name, "messages": HELLO})
            assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert answer.json()["error"]["param"] == "model"
        answer = await call(app, "POST", CHAT, body={"model": "fake/new", "messages": HELLO})
        assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")

    serve(act)


def test_sizes_are_counted_as_they_come(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        big = b'{"model": "' + b"x" * 3000 + b'"}'
        for pieces in ([big], [big[:100], big[100:]]):
            answer = await call(app, "POST", CHAT, body=pieces)
            assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")
        answer = await call(app, "POST", CHAT, headers={"content-length": "99999999"})
        assert answer.status == 413
        answer = await call(app, "POST", CHAT, headers={"content-encoding": "gzip"})
        assert answer.status == 415

    serve(act, config="[limits]\nmax_body = 2000\n")


STREAMED = {"model": "fake/alpha", "messages": HELLO, "stream": True}
WHOLE = {"model": "fake/alpha", "messages": HELLO}
HTML = raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>")


@pytest.mark.parametrize("body", [STREAMED, WHOLE], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("answer", "status", "type", "code"),
    [
        (reset(), 502, "upstream_error", "upstream_unavailable"),
        (error(500, "boom"), 502, "upstream_error", "upstream_unavailable"),
        (HTML, 502, "upstream_error", "upstream_protocol_error"),
        (reply({}), 502, "upstream_error", "upstream_protocol_error"),
        (reply({"choices": []}), 502, "upstream_error", "upstream_protocol_error"),
        (reply(b"not json"), 502, "upstream_error", "upstream_protocol_error"),
        (redirect("http://169.254.169.254/"), 502, "upstream_error", "upstream_protocol_error"),
        (error(401, "key sk-canary-0123456789"), 502, "upstream_error", "upstream_auth_error"),
        (error(403, "no"), 502, "upstream_error", "upstream_auth_error"),
        (error(429, "slow down"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (error(400, "too long", code="context_length_exceeded"), 400, None,
         "context_length_exceeded"),
        (error(422, "odd"), 422, None, None),
    ],
)  # fmt: skip
def test_upstream_failures(
    serve: Any, body: Any, answer: Any, status: int, type: str | None, code: str | None
) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = answer
        got = await call(app, "POST", CHAT, body=body)
        said = got.json()["error"]
        assert got.status == status
        assert type is None or said["type"] == type
        assert code is None or said["code"] == code
        assert set(said) == {"message", "type", "param", "code"}
        assert b"sk-canary" not in got.body and b"<html" not in got.body
        assert got.headers["x-should-retry"] == "false"

    serve(act)


def test_an_empty_stream_is_not_an_answer(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for nothing in (sse(), sse({"choices": []}), sse({"choices": [{"delta": {}}]})):
            upstream.failures["alpha"] = nothing
            got = await call(app, "POST", CHAT, body=STREAMED)
            assert (got.status, got.json()["error"]["code"]) == (502, "upstream_protocol_error")

    serve(act)


@pytest.mark.parametrize("how", ["reset", "close", "end"])
def test_a_stream_that_breaks_ends_with_an_error_and_a_cut_body(serve: Any, how: str) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = broken_stream("one ", "two", how=how)
        got = await call(app, "POST", CHAT, body=STREAMED)
        found = events(got.body)
        assert got.status == 200 and not got.complete
        assert text_of(found[:-1]) == "one two"
        assert found[-1]["error"]["code"] == "stream_interrupted"
        assert "[DONE]" not in found
        assert len(upstream.chats) == 1

    serve(act)


def test_a_malformed_event_interrupts(serve: Any) -> None:
    good = json.dumps({"model": "alpha", "choices": [{"delta": {"content": "one"}}]}).encode()
    for bad in (b"{oops}", b'{"choices": 7}', b'{"x": "\xff"}', b'{"error": {"message": "m"}}'):
        body = b"data: " + good + b"\n\ndata: " + bad + b"\n\ndata: [DONE]\n\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

        async def act(app: App, upstream: OpenAIUpstream, data: bytes = head + body) -> None:
            upstream.failures["alpha"] = raw(data, then="close")
            got = await call(app, "POST", CHAT, body=STREAMED)
            assert got.status in (200, 502)
            assert b"stream_interrupted" in got.body or got.status == 502
            assert b"[DONE]" not in got.body

        serve(act)


def test_odd_but_sound_events_are_normalised(serve: Any) -> None:
    one = b'{ "model" : "alpha", "x": {"model": "alpha"}, "choices": [{"delta": {"content": "a"}}]}'
    two = b'{"choices": [{"delta": {"content": "\\"model\\":\\"alpha\\""}}], "model": "alpha"}'
    end = b'{"model":"alpha","choices":[{"delta":{},"finish_reason":"stop"}]}'
    body = (
        b"\xef\xbb\xbf: hi\r\n\r\nid: 1\r\nevent: m\r\ndata: " + one + b"\r\n\r\n"
        b"retry: 5\n\ndata:\n\ndata: " + two.replace(b", ", b",\ndata: ", 1) + b"\n\n"
        b"data:" + end + b"\n\n"
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = raw(head + body, then="close")
        got = await call(app, "POST", CHAT, body=STREAMED)
        found = events(got.body)
        assert text_of(found) == 'a"model":"alpha"' and found[-1] == "[DONE]" and got.complete
        assert [e["model"] for e in found[:-1]] == ["fake/alpha"] * 3
        assert found[0]["x"] == {"model": "alpha"}

    serve(act)


FALLBACK = """
[[providers]]
name = "dead"
base_url = "http://127.0.0.1:9/v1"
models = ["gone"]
[[routes]]
model = "default"
deployments = ["dead/gone", "fake/alpha"]
"""


@pytest.mark.parametrize("stream", [True, False])
def test_a_route_steps_around_a_dead_deployment_and_says_so(serve: Any, stream: bool) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        body = {"model": "default", "messages": HELLO, "stream": stream}
        got = await call(app, "POST", CHAT, body=body)
        assert got.status == 200
        assert got.headers["x-openbr-model"] == "fake/alpha"
        assert got.headers["x-openbr-fallback"] == "refused"
        strict = await call(app, "POST", CHAT, body={"model": "dead/gone", "messages": HELLO})
        assert (strict.status, strict.json()["error"]["code"]) == (502, "upstream_unavailable")

    serve(act, config=FALLBACK)


def test_a_rejected_request_is_nobody_elses(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = error(400, "too long", code="context_length_exceeded")
        got = await call(app, "POST", CHAT, body={"model": "default", "messages": HELLO})
        assert got.status == 400 and len(upstream.chats) == 1

    route = '[[routes]]\nmodel = "default"\ndeployments = ["fake/alpha", "fake/beta"]\n'
    serve(act, config=route)


def test_what_the_upstream_reports_as_its_name_cannot_split_a_header(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = reply(completion_of("a\r\nx-evil: 1 é", "hi"))
        got = await call(app, "POST", CHAT, body=WHOLE)
        assert got.headers["x-openbr-upstream-model"] == "a??x-evil: 1 ?"

    serve(act)


@pytest.mark.parametrize("answer", [silence(), broken_stream("", how="silence")])
def test_no_content_in_time_is_504(serve: Any, answer: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = answer
        got = await call(app, "POST", CHAT, body=STREAMED)
        assert (got.status, got.json()["error"]["type"]) == (504, "upstream_timeout")
        await upstream.until(lambda u: u.chats[0].connection.closed_at)

    serve(act, config="[limits]\nfirst_token_timeout_s = 0.2\n")


def test_silence_inside_an_answer_ends_it(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.failures["alpha"] = broken_stream("one", how="silence")
        got = await call(app, "POST", CHAT, body=STREAMED)
        assert text_of(events(got.body)[:-1]) == "one" and not got.complete

    serve(act, config="[limits]\nidle_timeout_s = 0.2\n")


def test_a_finished_stream_gives_its_connection_back(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for _ in range(3):
            assert (await call(app, "POST", CHAT, body=STREAMED)).complete
        assert len({r.connection.number for r in upstream.chats}) == 1

    serve(act)


def test_what_follows_done_is_dropped_and_bounded(serve: Any) -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    first = event + b"data: [DONE]\n\n"

    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for rest, is_kept in ((b": bye\n\n", True), (b"x" * 200_000, False)):
            gate = Gate()

            async def late(exchange: Exchange, gate: Gate = gate, rest: bytes = rest) -> None:
                await exchange.send(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                    b"content-length: %d\r\n\r\n" % (len(first) + len(rest)) + first
                )
                await gate.wait()
                await exchange.send(rest)

            upstream.failures["alpha"] = late
            assert (await call(app, "POST", CHAT, body=STREAMED)).complete
            gate.open()
            if is_kept:
                async with asyncio.timeout(10):
                    while app.upstream.stats().idle != 1:
                        await asyncio.sleep(0)
            else:
                await upstream.until(lambda u: u.chats[-1].connection.closed_at)

    serve(act)
