"""Builds the parts, lists every endpoint, opens and closes them.

In: a Config. Out: one ASGI application. `/v1` and the health checks are plain ASGI functions
here; the pages are a Starlette application beside them. The rules that live only here: every
request passes `Hosts.check`, every one but the health checks, the login page and the static files
passes `Auth.identify`, and every failure leaves through one edge.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from openbr.api.chat import ChatEndpoint
from openbr.api.http import (
    JSON,
    Endpoint,
    Exchange,
    Receive,
    Scope,
    encode_json,
    new_request_id,
    send_body,
    send_error,
)
from openbr.api.models import ModelsEndpoint
from openbr.auth import Auth, Head, Hosts, read_head
from openbr.cache import ResponseCache
from openbr.catalogue import Catalogue
from openbr.config import Config
from openbr.errors import (
    AuthenticationError,
    ForbiddenError,
    MethodNotAllowedError,
    NotFoundError,
    OpenbrError,
    ServiceUnavailableError,
)
from openbr.gateway import Gateway
from openbr.library import Library
from openbr.prices import Prices
from openbr.providers.base import Provider
from openbr.providers.local import LocalProvider
from openbr.providers.openai import OpenAIProvider
from openbr.records import Caller
from openbr.route import Router
from openbr.secret import CHAT, Secret
from openbr.store import Store, conversations
from openbr.stream import CLIENT_GONE, Send
from openbr.ultra import create_memory_manager
from openbr.upstream import Upstream
from openbr.usage import UsageLog

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

_PEOPLE = ("/ui", "/static/")
_LAST_WORDS_S = 5.0
"""How long an answer that nobody reads just now may still take when the gateway ends."""
_OPEN_PAGES = ("/static/", "/ui/login")
_PLAIN = (b"content-type", b"text/plain; charset=utf-8")


def create_app(config: Config) -> App:
    """Open the store and build every part. Raises: ConfigError."""
    return App(config)


def needs_key(config: Config) -> bool:
    """Whether every caller needs a key: asked for, or reachable from other machines."""
    return config.auth.mode == "required" or config.server.bind not in (
        "loopback",
        "127.0.0.1",
        "::1",
    )


class App:
    """The gateway as one ASGI callable. `draining` and `in_flight` are for its server."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.draining = False
        self.in_flight = 0
        self._started_at = time.time()
        self.store = Store.open(config.store_path)
        self.upstream = Upstream(proxies=config.proxies)
        self.catalogue = Catalogue(_providers(config, self.upstream))
        self.router = Router(
            self.catalogue,
            self.store,
            config.routes,
            local_model=config.local.model if config.local.enabled else None,
        )
        self.cache = ResponseCache.create(config.cache, config.answers_path)
        self.usage = UsageLog(self.store, Prices(config.providers))
        self.gateway = Gateway(self.catalogue, self.router, self.cache, self.usage)
        self.auth = Auth(self.store, required=needs_key(config))
        self.memory = create_memory_manager()
        for room in (self.auth, self.catalogue, self.router, self.cache):
            for name, one in room.caches().items():
                self.memory.add(name, one)
        self._hosts = Hosts(config.server.public_hosts, lan=config.server.bind != "loopback")
        self._models = ModelsEndpoint(self.catalogue)
        self._v1: Mapping[str, Mapping[str, Endpoint]] = {
            "/v1/models": {"GET": self._models.list_all, "HEAD": self._models.list_all},
            "/v1/chat/completions": {"POST": ChatEndpoint(self.gateway, config.limits)},
        }
        self._pages: Starlette | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            return self._answer(scope, receive, send)
        if scope["type"] == "lifespan":
            return self._live(receive, send)
        return _no_websocket(receive, send)

    def spare(self, task: asyncio.Task[None]) -> bool:
        """The caller of this request's task left. Whether it is to go on, for other callers."""
        return self.cache.spare(task)

    async def open(self) -> None:
        await self.store.commit(conversations.fail_running, time.time())
        self.catalogue.refresh()

    async def close(self) -> None:
        if self._pages is not None:
            await self._pages.state.parts.runs.close(_LAST_WORDS_S)
        await self.catalogue.close()
        for name in self.catalogue.names:
            await self.catalogue.adapter(name).close()
        self.cache.close()
        await self.upstream.aclose()
        await self.usage.close()
        await self.auth.close()
        self.store.close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The edge: what any endpoint raises becomes an answer here."""
        request_id = new_request_id()
        self.in_flight += 1
        try:
            await self._dispatch(scope, receive, send, request_id)
        except OpenbrError as exc:
            await self._refuse(scope, receive, send, exc, request_id)
        except asyncio.CancelledError as exc:
            if exc.args != (CLIENT_GONE,):
                raise
            logger.debug("%s: the client left", request_id)
        except Exception:
            logger.exception("%s: a defect in openbr", request_id)
            error = OpenbrError(f"openbr failed; its log has {request_id}")
            await self._refuse(scope, receive, send, error, request_id)
        finally:
            self.in_flight -= 1

    def _dispatch(
        self, scope: Scope, receive: Receive, send: Send, request_id: str
    ) -> Awaitable[None]:
        path: str = scope["path"]
        method: str = scope["method"]
        head = read_head(scope["headers"])
        self._hosts.check(head, _address(scope.get("server")), method)
        if path.startswith("/v1/"):
            caller = self.auth.identify(head, _address(scope.get("client")) or "")
            exchange = Exchange(scope, receive, send, head, caller, request_id)
            return self._serve_v1(exchange, path, method)
        if path in ("/healthz", "/readyz"):
            return self._health(path, method, send)
        return self._serve_page(scope, receive, send, head)

    def _serve_v1(self, exchange: Exchange, path: str, method: str) -> Awaitable[None]:
        if CHAT not in exchange.caller.scopes:
            raise ForbiddenError('this key may not call models: it lacks the scope "chat"')
        if self.draining:
            raise ServiceUnavailableError("this gateway is stopping", code="draining")
        if self.in_flight > self.config.limits.concurrent_requests:
            raise ServiceUnavailableError(
                "too many requests at once (limits.concurrent_requests)", code="overloaded"
            )
        methods = self._v1.get(path)
        if methods is not None:
            endpoint = methods.get(method)
            if endpoint is None:
                raise _wrong_method(method, path, methods)
            return endpoint(exchange)
        name = path.removeprefix("/v1/models/")
        if name == path or not name:
            raise NotFoundError(
                f"there is no {path} here; see the list of endpoints in docs/api.md"
            )
        if method not in ("GET", "HEAD"):
            raise _wrong_method(method, path, ("GET", "HEAD"))
        return self._models.show(exchange, name)

    async def _health(self, path: str, method: str, send: Send) -> None:
        if method not in ("GET", "HEAD"):
            raise _wrong_method(method, path, ("GET", "HEAD"))
        reasons = []
        if path == "/readyz":
            if self.draining:
                reasons.append("draining")
            if not self.store.is_open:
                reasons.append("store closed")
        body = {"status": "unavailable" if reasons else "ok", "reasons": reasons}
        await send_body(
            send,
            encode_json(body),
            503 if reasons else 200,
            [JSON, (b"cache-control", b"no-store")],
            is_head=method == "HEAD",
        )

    async def _serve_page(self, scope: Scope, receive: Receive, send: Send, head: Head) -> None:
        path: str = scope["path"]
        caller: Caller | None = None
        if not path.startswith(_OPEN_PAGES):
            try:
                caller = self.auth.identify(head, _address(scope.get("client")) or "")
            except AuthenticationError:
                if scope["method"] != "GET" or path.startswith("/api/"):
                    raise
                await _to_login(scope, send)
                return
        scope.setdefault("state", {})["caller"] = caller
        await self._open_pages()(scope, receive, send)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: OpenbrError, request_id: str
    ) -> None:
        """Programs get the envelope, people a page: what was asked tells who it is."""
        try:
            if scope["path"].startswith(_PEOPLE):
                from openbr.web import send_error_page

                await send_error_page(self._open_pages(), scope, receive, send, error)
            else:
                is_head = scope["method"] == "HEAD"
                await send_error(send, error, request_id, is_head=is_head)
        except RuntimeError:
            # The answer had begun: it stays unfinished and the server cuts the connection.
            logger.debug("%s: failed after its answer had begun", request_id)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.open()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _open_pages(self) -> Starlette:
        """The pages, made when somebody first looks: 2.7 MB that a gateway without a browser in
        front of it never needs."""
        if self._pages is None:
            from starlette.applications import Starlette

            from openbr.web import routes
            from openbr.web.parts import Parts

            self._pages = Starlette(routes=routes())
            self._pages.state.parts = Parts(
                config=self.config,
                store=self.store,
                catalogue=self.catalogue,
                router=self.router,
                gateway=self.gateway,
                auth=self.auth,
                started_at=self._started_at,
            )
            for name, one in self._pages.state.parts.fragments.caches().items():
                self.memory.add(name, one)
        return self._pages


def _providers(config: Config, upstream: Upstream) -> list[Provider]:
    """Every provider of the file, and the local one: a new wire format is a new row."""
    made: list[Provider] = [
        OpenAIProvider(
            name=one.name,
            base_url=one.base_url,
            keys=one.api_key,
            upstream=upstream,
            limits=config.limits,
            models=one.models,
            is_local=_is_this_machine(one.base_url),
        )
        for one in config.providers
    ]

    def adapter(base_url: str, key: str) -> OpenAIProvider:
        return OpenAIProvider(
            name="local",
            base_url=base_url,
            keys=(Secret(key),),
            upstream=upstream,
            limits=config.limits,
            is_local=True,
        )

    made.append(LocalProvider(config.local, Library(config.models_path), adapter))
    return made


def _is_this_machine(base_url: str) -> bool:
    """Whether messages stay here: an address that names loopback, and nothing cleverer."""
    from urllib.parse import urlsplit

    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _address(end: tuple[str, int | None] | None) -> str | None:
    return end[0] if end else None


def _wrong_method(
    method: str, path: str, allowed: Mapping[str, object] | tuple[str, ...]
) -> MethodNotAllowedError:
    allow = ", ".join(allowed)
    return MethodNotAllowedError(f"{path} takes {allow}, not {method[:20]}", allow=allow)


async def _no_websocket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1000})


async def _to_login(scope: Scope, send: Send) -> None:
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    where = b"/ui/login?next=" + quote(scope["path"].encode() + query, safe="/").encode()
    # htmx would follow a redirect into a fragment's place: it is told to move the page.
    is_htmx = any(name == b"hx-request" for name, _ in scope["headers"])
    header = (b"hx-redirect", where) if is_htmx else (b"location", where)
    await send_body(send, b"", 200 if is_htmx else 303, [_PLAIN, header])
