"""/ui/models: three facts that are always told apart, and a choice that is written once."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from web.states import ROUTES
from web.world import World

from openbr.errors import UpstreamUnavailableError
from openbr.records import Model
from openbr.store import selections

MakeWorld = Callable[..., World]


def chosen(world: World) -> str | None:
    saved = world.store.read(selections.get, "default")
    return saved.model if saved else None


def checked(body: bytes) -> list[str]:
    return re.findall(r'<input type="radio"[^>]*value="([^"]*)" checked>', body.decode())


def element(body: bytes, id: str) -> str:
    """From the tag with this id to the next fragment's end: enough to look for words in."""
    text = body.decode()
    start = text.index(f'id="{id}"')
    return text[start : start + 4000]


def test_opening_a_page_writes_nothing(make_world: MakeWorld) -> None:
    world = make_world("unchosen")
    for path in ("/ui/models", "/ui/models?q=x", "/ui/models/in-use", "/ui/chat", "/"):
        world.get(path)
        world.get(path, htmx=True)
    assert chosen(world) is None


def test_choosing_without_a_script(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    answer = world.post("/ui/models", {"model": "ollama/qwen3:8b", "q": "qwen 3"})
    assert answer.status == 303
    assert answer.headers["location"] == "/ui/models?q=qwen+3"
    assert chosen(world) == "ollama/qwen3:8b"
    assert checked(world.get("/ui/models").body) == ["ollama/qwen3:8b"]


def test_choosing_with_htmx_answers_with_every_part(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    part = world.post("/ui/models", {"model": "ollama/qwen3:8b"}, htmx=True)
    assert part.status == 200
    for id in ("models-age", "model-route", "model-list", "provider-list", "model-pill", "status"):
        assert f'hx-target="#{id}"' in part.body.decode()
    assert "qwen3:8b foi escolhido." in part.body.decode()
    assert checked(part.body) == ["ollama/qwen3:8b"]
    assert "hx-ptag" not in part.headers


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "ollama/gone"}, 404),
        ({"model": "nobody/at-all"}, 404),
        ({"model": ""}, 400),
        ({}, 400),
        ({"model": "x" * 5000}, 400),
        ({"model": "ollama/\u202egpj"}, 400),
    ],
)
@pytest.mark.parametrize("htmx", [False, True])
def test_a_refused_choice_changes_nothing_and_says_so(
    fields: dict[str, str], status: int, htmx: bool, make_world: MakeWorld
) -> None:
    world = make_world("loaded")
    answer = world.post("/ui/models", fields, htmx=htmx)
    assert answer.status == status
    assert chosen(world) == "anthropic/claude-haiku-4.5"
    assert checked(answer.body) == ["anthropic/claude-haiku-4.5"]
    notice = element(answer.body, "notice")
    assert "A troca não foi feita." in notice
    assert "Você continua em claude-haiku-4.5." in notice
    assert (b"<html" in answer.body) is not htmx


