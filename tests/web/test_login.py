"""/ui/login, /ui/logout: a cookie for a key, and no way to somewhere else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from web.world import World

from openbr.auth import generate_key, hash_key, read_head
from openbr.errors import AuthenticationError
from openbr.records import Caller
from openbr.secret import SCOPES
from openbr.store import keys
from openbr.web.login import safe_next

MakeWorld = Callable[..., World]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    made = make_world("loaded")
    made.caller = None
    return made


@pytest.fixture
def key(world: World) -> str:
    made = generate_key()
    world.store.write(
        keys.add,
        name="laptop",
        digest=hash_key(made),
        last4=made[-4:],
        scopes=SCOPES,
        now=time.time(),
    )
    return made


def test_a_key_becomes_a_cookie_that_opens(world: World, key: str) -> None:
    answer = world.post("/ui/login", {"key": f" {key}\n", "next": "/ui/models"})
    assert (answer.status, answer.headers["location"]) == (303, "/ui/models")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert "Secure" not in cookie
    value = re.match("openbr_session=([^;]+)", cookie)
    assert value and key not in cookie
    head = read_head([(b"host", b"x"), (b"cookie", value[0].encode())])
    assert world.parts.auth.identify(head, "127.0.0.1").name == "laptop"
    left = world.post("/ui/logout", headers={"cookie": value[0]})
    assert (left.status, left.headers["location"]) == (303, "/ui/login")
    assert 'openbr_session=""' in left.headers["set-cookie"]
    with pytest.raises(AuthenticationError):
        world.parts.auth.identify(head, "127.0.0.1")


def test_the_cookie_is_secure_on_https(world: World, key: str) -> None:
    answer = world.post("/ui/login", {"key": key}, scheme="https")
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("wrong", ["", "sk-openbr-wrong", "x" * 5000, "chave com ç"])
def test_a_wrong_key(world: World, wrong: str) -> None:
    answer = world.post("/ui/login", {"key": wrong, "next": "/ui/models"})
    assert answer.status == 401
    page = answer.body.decode()
    assert "Esta chave não abre nada aqui." in page
    assert 'name="next" value="/ui/models"' in page
    assert "set-cookie" not in answer.headers
    assert wrong == "" or f'value="{wrong}"' not in page


def test_too_many_wrong_keys(world: World) -> None:
    statuses = [world.post("/ui/login", {"key": "wrong"}).status for _ in range(25)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    page = world.post("/ui/login", {"key": "wrong"}).body.decode()
    assert "Tentativas demais" in page


def test_strangers_are_told_nothing(world: World) -> None:
    page = world.get("/ui/login").body.decode()
    assert "claude" not in page and "anthropic" not in page
    assert 'id="model-pill"' not in page and "hx-get" not in page


def test_a_poll_without_a_session_moves_the_page(world: World) -> None:
    answer = world.get("/ui/login?next=/ui/models", htmx=True)
    assert answer.headers["hx-redirect"] == "/ui/login"


def test_who_is_in_can_leave(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    assert "/ui/logout" not in world.get("/ui/models").body.decode()
    world.caller = Caller(key_id=3, name="laptop", scopes=SCOPES)
    page = world.get("/ui/models").body.decode()
    assert 'action="/ui/logout"' in page
    assert "Sair (laptop)" in page


@pytest.mark.parametrize(
    ("wish", "place"),
    [
        ("/ui/models", "/ui/models"),
        ("/ui/models?q=llama+3", "/ui/models?q=llama+3"),
        ("/ui/chat/12", "/ui/chat/12"),
        ("/ui/chat/12/stream/5", "/ui/chat/12"),
        ("/ui/chat/12/stop", "/ui/chat/12"),
        ("/ui/models/in-use", "/ui/models"),
        ("", "/ui/chat"),
        ("/", "/ui/chat"),
        ("//evil.example", "/ui/chat"),
        ("/ui//evil.example", "/ui/chat"),
        ("https://evil.example/ui/chat", "/ui/chat"),
        ("/ui/../v1/models", "/ui/chat"),
        ("/ui\\evil.example", "/ui/chat"),
        ("/ui/chat\r\nset-cookie: x=y", "/ui/chat"),
        ("/ui/login", "/ui/chat"),
        ("/ui/logout", "/ui/chat"),
        ("javascript:alert(1)", "/ui/chat"),
    ],
)
def test_where_one_goes_afterwards(wish: str, place: str) -> None:
    assert safe_next(wish) == place
