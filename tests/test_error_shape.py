"""Every way to fail on /v1 has one envelope, and none is a 500."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Response, call

from openbr.app import App, create_app
from openbr.auth import generate_key, hash_key
from openbr.config import Config
from openbr.secret import ADMIN
from openbr.store import keys

CHAT = "/v1/chat/completions"


def check(answer: Response, status: int, type: str, code: str | None) -> None:
    said = answer.json()["error"]
    assert set(said) == {"message", "type", "param", "code"} and said["message"]
    assert (answer.status, said["type"], said["code"]) == (status, type, code)
    assert answer.headers["x-request-id"] and answer.headers["content-type"] == "application/json"


def ask(config: Config, method: str, path: str, prepare: Any = None, **request: Any) -> Response:
    async def main() -> Response:
        app = create_app(config)
        await app.open()
        try:
            if prepare:
                prepare(app)
            return await call(app, method, path, **request)
        finally:
            await app.close()

    return asyncio.run(main())


def drain(app: App) -> None:
    app.draining = True


def flood(app: App) -> None:
    app.in_flight = 1000


def break_models(app: App) -> None:
    async def broken(exchange: Any) -> None:
        raise ZeroDivisionError("secret detail")

    app._v1 = {"/v1/models": {"GET": broken}}


@pytest.mark.parametrize(
    ("method", "path", "prepare", "request_", "expected"),
    [
        ("GET", "/v1/nothing", None, {}, (404, "invalid_request_error", "not_found")),
        ("GET", "/v1/", None, {}, (404, "invalid_request_error", "not_found")),
        ("GET", "/v1/../etc/passwd", None, {}, (404, "invalid_request_error", "not_found")),
        ("GET", CHAT, None, {}, (405, "invalid_request_error", "method_not_allowed")),
        ("OPTIONS", CHAT, None, {}, (405, "invalid_request_error", "method_not_allowed")),
        ("DELETE", "/v1/models/x", None, {}, (405, "invalid_request_error", "method_not_allowed")),
        ("POST", CHAT, None, {"body": b"{"}, (400, "invalid_request_error", None)),
        (
            "POST",
            CHAT,
            None,
            {"headers": {"host": "evil.example"}},
            (421, "invalid_request_error", "wrong_host"),
        ),
        (
            "POST",
            CHAT,
            None,
            {"headers": {"origin": "http://evil.example"}},
            (403, "permission_error", None),
        ),
        ("GET", "/v1/models", drain, {}, (503, "service_unavailable", "draining")),
        ("GET", "/v1/models", flood, {}, (503, "service_unavailable", "overloaded")),
        (
            "POST",
            CHAT,
            None,
            {"body": {"model": "default", "messages": [{}]}},
            (503, "service_unavailable", "no_model"),
        ),
    ],
)
def test_the_envelope(
    config: Config, method: str, path: str, prepare: Any, request_: Any, expected: Any
) -> None:
    answer = ask(config, method, path, prepare, **request_)
    check(answer, *expected)
    if answer.status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    if answer.status == 405:
        assert answer.headers["allow"]


def test_an_unknown_failure_says_nothing_but_its_id(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(config, "GET", "/v1/models", break_models)
    check(answer, 500, "server_error", None)
    assert "secret detail" not in answer.body.decode()
    assert answer.headers["x-request-id"] in caplog.text and "secret detail" in caplog.text


def test_keys_and_scopes(make_config: Callable[..., Config]) -> None:
    config = make_config('[auth]\nmode = "required"\n[local]\nenabled = false\n')
    key = generate_key()

    def prepare(app: App) -> None:
        app.store.write(
            keys.add,
            name="admin",
            digest=hash_key(key),
            last4=key[-4:],
            scopes=frozenset({ADMIN}),
            now=time.time(),
        )

    answer = ask(config, "GET", "/v1/models")
    check(answer, 401, "authentication_error", "invalid_api_key")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    answer = ask(config, "GET", "/v1/models", headers={"authorization": "Bearer no"})
    check(answer, 401, "authentication_error", "invalid_api_key")
    headers = {"authorization": f"Bearer {key}"}
    check(ask(config, "GET", "/v1/models", prepare, headers=headers), 403, "permission_error", None)


def test_health_needs_no_key_and_says_why_it_is_not_ready(
    make_config: Callable[..., Config],
) -> None:
    config = make_config('[auth]\nmode = "required"\n[local]\nenabled = false\n')
    assert ask(config, "GET", "/healthz").json() == {"status": "ok", "reasons": []}
    assert ask(config, "GET", "/readyz").status == 200
    draining = ask(config, "GET", "/readyz", drain)
    assert (draining.status, draining.json()["reasons"]) == (503, ["draining"])
    assert ask(config, "GET", "/healthz", drain).status == 200
    assert ask(config, "POST", "/healthz").status == 405


def test_pages_ask_for_a_login_where_a_key_is_needed(make_config: Callable[..., Config]) -> None:
    config = make_config('[auth]\nmode = "required"\n[local]\nenabled = false\n')
    answer = ask(config, "GET", "/ui/models")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/login?next=/ui/models")
    found = ask(config, "GET", "/ui/models?q=a&p=2")
    assert found.headers["location"] == "/ui/login?next=/ui/models%3Fq%3Da%26p%3D2"
    fragment = ask(config, "GET", "/ui/models", headers={"hx-request": "true"})
    assert fragment.headers["hx-redirect"] == "/ui/login?next=/ui/models"
    assert ask(config, "POST", "/ui/models").status == 401


def test_two_apps_live_in_one_process(make_config: Callable[..., Config], tmp_path: Any) -> None:
    async def main() -> None:
        one = create_app(make_config(OPENBR_STATE=str(tmp_path / "one")))
        two = create_app(make_config(OPENBR_STATE=str(tmp_path / "two")))
        await one.open()
        await two.open()
        one.draining = True
        assert (await call(one, "GET", "/readyz")).status == 503
        assert (await call(two, "GET", "/readyz")).status == 200
        await one.close()
        assert (await call(two, "GET", "/v1/models")).status == 200
        await two.close()

    asyncio.run(main())


def test_people_get_a_page_and_programs_the_envelope(config: Config) -> None:
    page = ask(config, "GET", "/ui/models", headers={"host": "evil.example"})
    assert page.status == 421 and page.headers["content-type"].startswith("text/html")
    assert "content-security-policy" in page.headers
    foreign = ask(config, "POST", "/ui/models", headers={"origin": "http://evil.example"})
    assert foreign.status == 403 and foreign.headers["content-type"].startswith("text/html")
    check(
        ask(config, "GET", "/healthz", headers={"host": "evil.example"}),
        421,
        "invalid_request_error",
        "wrong_host",
    )
