"""The official client against a running gateway, over a fake upstream and over the real model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fake_upstream import Gate, OpenAIUpstream, broken_stream, error
from gateway_process import GatewayProcess

TOML = """
[local]
enabled = false
[[providers]]
name = "fake"
base_url = "{url}"
"""
HELLO = [{"role": "user", "content": "Olá"}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[OpenAIUpstream]:
    with OpenAIUpstream() as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(
    upstream: OpenAIUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    with GatewayProcess(folder, TOML.format(url=upstream.base_url)) as running:
        yield running


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key="unused", max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    deadline = time.monotonic() + 10
    while not (listed := [m.id for m in client.models.list()]):
        assert time.monotonic() < deadline
    assert listed == ["fake/alpha", "fake/beta"]
    assert client.models.retrieve("fake/alpha").owned_by == "fake"


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake/alpha", messages=HELLO)
    assert answer.choices[0].message.content == "Hello"
    assert answer.model == "fake/alpha"


def test_a_streamed_answer_arrives_piece_by_piece(
    client: openai.OpenAI, upstream: OpenAIUpstream
) -> None:
    upstream.gate = gate = Gate()
    try:
        gate.release(1)
        stream = client.chat.completions.create(model="fake/alpha", messages=HELLO, stream=True)
        texts = []
        for chunk in stream:
            if text := chunk.choices[0].delta.content:
                texts.append(text)
                gate.release(1)
        assert texts == ["Hel", "lo"]
    finally:
        upstream.gate = None


def test_errors_are_the_clients_own(client: openai.OpenAI, upstream: OpenAIUpstream) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="none", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    upstream.failures["beta"] = error(429, "slow down")
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="fake/beta", messages=HELLO)
    upstream.failures["beta"] = broken_stream("one", how="reset")
    with (
        pytest.raises(openai.APIError),
        client.chat.completions.create(model="fake/beta", messages=HELLO, stream=True) as stream,
    ):
        for _ in stream:
            pass


def test_the_upstream_is_closed_when_the_client_leaves(
    client: openai.OpenAI, upstream: OpenAIUpstream
) -> None:
    upstream.gate = gate = Gate()
    try:
        gate.release(1)
        stream = client.chat.completions.create(model="fake/alpha", messages=HELLO, stream=True)
        chunk = next(chunk for chunk in stream if chunk.choices[0].delta.content)
        assert chunk.choices[0].delta.content == "Hel"
        connection = upstream.chats[-1].connection
        left = time.monotonic()
        stream.close()
        upstream.wait(lambda _: connection.closed_at is not None)
        assert connection.closed_at is not None and connection.closed_at - left < 1.0
    finally:
        gate.open()
        upstream.gate = None


def test_a_client_that_leaves_before_the_first_token(
    gateway: GatewayProcess, upstream: OpenAIUpstream
) -> None:
    upstream.gate = gate = Gate()
    try:
        seen = len(upstream.chats)
        with (
            openai.OpenAI(
                base_url=gateway.base_url, api_key="x", max_retries=0, timeout=0.3
            ) as hasty,
            pytest.raises(openai.APITimeoutError),
        ):
            hasty.chat.completions.create(model="fake/alpha", messages=HELLO, stream=True)
        connection = upstream.chats[seen].connection
        upstream.wait(lambda _: connection.closed_at is not None)
        assert connection.closed_at is not None
    finally:
        gate.open()
        upstream.gate = None


@pytest.mark.model
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_real_model_knows_the_capital(local_model: Path, tmp_path: Path, stream: bool) -> None:
    models = tmp_path / "state" / "models"
    shutil.copytree(local_model, models)
    with (
        GatewayProcess(tmp_path) as gateway,
        openai.OpenAI(base_url=gateway.base_url, api_key="unused") as client,
    ):
        answer = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "What is the capital of Brazil?"}],
            temperature=0,
            max_tokens=40,
            stream=stream,
        )
        if stream:
            chunks = list(answer)
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert {c.model for c in chunks} == {"local/smollm2-135m"}
            assert len(chunks) > 3
        else:
            text = answer.choices[0].message.content
            assert answer.model == "local/smollm2-135m"
        assert "Bras" in text
        assert gateway.stop() == 0
