"""A poll of the Models page, with its list of models kept and drawn each time.

In: options. Out: microseconds of a gateway for each request that an open page sends, from the edge
of the app to the last byte, and where they go. The rule that lives only here: the gateway is whole
but for its socket, and what a kept list makes is compared with what a drawn one makes before either
is timed.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from table import Options, Ratio, Row, Table, divide
from timing import Case, measure

PROVIDERS = 6
MODELS = 50
UNCHANGED = "poll, nothing changed: 304"
KEPT = "poll, a countdown moved: the list as kept"
DRAWN = "poll, a countdown moved: the list drawn"
PAGE_KEPT = "the page, the list as kept"
PAGE_DRAWN = "the page, the list drawn"
LINE_SAME = "line in use, nothing changed: 304"
LINE_NEW = "line in use, another model"
FLOOR = "a redirect: what any answer costs"


def run(options: Options) -> list[Table]:
    from openbr.app import create_app
    from openbr.config import Config

    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        upstream = runner.run(asyncio.start_server(list_models, "127.0.0.1", 0))
        path = Path(folder) / "config.toml"
        path.write_text(config_text(upstream.sockets[0].getsockname()[1]))
        environ = {"HOME": folder, "OPENBR_STATE": str(Path(folder) / "state")}
        app = create_app(Config.load(path, environ))
        try:
            gateway = Gateway(app, runner)
            return [polls(gateway, options), runner.run(parts(gateway, options))]
        finally:
            runner.run(app.close())
            upstream.close()


async def list_models(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The list of every provider, which the gateway fetches again every 5 s."""
    listed = [
        {"id": f"vendor/model-{n}-instruct", "context_length": 131_072} for n in range(MODELS)
    ]
    body = json.dumps({"object": "list", "data": listed}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(head % len(body) + body)
            await writer.drain()
    writer.close()


def config_text(port: int) -> str:
    return "[local]\nenabled = false\n" + "".join(
        f'[[providers]]\nname = "provider{number}"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        for number in range(PROVIDERS)
    )


class Gateway:
    """The app, and requests to it as a browser's tab sends them."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self.app = app
        self.runner = runner
        runner.run(self._open())
        self.ask("/ui/models")  # makes the pages
        (self.cache,) = self.parts.fragments.caches().values()

    @property
    def parts(self) -> Any:
        return self.app._open_pages().state.parts

    async def _open(self) -> None:
        await self.app.open()
        await self.app.catalogue.settle(5)
        await self.app.router.choose("provider2/vendor/model-7-instruct", "bench")

    def scope(self, path: str, tag: str | None = None, *, htmx: bool = False) -> dict[str, Any]:
        headers = [(b"host", b"127.0.0.1:18789"), (b"accept-language", b"pt-BR")]
        if htmx:
            headers += [(b"hx-request", b"true"), (b"hx-request-type", b"partial")]
        if tag is not None:
            headers.append((b"hx-ptag", tag.encode()))
        return {
            "type": "http",
            "method": "GET",
            "scheme": "http",
            "http_version": "1.1",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "server": ("127.0.0.1", 18789),
            "client": ("127.0.0.1", 50000),
        }

    async def _ask(self, scope: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0], b"".join(one.get("body", b"") for one in sent[1:])

    def ask(self, path: str, **how: Any) -> tuple[int, dict[str, str], bytes]:
        start, body = self.runner.run(self._ask(self.scope(path, **how)))
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], headers, body

    def calls(self, count: int, path: str, **how: Any) -> Callable[[], None]:
        async def work() -> None:
            for _ in range(count):
                await self._ask(self.scope(path, **how))

        loop = self.runner.get_loop()
        return lambda: loop.run_until_complete(work())


def check(gateway: Gateway) -> tuple[str, str]:
    """Kept and drawn are the same, all models are there, 304 is empty; the two pages' tags."""
    for htmx in (True, False):
        gateway.cache.clear()
        _, _, drawn = gateway.ask("/ui/models", htmx=htmx)
        _, headers, kept = gateway.ask("/ui/models", htmx=htmx)
        assert kept == drawn
        assert kept.count(b'<input type="radio"') == PROVIDERS * MODELS
    assert gateway.cache.stats().entries == 1
    tag = gateway.ask("/ui/models", htmx=True)[1]["hx-ptag"]
    line = gateway.ask("/ui/models/in-use", htmx=True)[1]["hx-ptag"]
    for path, known in (("/ui/models", tag), ("/ui/models/in-use", line)):
        status, _, body = gateway.ask(path, htmx=True, tag=known)
        assert (status, body) == (304, b"")
    return tag, line


def polls(gateway: Gateway, options: Options) -> Table:
    """Each request an open page sends.

    A poll whose countdown has moved is one whose tag holds no more: here it is sent without one.
    """
    options.say("fragments: polls")
    tag, line = check(gateway)
    ask = gateway.calls
    models, in_use = "/ui/models", "/ui/models/in-use"
    cases = {
        FLOOR: Case(run=ask(20, "/ui"), calls=20_000),
        UNCHANGED: Case(run=ask(20, models, htmx=True, tag=tag), calls=20_000),
        KEPT: Case(run=ask(3, models, htmx=True), calls=3000),
        DRAWN: Case(run=emptied(gateway.cache, ask(1, models, htmx=True)), calls=1000),
        PAGE_KEPT: Case(run=ask(3, models), calls=3000),
        PAGE_DRAWN: Case(run=emptied(gateway.cache, ask(1, models)), calls=1000),
        LINE_SAME: Case(run=ask(20, in_use, htmx=True, tag=line), calls=20_000),
        LINE_NEW: Case(run=ask(5, in_use, htmx=True), calls=5000),
    }
    found = measure(cases, options.rounds(60), options.least_s)
    size = gateway.cache.stats().bytes
    return Table(
        title=f"The Models page with {PROVIDERS * MODELS} models of {PROVIDERS} providers",
        unit="µs",
        columns=("a request",),
        rows=[Row(name=name, cells=(found[name],)) for name in cases],
        ratios=[
            Ratio(
                name="poll with a moved countdown, list kept / drawn",
                value=divide(found[KEPT], found[DRAWN]),
                wish="<=",
                target=0.8,
            ),
            Ratio(
                name="page, list kept / drawn",
                value=divide(found[PAGE_KEPT], found[PAGE_DRAWN]),
                wish="<=",
            ),
            Ratio(
                name="unchanged poll / a redirect",
                value=divide(found[UNCHANGED], found[FLOOR]),
                wish="<=",
            ),
        ],
        notes=[
            f"A kept list takes {size // 1024} KiB. An unchanged poll is answered from a tag that",
            "is made before any row is: nothing is kept for it, nor for the line in use.",
        ],
    )


def emptied(cache: Any, one: Callable[[], object]) -> Callable[[], None]:
    """With nothing kept; what it draws is kept for the cases after it."""

    def run() -> None:
        cache.clear()
        one()

    return run


async def parts(gateway: Gateway, options: Options) -> Table:
    """Where the time of a poll goes, part by part; the caches beside each other.

    A coroutine because whoever reads the catalogue may start a fetch, which needs a loop.
    """
    from starlette.requests import Request

    from openbr._native import lru_py
    from openbr.records import Caller
    from openbr.secret import ADMIN
    from openbr.web import models
    from openbr.web.render import layout

    options.say("fragments: parts of a poll")
    pages = gateway.parts
    caller = Caller(key_id=None, name="bench", scopes=frozenset({ADMIN}))
    scope = gateway.scope("/ui/models", htmx=True)
    scope |= {"app": gateway.app._open_pages(), "state": {"caller": caller}}
    request = Request(scope)
    context = models.build_context(request, "")
    kept = models.draw_list(pages, context)
    facts, text = context["list_facts"], kept.__html__()
    whole = {
        **layout(request),
        **context,
        **dict.fromkeys(("answered", "announcement", "notice")),
        "model_list": kept,
    }
    html = pages.pages.render("fragments/models_live.html", whole)
    twin: Any = lru_py.TTLCache(256, 60, max_bytes=1 << 20)
    plain = {repr(facts): text}
    twin.set(repr(facts), text)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "what holds, and its tag": (20, lambda: models.build_context(request, "")),
        "the list drawn, rows and all": (
            1,
            emptied(gateway.cache, lambda: models.draw_list(pages, context)),
        ),
        "the list found, TTLCache as it runs": (50, lambda: models.draw_list(pages, context)),
        "the list found, the pure TTLCache": (50, lambda: twin.get(repr(facts))),
        "the list found, a dict without bounds": (50, lambda: plain[repr(facts)]),
        "the other fragments drawn, put together": (
            3,
            lambda: pages.pages.render("fragments/models_live.html", whole),
        ),
        "encoded": (5, html.encode),
    }
    cases = {
        name: Case(run=repeated(one, count), calls=count * 1000)
        for name, (count, one) in ways.items()
    }
    found = measure(cases, options.rounds(60), options.least_s)
    return Table(
        title="Where the time of a poll goes",
        unit="µs",
        columns=("once",),
        rows=[Row(name=name, cells=(found[name],)) for name in ways],
    )


def repeated(one: Callable[[], object], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            one()

    return run
