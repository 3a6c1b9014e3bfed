"""GET /v1/models: from memory, in OpenAI's dialect."""

from __future__ import annotations

from typing import Any

from asgi import call
from fake_upstream import OpenAIUpstream, silence

from openbr.app import App


def test_the_list_has_full_ids(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        answer = await call(app, "GET", "/v1/models")
        listed = answer.json()
        assert answer.status == 200 and listed["object"] == "list"
        assert [m["id"] for m in listed["data"]] == ["fake/alpha", "fake/beta"]
        first = listed["data"][0]
        assert (first["object"], first["owned_by"]) == ("model", "fake")
        assert first["openbr"] == {"local": True, "stale": False}

    serve(act)


def test_one_model_by_full_or_unique_bare_id(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        for name in ("fake/alpha", "alpha"):
            answer = await call(app, "GET", f"/v1/models/{name}")
            assert (answer.status, answer.json()["id"]) == (200, "fake/alpha")
        missing = await call(app, "GET", "/v1/models/none")
        assert (missing.status, missing.json()["error"]["code"]) == (404, "model_not_found")

    serve(act)


def test_a_hanging_provider_is_not_waited_for(serve: Any) -> None:
    async def act(app: App, upstream: OpenAIUpstream) -> None:
        upstream.list_answer = silence()
        app.catalogue.refresh()
        answer = await call(app, "GET", "/v1/models")
        assert len(answer.json()["data"]) == 2
        assert (await call(app, "HEAD", "/v1/models")).body == b""

    serve(act)
