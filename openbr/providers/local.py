"""The adapter for the models on this disk: a child process, started on demand, stopped when idle.

In: a ChatRequest for a model of the library. Out: what the adapter behind it makes of the child's
answer; the conversation with the child is OpenAI's dialect and no business of this module. The
rules that live only here: one model is loaded at a time; requests are served in the order in which
they came, so a change of model waits for the answers before it and is never starved; the child
ends with the gateway, after `idle_unload_s` without a request, or when it is asked to.

    off (disabled, no xllamacpp, no model)    stopped -> loading -> ready -> stopped
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from openbr.config import LocalConfig
from openbr.errors import (
    StreamInterruptedError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from openbr.library import Library, ModelFile
from openbr.providers.base import ChatStream, Completion, Provider
from openbr.providers.local_process import LOCAL, Worker, unavailable
from openbr.records import ChatRequest, Deployment, Model

LOAD_S = 120.0
SWITCH_S = 60.0
_NOTHING: Mapping[str, str] = MappingProxyType({})

logger = logging.getLogger(__name__)

MakeAdapter = Callable[[str, str], Provider]
"""(base_url, key) -> the adapter that talks to a child."""


class LocalProvider(Provider):
    """Threads: event loop only.

    `environment` is the child's whole environment: nothing of the gateway's, where keys live,
    reaches it. `load_s` bounds a load, `switch_s` the wait for another model's answers.
    """

    name = LOCAL
    kind = "local"
    is_local = True

    def __init__(
        self,
        config: LocalConfig,
        library: Library,
        make_adapter: MakeAdapter,
        *,
        environment: Mapping[str, str] = _NOTHING,
        load_s: float = LOAD_S,
        switch_s: float = SWITCH_S,
    ) -> None:
        self._config = config
        self._library = library
        self._make_adapter = make_adapter
        self._environment = environment
        self._load_s = load_s
        self._switch_s = switch_s
        self._packages: str | None = None
        self._turn = asyncio.Lock()
        self._worker: Worker | None = None
        self._loading: asyncio.Task[None] | None = None
        self._wanted = 0
        self._idle: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None

    def available(self) -> str | None:
        """None, or why no local model can answer and what to do."""
        if not self._config.enabled:
            return "the local models are turned off: set enabled = true under [local]"
        if self._find_packages() is None:
            return "llama.cpp is not installed: run `pip install openbr[local]` and start again"
        if not self._library.list():
            return "there is no local model yet: run `openbr models pull`"
        return None

    @property
    def state(self) -> str:
        """off, stopped, loading or ready."""
        worker = self._worker
        if worker is not None and worker.is_alive:
            return "ready" if worker.is_ready else "loading"
        return "stopped" if self.available() is None else "off"

    @property
    def worker_pid(self) -> int | None:
        worker = self._worker
        return worker.pid if worker is not None and worker.is_alive else None

    def offers(self, upstream_model: str) -> bool:
        return self._library.find(upstream_model) is not None

    async def fetch_models(self) -> tuple[Model, ...]:
        self._refuse_unavailable()
        return tuple(
            Model(
                provider=self.name,
                upstream_model=file.name,
                created_at=int(file.added_at),
                context_tokens=self._context(file),
                size_bytes=file.size_bytes,
            )
            for file in self._library.list()
        )

    async def open_chat(self, request: ChatRequest, deployment: Deployment) -> ChatStream:
        worker = await self._lease(deployment.upstream_model)
        try:
            stream = await worker.adapter.open_chat(request, deployment)
        except UpstreamError as exc:
            await self._explain(worker, exc)
        except BaseException:
            self._release(worker)
            raise
        return _LeasedStream(stream, worker, self._release)

    async def complete_chat(self, request: ChatRequest, deployment: Deployment) -> Completion:
        worker = await self._lease(deployment.upstream_model)
        try:
            completion = await worker.adapter.complete_chat(request, deployment)
        except UpstreamError as exc:
            await self._explain(worker, exc)
        except BaseException:
            self._release(worker)
            raise
        self._release(worker)
        return completion

    async def close(self) -> None:
        """End the child, whatever it does, and wait until it has ended."""
        self._disarm()
        await self._give_up_loading()
        if self._worker is not None:
            await self._worker.kill()

    async def _lease(self, name: str) -> Worker:
        """A child that serves this model; `_release` it. Raises: UpstreamError."""
        self._refuse_unavailable()
        file = self._library.find(name)
        if file is None:
            raise unavailable(f"there is no local model {name}: run `openbr models list`")
        self._wanted += 1
        self._disarm()
        try:
            async with self._turn:
                worker = self._worker
                if worker is not None and worker.is_alive and worker.file != file:
                    await self._unload(worker, file)
                worker = await self._ready(file)
                worker.take()
                return worker
        except BaseException:
            self._leave()
            raise

    def _release(self, worker: Worker) -> None:
        worker.give_back()
        self._leave()

    def _leave(self) -> None:
        self._wanted -= 1
        self._arm()

    async def _unload(self, worker: Worker, for_file: ModelFile) -> None:
        """Wait for the running answers, then end the child."""
        try:
            async with asyncio.timeout(self._switch_s):
                await worker.unused.wait()
        except TimeoutError as exc:
            raise UpstreamTimeoutError(
                f"{worker.file.name} is still answering, and one local model is loaded at a "
                f"time: {for_file.name} was not loaded within {self._switch_s:.0f} s",
                provider=self.name,
            ) from exc
        await self._give_up_loading()
        await worker.kill()

    async def _give_up_loading(self) -> None:
        task = self._loading
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _ready(self, file: ModelFile) -> Worker:
        """The child of this file, ready. A caller who leaves does not end the load of others."""
        worker = self._worker
        if worker is None or not worker.is_alive:
            worker = self._worker = Worker(file, self._packages or "", self._environment)
            self._loading = asyncio.get_running_loop().create_task(self._load(worker))
            self._loading.add_done_callback(_retrieve)
        if self._loading is not None:
            await asyncio.shield(self._loading)
        return worker

    async def _load(self, worker: Worker) -> None:
        started = time.monotonic()
        file = worker.file
        try:
            async with asyncio.timeout(self._load_s):
                base_url = await worker.start(self._context(file), self._threads())
            worker.adapter = self._make_adapter(base_url, worker.key)
            worker.is_ready = True
        except TimeoutError as exc:
            raise UpstreamTimeoutError(
                f"the local model {file.name} was not loaded within {self._load_s:.0f} s",
                provider=self.name,
            ) from exc
        finally:
            self._loading = None
            if not worker.is_ready:
                await worker.kill()
        took = time.monotonic() - started
        logger.info("%s loaded in %.2f s, process %s", file.name, took, worker.pid)
        self._arm()

    async def _explain(self, worker: Worker, error: UpstreamError) -> NoReturn:
        """Give back the lease and raise: the child's end, if that is what it was."""
        try:
            alive = await worker.outlived(error)
        finally:
            self._release(worker)
        if alive:
            raise error
        raise UpstreamUnavailableError(worker.epitaph(), provider=self.name) from error

    def _arm(self) -> None:
        """Nobody wants a model: count down. There is a timer only while a child sits idle."""
        worker = self._worker
        if self._wanted == 0 and self._idle is None and worker is not None and worker.is_ready:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._config.idle_unload_s, self._unload_idle)

    def _disarm(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _unload_idle(self) -> None:
        self._idle = None
        worker = self._worker
        if self._wanted == 0 and worker is not None and worker.is_alive:
            logger.info("%s was idle: its process %s ends", worker.file.name, worker.pid)
            self._unloading = asyncio.get_running_loop().create_task(worker.kill())

    def _refuse_unavailable(self) -> None:
        if (reason := self.available()) is not None:
            raise unavailable(reason)

    def _find_packages(self) -> str | None:
        """The folder that holds xllamacpp, found without importing it."""
        if self._packages is None:
            spec = importlib.util.find_spec("xllamacpp")
            if spec is not None and spec.origin is not None:
                self._packages = str(Path(spec.origin).parent.parent)
        return self._packages

    def _context(self, file: ModelFile) -> int:
        return min(self._config.context, file.context_tokens or self._config.context)

    def _threads(self) -> int:
        """Cores minus one: on busy cores one thread too many is ten times slower."""
        allowed = getattr(os, "sched_getaffinity", None)
        cores = len(allowed(0)) if allowed else os.cpu_count() or 1
        return self._config.threads or max(1, cores - 1)


class _LeasedStream(ChatStream):
    """The child's stream; the child is not stopped while it lasts."""

    def __init__(
        self, inner: ChatStream, worker: Worker, release: Callable[[Worker], None]
    ) -> None:
        self._inner = inner
        self._worker = worker
        self._release: Callable[[Worker], None] | None = release
        self.answer = inner.answer
        self.text = ""

    async def next(self) -> bytes:
        try:
            batch = await self._inner.next()
        except UpstreamError as exc:
            self.close()
            if await self._worker.outlived(exc):
                raise
            raise StreamInterruptedError(self._worker.epitaph(), provider="local") from exc
        self.text = self._inner.text
        if not batch:
            self.close()
        return batch

    def close(self) -> None:
        self._inner.close()
        release, self._release = self._release, None
        if release is not None:
            release(self._worker)


def _retrieve(task: asyncio.Task[None]) -> None:
    """An error of a load that nobody waits for any more was logged by nobody: it is no defect."""
    if not task.cancelled():
        task.exception()
