"""Every state of every fragment, in both languages, against what it was when it was looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asgi import Response
from web.states import CHATS, MODELS
from web.world import World

Golden = Callable[[str, bytes, World], None]
languages = pytest.mark.parametrize("language", ["pt-BR", "en"])


def main_of(response: Response) -> bytes:
    """What stands between the layout's ends: <main> and what is in it."""
    head, found, rest = response.body.partition(b"<main")
    assert found, head
    return b"<main" + rest.partition(b"</main>")[0] + b"</main>"


@languages
@pytest.mark.parametrize("state", MODELS)
def test_models(
    state: str, language: str, make_world: Callable[..., World], golden: Golden
) -> None:
    world = make_world(state)
    query = "?q=opus+9" if state == "no-match" else ""
    part = world.get("/ui/models" + query, htmx=True, language=language)
    assert part.status == 200
    golden(f"models-{state}.{language}", part.body, world)


@languages
def test_a_refused_choice(language: str, make_world: Callable[..., World], golden: Golden) -> None:
    world = make_world("loaded")
    part = world.post("/ui/models", {"model": "ollama/gone"}, htmx=True, language=language)
    assert part.status == 404
    golden(f"models-refused.{language}", part.body, world)


@languages
@pytest.mark.parametrize("state", CHATS)
def test_chat(state: str, language: str, make_world: Callable[..., World], golden: Golden) -> None:
    world = make_world(state)
    page = world.get("/ui/chat/1", language=language)
    golden(f"chat-{state}.{language}", main_of(page), world)


@languages
@pytest.mark.parametrize("state", ["loaded", "local-chosen", "down", "empty"])
def test_new_conversation(
    state: str, language: str, make_world: Callable[..., World], golden: Golden
) -> None:
    world = make_world(state)
    page = world.get("/ui/chat", language=language)
    golden(f"chat-new-{state}.{language}", main_of(page), world)


@languages
def test_layout(language: str, make_world: Callable[..., World], golden: Golden) -> None:
    world = make_world("loaded")
    golden(f"page-models.{language}", world.get("/ui/models", language=language).body, world)


@languages
def test_login(language: str, make_world: Callable[..., World], golden: Golden) -> None:
    world = make_world("loaded")
    world.caller = None
    golden(f"page-login.{language}", world.get("/ui/login", language=language).body, world)
    wrong = world.post("/ui/login", {"key": "sk-openbr-wrong"}, language=language)
    assert wrong.status == 401
    golden(f"page-login-wrong.{language}", main_of(wrong), world)


@languages
@pytest.mark.parametrize("path", ["/ui/nothing", "/ui/chat/99"])
def test_errors(path: str, language: str, make_world: Callable[..., World], golden: Golden) -> None:
    world = make_world("loaded")
    page = world.get(path, language=language)
    assert page.status == 404
    golden(f"page-404{path.replace('/', '-')}.{language}", main_of(page), world)
    part = world.get(path, language=language, htmx=True)
    assert part.status == 404
    golden(f"part-404{path.replace('/', '-')}.{language}", part.body, world)
