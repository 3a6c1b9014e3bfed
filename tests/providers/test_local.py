"""The local models: a real child process, and wherever an answer matters the real model."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from conftest_model import NAME
from model_files import tiny_gguf

from openbr.config import LimitsConfig, LocalConfig
from openbr.errors import (
    StreamInterruptedError,
    UpstreamRejectedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from openbr.library import Library
from openbr.providers import local as local_module
from openbr.providers.base import ChatStream
from openbr.providers.local import LocalProvider
from openbr.providers.openai import OpenAIProvider
from openbr.records import ChatRequest, Deployment
from openbr.secret import Secret
from openbr.upstream import Upstream

DEADLINE_S = 20.0
CAPITAL = "What is the capital of Brazil?"
LONG = "Write a very long story about the sea."

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="no xllamacpp wheel for this machine and Python",
)


def ask(text: str, **fields: Any) -> ChatRequest:
    body = {
        "model": "default",
        "stream": True,
        "temperature": 0,
        "messages": [{"role": "user", "content": text}],
        **fields,
    }
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    return ChatRequest(model="default", stream=bool(body["stream"]), fields=raw)


def on(name: str) -> Deployment:
    return Deployment(provider="local", upstream_model=name, is_local=True)


class Local:
    """A LocalProvider with what app.py gives it, and a record of the children it talked to."""

    def __init__(self, folder: Path, *, idle_s: float = 300.0, **options: Any) -> None:
        self.upstream = Upstream()
        self.children: list[tuple[str, str]] = []
        config = LocalConfig(idle_unload_s=idle_s, **options.pop("config", {}))
        self.provider = LocalProvider(config, Library(folder), self._adapter, **options)

    def _adapter(self, base_url: str, key: str) -> OpenAIProvider:
        self.children.append((base_url, key))
        return OpenAIProvider(
            name="local",
            base_url=base_url,
            keys=(Secret(key),),
            upstream=self.upstream,
            limits=LimitsConfig(),
            is_local=True,
        )

    async def open(self, text: str, name: str = NAME, **fields: Any) -> ChatStream:
        return await self.provider.open_chat(ask(text, **fields), on(name))

    async def say(self, text: str, name: str = NAME, **fields: Any) -> str:
        return await read(await self.open(text, name, **fields))

    @property
    def pid(self) -> int:
        assert self.provider.worker_pid is not None
        return self.provider.worker_pid


async def read(stream: ChatStream) -> str:
    text = ""
    try:
        while await stream.next():
            text += stream.text
    finally:
        stream.close()
    return text


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[Local]:
    local = Local(folder, **options)
    try:
        yield local
    finally:
        await local.provider.close()
        await local.upstream.aclose()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test()

    asyncio.run(bounded())


async def until(fact: Callable[[], bool]) -> None:
    """Look at a fact that no event tells of, every few milliseconds until the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not fact():
            await asyncio.sleep(0.005)


async def gone(pid: int) -> None:
    await until(lambda: not psutil.pid_exists(pid))


@pytest.fixture
def two_models(local_model: Path, tmp_path: Path) -> Path:
    """A models folder in which the model has two names, `a` and `b`."""
    library = Library(tmp_path / "models")
    for name in ("a", "b"):
        library.add(local_model / f"{NAME}.gguf", name)
    return library.folder


# Without a model: why there is none, and what to do.


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a file whose header is sound and whose weights are no model."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(tiny_gguf())
    return folder


def assert_off(local: Local, reason: str) -> None:
    provider = local.provider
    said = provider.available()
    assert said is not None and reason in said
    assert provider.state == "off" and provider.worker_pid is None

    async def test() -> None:
        for act in (provider.fetch_models(), local.open(CAPITAL)):
            with pytest.raises(UpstreamUnavailableError, match=reason) as caught:
                await act
            assert (caught.value.reason, caught.value.provider) == ("disabled", "local")
        await provider.close()
        await local.upstream.aclose()

    run(test)