def test_a_store_that_fails_is_a_notice_too(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbr.errors import ServiceUnavailableError

    world = make_world("loaded")

    async def full(*_: object) -> None:
        raise ServiceUnavailableError("the disk is full")

    monkeypatch.setattr(world.store, "commit", full)
    answer = world.post("/ui/models", {"model": "ollama/qwen3:8b"}, htmx=True)
    assert answer.status == 503
    assert "the disk is full" in element(answer.body, "notice")
    assert chosen(world) == "anthropic/claude-haiku-4.5"


def test_a_key_without_the_scope_reads_only(make_world: MakeWorld) -> None:
    world = make_world("reader")
    page = world.get("/ui/models").body.decode()
    assert 'type="radio"' not in page
    assert "falta o escopo <strong>admin</strong>" in page
    assert world.post("/ui/models", {"model": "ollama/qwen3:8b"}).status == 403
    part = world.post("/ui/models", {"model": "ollama/qwen3:8b"}, htmx=True)
    assert part.status == 403
    assert 'hx-target="#notice"' in part.body.decode()
    assert chosen(world) == "anthropic/claude-haiku-4.5"


def test_the_chosen_one_stays_marked_while_another_answers(make_world: MakeWorld) -> None:
    world = make_world("fallback")
    page = world.get("/ui/models").body
    assert checked(page) == ["ollama/llama3.3:70b"]
    assert "está respondendo no lugar de" in element(page, "model-route")
    assert "saem desta máquina" in element(page, "model-route")


def test_the_chosen_one_stays_marked_when_nobody_lists_it(make_world: MakeWorld) -> None:
    """After a restart with its provider down, nothing is known of the chosen model."""
    world = make_world("loaded")
    world.choose("ollama/qwen3:8b")
    world.providers["ollama"].models = ()
    world.refresh()
    assert checked(world.get("/ui/models").body) == ["ollama/qwen3:8b"]


def test_keeping_the_model_in_use(make_world: MakeWorld) -> None:
    world = make_world("fallback")
    page = world.get("/ui/models").body.decode()
    assert "Ficar neste" in page
    world.post("/ui/models", {"model": "anthropic/claude-haiku-4.5"})
    route = element(world.get("/ui/models").body, "model-route")
    assert "Escolhido e em uso" in route


def test_local_words_leave_only_with_consent(make_world: MakeWorld) -> None:
    world = make_world(toml=ROUTES.replace("consent = true", "consent = false"))
    for name, model in (("anthropic", "claude-haiku-4.5"), ("ollama", "llama3.3:70b")):
        world.provider(name, model, is_local=name == "ollama")
    world.open()
    world.choose("ollama/llama3.3:70b")
    world.providers["ollama"].fails("refused")
    world.later(10)
    world.refresh()
    page = world.get("/ui/models").body
    assert "não está respondendo" in element(page, "model-route")
    assert "Ficar neste" not in page.decode()


def test_search(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    page = world.get("/ui/models?q=HAIKU+anthropic").body.decode()
    assert "claude-haiku-4.5" in page
    assert "row-ollama" not in page
    assert "1 de 4 modelos exibidos." in page
    assert 'value="HAIKU anthropic"' in page
    nothing = world.get("/ui/models?q=%3Cb%3Eopus").body.decode()
    assert "<strong>&lt;b&gt;opus</strong>" in nothing
    assert "<b>opus" not in nothing


def test_an_unchanged_poll_is_304(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    page = world.get("/ui/models").body.decode()
    (tag,) = re.findall(r'id="models-poll"[^>]*hx-ptag="([^"]+)"', page)
    for _ in range(3):
        world.later(2)
        same = world.get("/ui/models", htmx=True, headers={"hx-ptag": tag})
        world.settle()
        assert (same.status, same.body) == (304, b"")


def test_a_poll_brings_what_changed(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    tag = world.get("/ui/models", htmx=True).headers["hx-ptag"]
    assert world.get("/ui/models", htmx=True, headers={"hx-ptag": tag}).status == 304
    assert world.get("/ui/models?q=x", htmx=True, headers={"hx-ptag": tag}).status == 200
    world.choose("ollama/qwen3:8b")
    changed = world.get("/ui/models", htmx=True, headers={"hx-ptag": tag})
    assert changed.status == 200
    world.providers["anthropic"].fails("auth")
    world.later(10)
    world.refresh()
    again = world.get("/ui/models", htmx=True, headers={"hx-ptag": changed.headers["hx-ptag"]})
    assert "recusou a nossa chave" in again.body.decode()


def test_old_ages_are_told_anew(make_world: MakeWorld) -> None:
    """A list that nobody renews must not go on passing for news."""
    world = make_world("loaded")
    for provider in world.providers.values():
        provider.hangs = True
    tag = world.get("/ui/models", htmx=True).headers["hx-ptag"]
    world.later(30)
    part = world.get("/ui/models", htmx=True, headers={"hx-ptag": tag})
    assert "há 33\u00a0s, renovando" in part.body.decode()


def test_no_page_waits_for_a_provider(make_world: MakeWorld) -> None:
    world = make_world("loading")
    page = world.get("/ui/models").body.decode()
    assert page.count('class="row skeleton"') == 6
    assert '<meta http-equiv="refresh" content="2">' in page
    assert 'hx-get="/ui/models?wait=1"' in page


def test_the_fragment_behind_the_skeleton_waits(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("loading")
    monkeypatch.setattr("openbr.web.models.WAIT_S", 0.05)
    still = world.get("/ui/models?wait=1", htmx=True)
    assert "skeleton" in still.body.decode()

    async def arrive() -> bytes:
        for provider in world.providers.values():
            provider.hangs = False
        await world.catalogue.close()
        world.catalogue.refresh()
        return (await world.ask("GET", "/ui/models?wait=1", htmx=True)).body

    assert b"claude-haiku-4.5" in world.run(arrive())


def test_refresh_asks_every_provider(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    world.providers["ollama"].models += (Model(provider="ollama", upstream_model="new"),)
    plain = world.post("/ui/models/refresh", {"q": "n"})
    assert (plain.status, plain.headers["location"]) == (303, "/ui/models?q=n")
    world.settle()
    assert "row-ollama_2Fnew" in world.get("/ui/models").body.decode()
    part = world.post("/ui/models/refresh", {"q": ""}, htmx=True)
    assert "renovando" in part.body.decode()
    assert world.get("/ui/models/refresh").headers["location"] == "/ui/models"


@pytest.mark.parametrize(
    "reason",
    [
        "refused",
        "timeout",
        "dns",
        "tls",
        "auth",
        "quota",
        "server",
        "protocol",
        "disabled",
        "no_key",
    ],
)
def test_each_reason_has_words_in_the_provider_list(reason: str, make_world: MakeWorld) -> None:
    from openbr.web.reasons import REASONS

    world = make_world("loaded")
    world.providers["anthropic"].fails(reason, "the provider's own words")
    world.later(10)
    world.refresh()
    page = world.get("/ui/models", language="en").body.decode()
    said = REASONS[reason]
    assert said.label in element(page.encode(), "provider-anthropic")
    assert said.sentence.replace("%(provider)s", "anthropic") in page
    assert said.advice in page


def test_hostile_names_are_shown_and_do_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    names = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "gpt\u202e4\u2066",
        "100% %(model)s {{ 7*7 }}",
        "line\nbreak\ttab",
        "x" * 3000,
        "half\ud83d",
    )
    provider = world.provider("evil", *names)
    provider.script.pieces = ["ok"]
    world.open()
    world.choose('evil/"><img src=x onerror=alert(1)>')
    for options in ({}, {"htmx": True}):
        body = world.get("/ui/models", **options).body.decode()
        assert "<script>alert" not in body
        assert "<img" not in body
        assert "\u202e" not in body
        assert "gpt[U+202E]4[U+2066]" in body
        assert "100% %(model)s {{ 7*7 }}" in body
    provider.fails("refused", '<b>"detail"\u202e 5% of %s</b>')
    world.later(10)
    world.refresh()
    page = world.get("/ui/models").body.decode()
    assert "&lt;b&gt;&#34;detail&#34;[U+202E] 5% of %s&lt;/b&gt;" in page


def test_the_pill_is_polled_by_every_other_page(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    page = world.get("/ui/chat").body.decode()
    (tag,) = re.findall(r'id="pill-poll"[^>]*hx-ptag="([^"]+)"', page)
    assert world.get("/ui/models/in-use", htmx=True, headers={"hx-ptag": tag}).status == 304
    world.choose("ollama/qwen3:8b")
    part = world.get("/ui/models/in-use", htmx=True, headers={"hx-ptag": tag})
    assert part.status == 200
    assert part.headers["hx-ptag"] != tag
    assert part.body.decode().count("qwen3:8b</bdi>") == 3
    assert world.get("/ui/models/in-use").headers["location"] == "/ui/models"


def test_a_limit_counts_down(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    world.providers["anthropic"].failure = UpstreamUnavailableError(
        "slow down", provider="anthropic", reason="quota", retry_after_s=120
    )
    world.later(10)
    world.refresh()
    tag = world.get("/ui/models", htmx=True).headers["hx-ptag"]
    world.later(30)
    part = world.get("/ui/models", htmx=True, headers={"hx-ptag": tag})
    assert "Nova tentativa em 1\u00a0min." in part.body.decode()
