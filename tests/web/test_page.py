"""The manners of every page: headers, methods, forms, errors, static files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from web.world import World

from openbr.errors import AuthenticationError, ForbiddenError, OpenbrError, WrongHostError
from openbr.web import send_error_page

MakeWorld = Callable[..., World]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ui",
        "/ui/chat",
        "/ui/models",
        "/ui/login",
        "/ui/nothing",
        "/ui/chat/1/stop",
        "/static/openbr.css",
        "/static/nothing.css",
    ],
)
@pytest.mark.parametrize("htmx", [False, True])
def test_security_headers_are_everywhere(path: str, htmx: bool, make_world: MakeWorld) -> None:
    answer = make_world("loaded").get(path, htmx=htmx)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cache-control"] == (
        "no-cache" if path == "/static/openbr.css" else "no-store"
    )


def test_page_or_fragment_of_one_address(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    page = world.get("/ui/models")
    part = world.get("/ui/models", htmx=True)
    history = world.get("/ui/models", headers={"hx-request": "true", "hx-request-type": "full"})
    assert b"<html" in page.body and b"<html" in history.body
    assert b"<html" not in part.body
    for answer in (page, part):
        assert "HX-Request" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("path", "to"), [("/", "/ui"), ("/ui", "/ui/chat"), ("/ui/language", "/ui/chat")]
)
def test_the_way_in(path: str, to: str, make_world: MakeWorld) -> None:
    answer = make_world("loaded").get(path)
    assert (answer.status, answer.headers["location"]) == (303, to)


def test_wrong_methods(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    page = world.run(world.ask("DELETE", "/ui/models"))
    assert page.status == 405
    assert page.headers["allow"] == "GET, HEAD, POST"
    assert "Assim não" in page.body.decode()
    assert world.post("/ui/models/in-use").status == 405


def test_forms_that_are_none(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    answer = world.post("/ui/models", headers={"content-type": "application/json"})
    assert answer.status == 400
    flood = {f"f{n}": "x" for n in range(200)}
    assert world.post("/ui/models", flood).status == 400
    assert world.post("/ui/models", {"model": "x" * (2 * 1024 * 1024)}).status == 413


def test_a_defect_is_a_page_and_is_logged(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world("loaded")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("openbr.web.models.build_context", broken)
    page = world.get("/ui/models")
    assert page.status == 500
    assert "O openbr falhou" in page.body.decode()
    assert "secret inside" not in page.body.decode()
    assert "secret inside" in caplog.text
    part = world.get("/ui/models", htmx=True)
    assert part.status == 500
    assert 'hx-target="#notice"' in part.body.decode()


def test_an_error_page_needs_no_store(make_world: MakeWorld) -> None:
    """The store is often what failed."""
    world = make_world("loaded")
    world.store.close()
    page = world.get("/ui/chat", language="en")
    assert page.status == 503
    assert "Not available now" in page.body.decode()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WrongHostError("this gateway does not answer to evil.example"), "evil.example"),
        (AuthenticationError("a key is needed"), 'href="/ui/login"'),
        (ForbiddenError("another site may not call this gateway"), "Not allowed"),
    ],
)
def test_an_error_before_any_endpoint(
    error: OpenbrError, words: str, make_world: MakeWorld
) -> None:

    world = make_world("loaded")
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def refuse() -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/ui/chat",
            "query_string": b"",
            "headers": [(b"host", b"evil.example"), (b"accept-language", b"en")],
        }
        await send_error_page(world.app, scope, asyncio.Queue().get, send, error)

    world.run(refuse())
    assert sent[0]["status"] == error.status
    assert words in sent[1]["body"].decode()
    assert b"content-security-policy" in dict(sent[0]["headers"])


# Static files.


def test_static_files_are_kept_by_their_version(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    page = world.get("/ui/models").body.decode()
    addresses = re.findall(r'(?:src|href)="(/static/[^"#]+)', page)
    assert len(set(addresses)) == 7
    for address in set(addresses):
        answer = world.get(address)
        assert answer.status == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        tag = answer.headers["etag"]
        again = world.get(address, headers={"if-none-match": tag})
        assert (again.status, again.body) == (304, b"")
    stale = world.get("/static/openbr.css?v=0000000000000000")
    assert stale.headers["cache-control"] == "no-cache"
    assert stale.headers["content-type"] == "text/css; charset=utf-8"


def test_a_changed_file_gets_a_new_version(make_world: MakeWorld) -> None:
    import os

    world = make_world("loaded", own_pages=True)
    path = world.folder / "static" / "openbr.css"
    before = world.parts.pages.static.url("openbr.css")
    path.write_text("body {}")
    os.utime(path, ns=(1, 1))
    assert world.parts.pages.static.url("openbr.css") != before


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/vendor/lock.toml",
        "/static/../config.toml",
        "/static/%2e%2e/config.toml",
        "/static/vendor/../../config.css",
        "/static//etc/passwd.css",
        "/static/.hidden.css",
        "/static/nothing.css",
        "/static/vendor",
    ],
)
def test_nothing_else_leaves(path: str, make_world: MakeWorld) -> None:
    world = make_world("loaded", own_pages=True)
    (world.folder / "config.css").write_text("secret")
    (world.folder / "static" / ".hidden.css").write_text("secret")
    assert world.get(path).status == 404


def test_a_link_out_of_the_folder_is_not_followed(make_world: MakeWorld) -> None:
    world = make_world("loaded", own_pages=True)
    (world.folder / "secret.css").write_text("secret")
    (world.folder / "static" / "out.css").symlink_to(world.folder / "secret.css")
    assert world.get("/static/out.css").status == 404


def test_pages_work_without_the_fetched_files_and_say_so(make_world: MakeWorld) -> None:
    world = make_world("loaded", own_pages=True)
    (world.folder / "static" / "vendor" / "htmx.min.js").unlink()
    page = world.get("/ui/models").body.decode()
    assert "vendor/" not in "".join(re.findall(r"<script[^>]*>", page))
    assert "python tools/assets.py" in page
    assert world.post("/ui/models", {"model": "ollama/qwen3:8b"}).status == 303