def test_off_by_config(tiny: Path) -> None:
    assert_off(Local(tiny, config={"enabled": False}), "turned off: set enabled = true under")


def test_off_without_llama(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_off(Local(tiny), "run `pip install openbr")


@needs_llama
def test_off_without_a_model(empty: Path) -> None:
    assert_off(Local(empty), "run `openbr models pull`")


@needs_llama
def test_it_is_back_as_soon_as_there_is_a_model(empty: Path) -> None:
    async def test() -> None:
        async with running(empty) as local:
            assert local.provider.state == "off" and not local.provider.offers("tiny")
            empty.mkdir()
            (empty / "tiny.gguf").write_bytes(tiny_gguf())
            assert local.provider.state == "stopped" and local.provider.offers("tiny")
            (model,) = await local.provider.fetch_models()
            assert (model.id, model.context_tokens) == ("local/tiny", 2048)
            with pytest.raises(UpstreamUnavailableError, match="no local model other"):
                await local.open(CAPITAL, "other")

    run(test)


@needs_llama
def test_a_file_that_llama_cannot_load(tiny: Path) -> None:
    async def test() -> None:
        async with running(tiny) as local:
            for _ in range(2):  # a failed load is no state that one must get out of
                with pytest.raises(UpstreamUnavailableError) as caught:
                    await local.open(CAPITAL, "tiny")
                assert "the local model tiny could not be loaded: " in caught.value.message
                assert "key not found in model" in caught.value.message, "llama.cpp's own reason"
                assert "\n" not in caught.value.message
                assert local.provider.state == "stopped" and local.provider.worker_pid is None
            assert local.children == []

    run(test)


# With the real model.


@pytest.mark.model
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_knows_the_capital(local_model: Path, loop: str) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            assert local.provider.state == "stopped"
            stream = await local.open(CAPITAL)
            assert local.provider.state == "ready"
            assert "Bras" in await read(stream)
            assert stream.answer.finish_reason == "stop"
            assert stream.answer.upstream_model == NAME
            whole = await local.provider.complete_chat(ask(CAPITAL, stream=False), on(NAME))
            assert "Bras" in json.loads(whole.body)["choices"][0]["message"]["content"]
            assert whole.answer.usage is not None and whole.answer.usage.output_tokens > 3
            assert len(local.children) == 1

    if loop == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        uvloop.run(test())
    else:
        run(test)


@pytest.mark.model
def test_its_list(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model, config={"context": 1 << 20}) as local:
            (model,) = await local.provider.fetch_models()
            assert (model.id, model.size_bytes) == (f"local/{NAME}", 98_362_432)
            assert model.context_tokens == 8192, "not more than it was trained for"
            assert local.provider.worker_pid is None, "a list starts nothing"

    run(test)


@pytest.mark.model
def test_the_child_wants_its_key_and_tells_nobody(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            await local.say("hi", max_tokens=1)
            ((base_url, key),) = local.children
            assert base_url.startswith("http://127.0.0.1:") and len(key) == 64
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                for path in ("/models", "/chat/completions"):
                    assert await status(base_url + path, headers) == 401
            assert await status(base_url + "/models", {"Authorization": f"Bearer {key}"}) == 200
            child = psutil.Process(local.pid)
            assert key not in " ".join(child.cmdline())
            assert child.environ() == {}
            listening = [c for c in child.net_connections("tcp") if c.status == "LISTEN"]
            assert [c.laddr.ip for c in listening] == ["127.0.0.1"]
            assert os.getsid(child.pid) == child.pid, "a signal to the terminal is not for it"

    run(test)


async def status(url: str, headers: dict[str, str]) -> int:
    def get() -> int:
        proxyless = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with proxyless.open(urllib.request.Request(url, headers=headers), timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code

    return await asyncio.to_thread(get)


@pytest.mark.model
def test_a_request_that_it_refuses_is_no_end(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            with pytest.raises(UpstreamRejectedError, match="max_tokens"):
                await local.open("hi", max_tokens="many")
            with pytest.raises(UpstreamRejectedError, match="context"):
                await local.open("word " * 5000)
            pid = local.pid
            assert "Bras" in await local.say(CAPITAL)
            assert local.pid == pid

    run(test)


@pytest.mark.model
def test_many_first_requests_start_one_child(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            requests = [asyncio.create_task(local.say("hi", max_tokens=2)) for _ in range(5)]
            await until(lambda: local.provider.state == "loading")
            await asyncio.gather(*requests)
            assert len(local.children) == 1

    run(test)


@pytest.mark.model
def test_a_caller_who_leaves_does_not_end_the_load_of_others(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            first = asyncio.create_task(local.say("hi", max_tokens=2))
            second = asyncio.create_task(local.say("hi", max_tokens=2))
            await until(lambda: local.provider.worker_pid is not None)
            pid = local.pid
            first.cancel()
            await second
            assert local.pid == pid and first.cancelled()

    run(test)


@pytest.mark.model
def test_a_load_that_all_have_left_is_still_unloaded(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model, idle_s=0.05) as local:
            only = asyncio.create_task(local.open("hi"))
            await until(lambda: local.provider.worker_pid is not None)
            pid = local.pid
            only.cancel()
            await gone(pid)
            assert len(local.children) == 1, "it was loaded, and then idle"

    run(test)


@pytest.mark.model
def test_idle_means_that_nobody_asks_or_listens(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model, idle_s=0.3) as local:
            stream = await local.open(LONG, max_tokens=400)
            pid, started = local.pid, time.monotonic()
            while time.monotonic() - started < 1.0:
                assert await stream.next(), "still answering"
            assert local.pid == pid
            stream.close()
            stream.close()
            left = time.monotonic()
            await gone(pid)
            assert 0.3 <= time.monotonic() - left < 2.0
            assert local.provider.state == "stopped"
            assert "Bras" in await local.say(CAPITAL)
            assert local.pid != pid

    run(test)


@pytest.mark.model
def test_a_caller_who_leaves_frees_the_model(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            stream = await local.open(LONG, max_tokens=1500)
            started = time.monotonic()
            stream.close()
            await local.say("hi", max_tokens=1)
            assert time.monotonic() - started < 5, "1,500 tokens take far longer"

    run(test)


@pytest.mark.model
def test_killed_while_it_answers(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            stream = await local.open(LONG, max_tokens=400)
            pid = local.pid
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(StreamInterruptedError) as caught:
                await read(stream)
            assert f"{NAME} stopped unexpectedly (SIGKILL" in caught.value.message
            assert local.provider.state == "stopped"
            assert "Bras" in await local.say(CAPITAL)
            assert local.pid != pid

    run(test)


@pytest.mark.model
def test_killed_before_its_first_word(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            first = await local.open(LONG, max_tokens=400)
            queued = asyncio.create_task(local.open(CAPITAL))
            await until(lambda: local.provider._wanted == 2)
            os.kill(local.pid, signal.SIGKILL)
            with pytest.raises(UpstreamUnavailableError, match="the next request starts it again"):
                await queued
            first.close()
            assert "Bras" in await local.say(CAPITAL)

    run(test)


@pytest.mark.model
def test_killed_while_idle(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            await local.say("hi", max_tokens=1)
            pid = local.pid
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
            await until(lambda: local.provider.state == "stopped")
            assert "Bras" in await local.say(CAPITAL)

    run(test)


@pytest.mark.model
def test_one_model_at_a_time_and_nobody_is_passed_over(two_models: Path) -> None:
    async def test() -> None:
        async with running(two_models) as local:
            order: list[str] = []

            async def asks(label: str, name: str) -> None:
                stream = await local.open("hi", name, max_tokens=2)
                order.append(label)
                await read(stream)

            running_a = await local.open(LONG, "a", max_tokens=400)
            first_pid = local.pid
            waiting = []
            for count, (label, name) in enumerate([("b1", "b"), ("a2", "a"), ("b3", "b")], 2):
                waiting.append(asyncio.create_task(asks(label, name)))
                await until(lambda count=count: local.provider._wanted == count)
            assert local.pid == first_pid, "a change of model waits for the running answer"
            assert await running_a.next()
            running_a.close()
            await asyncio.gather(*waiting)
            assert order == ["b1", "a2", "b3"]
            assert len(local.children) == 4
            assert not psutil.pid_exists(first_pid)
            children = psutil.Process().children()
            assert [c.pid for c in children if "local_worker" in str(c.cmdline())] == [local.pid]

    run(test)


@pytest.mark.model
def test_a_change_of_model_does_not_wait_for_ever(two_models: Path) -> None:
    async def test() -> None:
        async with running(two_models, switch_s=0.1) as local:
            stream = await local.open(LONG, "a", max_tokens=400)
            with pytest.raises(UpstreamTimeoutError, match="a is still answering"):
                await local.open("hi", "b")
            assert await stream.next(), "the answer that runs is not touched"
            stream.close()
            await local.say("hi", "b", max_tokens=1)

    run(test)


@pytest.mark.model
def test_a_load_has_a_deadline(local_model: Path) -> None:
    async def test() -> None:
        async with running(local_model, load_s=0.01) as local:
            with pytest.raises(UpstreamTimeoutError, match="not loaded within"):
                await local.open("hi")
            assert local.provider.state == "stopped"
            mine = psutil.Process().children()
            assert not [c for c in mine if "local_worker" in str(c.cmdline())]

    run(test)


@pytest.mark.model
@pytest.mark.parametrize("moment", ["loading", "answering"])
def test_close_ends_it_within_a_second(local_model: Path, moment: str) -> None:
    async def test() -> None:
        async with running(local_model) as local:
            task = asyncio.create_task(local.open(LONG, max_tokens=400))
            if moment == "loading":
                await until(lambda: local.provider.worker_pid is not None)
            else:
                await task
            pid, started = local.pid, time.monotonic()
            await local.provider.close()
            assert time.monotonic() - started < 1.0
            assert not psutil.pid_exists(pid)
            if moment == "loading":
                with pytest.raises((UpstreamUnavailableError, asyncio.CancelledError)):
                    await task
            else:
                (await task).close()

    run(test)


GATEWAY = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_local import running

async def main():
    async with running(Path(sys.argv[3])) as local:
        await local.say("hi", max_tokens=1)
        assert "xllamacpp" not in sys.modules
        print(local.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.model
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd to watch a grandchild with")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_gateway(local_model: Path, number: signal.Signals) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", GATEWAY, str(here), str(here.parent), str(local_model)]
    gateway = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=here.parent.parent,
        text=True,
    )
    with gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        child = os.pidfd_open(pid)
        try:
            gateway.send_signal(number)
            gateway.wait(DEADLINE_S)
            assert select.select([child], [], [], 1.0)[0], "a second later it still runs"
        finally:
            os.close(child)


@pytest.mark.model
def test_the_end_of_stdin_is_its_end(local_model: Path) -> None:
    """What ends it where the kernel does not: nothing here is killed."""
    worker = Path(local_module.__file__).with_name("local_worker.py")
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    order = {
        "model": str(local_model / f"{NAME}.gguf"),
        "alias": NAME,
        "context": 256,
        "threads": 1,
        "key": "k" * 64,
        "parent": os.getpid(),
        "packages": str(Path(spec.origin).parent.parent),
        "sampling": {},
    }
    pipe = subprocess.PIPE
    command = [sys.executable, "-I", str(worker)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={}) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["port"] > 0
        child.stdin.close()
        assert child.wait(1.0) == 0


def test_an_orphan_does_not_start(tmp_path: Path) -> None:
    """Its parent ended before it was asked to load anything."""
    worker = Path(local_module.__file__).with_name("local_worker.py")
    order = json.dumps({"parent": 1}).encode() + b"\n"
    command = [sys.executable, "-I", str(worker)]
    for line in (b"", order[:5], order):
        done = subprocess.run(command, input=line, capture_output=True, env={}, timeout=DEADLINE_S)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
