"""A gateway's parts in the loop of the test, over providers that a test scripts; no socket.

    world = World(folder)
    provider = world.provider("ollama", "llama3.3:70b", is_local=True)
    world.open()
    page = world.get("/ui/models")                     # in pt-BR, as a plain browser
    part = world.get("/ui/models", htmx=True, language="en")
    world.later(30)                                    # clocks go on, nothing runs meanwhile

Everything but the providers is the real thing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from asgi import Response, call
from fake_upstream import Gate
from starlette.applications import Starlette

from openbr.auth import OWNER, Auth
from openbr.cache import ResponseCache
from openbr.catalogue import Catalogue
from openbr.config import Config
from openbr.errors import OpenbrError, UpstreamError, UpstreamUnavailableError
from openbr.gateway import Gateway
from openbr.prices import Prices
from openbr.providers.base import ChatStream, Completion, Provider
from openbr.records import Answer, Caller, ChatRequest, Deployment, Model, Usage
from openbr.route import Router
from openbr.store import Store
from openbr.usage import UsageLog
from openbr.web import routes
from openbr.web.parts import Parts
from openbr.web.render import Pages
from openbr.web.static import VENDOR, StaticFolder

T = TypeVar("T")
STATIC = Path(__file__).resolve().parents[2] / "static"
NOON = 1795176190.0
"""2026-11-20 12:03:10 UTC."""


@dataclass
class Script:
    """What a provider answers. A gate holds every piece back until the test lets it through."""

    pieces: list[str] = field(default_factory=lambda: ["Olá", ", mundo"])
    failure: OpenbrError | None = None
    breaks: OpenbrError | None = None
    usage: Usage | None = field(default_factory=lambda: Usage(input_tokens=38, output_tokens=126))
    ttft_s: float = 0.41
    gate: Gate | None = None
    opening: asyncio.Event | None = None


class ScriptedProvider(Provider):
    """`state` is the local worker's, for the tests of waiting."""

    def __init__(self, name: str, models: tuple[Model, ...], *, is_local: bool, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.is_local = is_local
        self.models = models
        self.failure: UpstreamError | None = None
        self.hangs = False
        self.script = Script()
        self.state = "ready"
        self.requests: list[ChatRequest] = []
        self.closed = 0

    async def fetch_models(self) -> tuple[Model, ...]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return self.models

    async def open_chat(self, request: ChatRequest, deployment: Deployment) -> ChatStream:
        self.requests.append(request)
        if self.script.opening is not None:
            await self.script.opening.wait()
        if self.script.failure is not None:
            raise self.script.failure
        return ScriptedStream(self, deployment)

    async def complete_chat(self, request: ChatRequest, deployment: Deployment) -> Completion:
        raise AssertionError("pages stream")

    def fails(self, reason: str, detail: str = "127.0.0.1:11434: connection refused") -> None:
        self.failure = UpstreamUnavailableError(detail, provider=self.name, reason=reason)


class ScriptedStream(ChatStream):
    def __init__(self, provider: ScriptedProvider, deployment: Deployment) -> None:
        self._provider = provider
        self._script = provider.script
        self._left = list(provider.script.pieces)
        self.answer = Answer(deployment=deployment)
        self.text = ""

    async def next(self) -> bytes:
        if self._script.gate is not None:
            await self._script.gate.wait()
        else:
            await asyncio.sleep(0)
        if self._left:
            self.text = self._left.pop(0)
            return b"data: {}\n\n"
        self.text = ""
        if self._script.breaks is not None:
            raise self._script.breaks
        self.answer.usage = self._script.usage
        return b""

    def close(self) -> None:
        self._provider.closed += 1


def copy_static(folder: Path) -> Path:
    """The static files with stand-ins for the fetched ones: tests need no network."""
    copy = folder / "static"
    shutil.copytree(STATIC, copy, ignore=shutil.ignore_patterns("*.min.js", ".*"))
    for name in VENDOR:
        (copy / name).write_text("// " + name)
    return copy


class World:
    def __init__(self, folder: Path, toml: str = "", pages: Pages | None = None) -> None:
        """`pages`: compiled templates that other worlds use too; None makes its own."""
        self.folder = folder
        self.pages = pages or Pages(StaticFolder(copy_static(folder)))
        path = folder / "config.toml"
        path.write_text("[local]\nenabled = false\n" + toml)
        environ = {"HOME": str(folder), "OPENBR_STATE": str(folder / "state")}
        self.config = Config.load(path, environ)
        self.clock = 1000.0
        self.now = NOON
        self.caller: Caller | None = OWNER
        self.local_model: str | None = None
        self.providers: dict[str, ScriptedProvider] = {}
        self.runner = asyncio.Runner()

    def provider(
        self, name: str, *models: str | Model, is_local: bool = False, kind: str = "openai"
    ) -> ScriptedProvider:
        listed = tuple(
            Model(provider=name, upstream_model=one) if isinstance(one, str) else one
            for one in models
        )
        made = ScriptedProvider(name, listed, is_local=is_local, kind=kind)
        self.providers[name] = made
        return made

    def open(self, *, settle: bool = True) -> None:
        self.run(self._open(settle))

    async def _open(self, settle: bool) -> None:
        self.store = Store.open(self.config.store_path)
        self.catalogue = Catalogue(
            self.providers.values(), clock=lambda: self.clock, now=lambda: self.now
        )
        self.router = Router(
            self.catalogue, self.store, self.config.routes, local_model=self.local_model
        )
        self.usage = UsageLog(self.store, Prices(()))
        self.gateway = _Timed(
            self.catalogue,
            self.router,
            ResponseCache(self.config.cache),
            self.usage,
            self.providers,
        )
        self.parts = Parts(
            config=self.config,
            store=self.store,
            catalogue=self.catalogue,
            router=self.router,
            gateway=self.gateway,
            auth=Auth(self.store, required=True),
            started_at=self.now,
            now=lambda: self.now,
            pages=self.pages,
        )
        self.app = Starlette(routes=routes())
        self.app.state.parts = self.parts
        self.catalogue.refresh()
        if settle:
            await self.catalogue.settle(5)

    def close(self) -> None:
        self.run(self._close())
        self.runner.close()

    async def _close(self) -> None:
        await self.parts.runs.close()
        await self.catalogue.close()
        await self.usage.close()
        await self.parts.auth.close()
        self.store.close()

    def run(self, work: Awaitable[T]) -> T:
        async def main() -> T:
            return await work

        return self.runner.run(main())

    def settle(self) -> None:
        self.run(self.catalogue.settle(5))

    def refresh(self) -> None:
        """Fetch every list again, at this moment."""

        async def work() -> None:
            self.catalogue.refresh()
            await self.catalogue.settle(5)

        self.run(work())

    def later(self, seconds: float) -> None:
        self.clock += seconds
        self.now += seconds

    def choose(self, model: str) -> None:
        import openbr.route

        real = openbr.route.time.time
        try:
            openbr.route.time.time = lambda: self.now  # type: ignore[assignment]
            self.run(self.router.choose(model, "ui"))
        finally:
            openbr.route.time.time = real

    def get(self, path: str, **options: Any) -> Response:
        return self.run(self.ask("GET", path, **options))

    def post(self, path: str, fields: Mapping[str, str] | None = None, **options: Any) -> Response:
        return self.run(self.ask("POST", path, fields=fields or {}, **options))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, str] | None = None,
        htmx: bool = False,
        language: str = "pt-BR",
        headers: Mapping[str, str] | None = None,
        scheme: str = "http",
    ) -> Response:
        sent = {"accept-language": language, **(headers or {})}
        body = b""
        if htmx:
            sent |= {"hx-request": "true", "hx-request-type": "partial"}
        if fields is not None:
            sent.setdefault("content-type", "application/x-www-form-urlencoded")
            body = urlencode(fields).encode()
        return await call(self._entered(scheme), method, path, body=body, headers=sent)

    def _entered(self, scheme: str) -> Callable[..., Awaitable[None]]:
        """The app behind the guard, which has found out who asks."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["state"]["caller"] = self.caller
            scope["scheme"] = scheme

            async def patient() -> Any:
                message = await receive()
                if message["type"] == "http.disconnect":
                    await asyncio.Event().wait()  # the caller stays until it has its answer
                return message

            await self.app(scope, patient, send)

        return app


class _Timed(Gateway):
    """The gateway, with the measured time in answers made the script's."""

    def __init__(
        self,
        catalogue: Catalogue,
        router: Router,
        cache: ResponseCache,
        usage: UsageLog,
        providers: Mapping[str, ScriptedProvider],
    ) -> None:
        super().__init__(catalogue, router, cache, usage)
        self._providers = providers

    async def chat(self, request: ChatRequest, caller: Caller) -> ChatStream:
        stream = await super().chat(request, caller)
        stream.answer.ttft_s = self._providers[stream.answer.deployment.provider].script.ttft_s
        return stream
