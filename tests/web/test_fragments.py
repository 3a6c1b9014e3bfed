"""Fragments that are kept: never a word that does not hold any more, and never too many bytes."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from asgi import call
from native.conftest import load
from web.states import ROUTES
from web.world import World

from openbr._native.stats import CacheStats
from openbr.app import create_app
from openbr.auth import OWNER
from openbr.config import Config
from openbr.errors import UpstreamUnavailableError
from openbr.records import Caller, Model
from openbr.secret import CHAT
from openbr.web import fragments
from openbr.web.fragments import TTL_S, Fragments

MakeWorld = Callable[..., World]
READER = Caller(key_id=7, name="laptop", scopes=frozenset({CHAT}))


@pytest.fixture(params=["native", "pure"], autouse=True)
def each_implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load("lru", request.param).TTLCache
    monkeypatch.setattr(fragments, "create_cache", made)


def stats(kept: Fragments) -> CacheStats:
    return kept.caches()["fragments"].stats()


def text(kept: Fragments, *facts: object, draw: Callable[[], str]) -> str:
    return kept.html(facts, draw).__html__()


# By itself.


def test_the_same_facts_are_drawn_once() -> None:
    kept = Fragments()
    drawn: list[str] = []

    def draw() -> str:
        drawn.append("<p>")
        return f"<p>{len(drawn)}</p>"

    assert text(kept, "list", "en", 1, draw=draw) == "<p>1</p>"
    assert text(kept, "list", "en", 1, draw=draw) == "<p>1</p>"
    for other in (("list", "en", 2), ("list", "en", "1"), ("list", "en", None), ("list", "en")):
        assert text(kept, *other, draw=draw) == f"<p>{len(drawn)}</p>"
    assert text(kept, "list', 'en", 1, draw=draw) == "<p>6</p>"
    assert len(drawn) == 6


def test_it_is_drawn_again_after_its_time() -> None:
    now = 0.0
    kept = Fragments(clock=lambda: now)
    assert text(kept, "a", draw=lambda: "one") == "one"
    now = TTL_S - 0.001
    assert text(kept, "a", draw=lambda: "two") == "one"
    now = TTL_S
    assert text(kept, "a", draw=lambda: "two") == "two"


def test_all_of_them_are_bounded_by_bytes() -> None:
    kept = Fragments(max_bytes=100_000)
    for number in range(50):
        assert text(kept, "a", number, draw=lambda: "x" * 9_000) == "x" * 9_000
        assert stats(kept).bytes <= 100_000
    assert stats(kept).entries == 10
    assert text(kept, "a", 49, draw=lambda: "kept") == "x" * 9_000
    assert text(kept, "a", 0, draw=lambda: "drawn") == "drawn"


def test_one_that_is_too_large_is_shown_and_not_kept() -> None:
    kept = Fragments(max_bytes=1000)
    assert text(kept, "a", draw=lambda: "x" * 2000) == "x" * 2000
    assert stats(kept).entries == 0
    assert text(kept, "a", draw=lambda: "small") == "small"


def test_one_that_cannot_be_drawn_is_tried_again() -> None:
    kept = Fragments()

    def fail() -> str:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            kept.html(("a",), fail)
    assert text(kept, "a", draw=lambda: "drawn") == "drawn"


# On the Models page.


def fill(world: World) -> None:
    world.provider(
        "anthropic",
        *(
            Model(provider="anthropic", upstream_model=name, features=("vision",))
            for name in ("haiku", "opus", "sonnet")
        ),
    )
    world.provider("ollama", "llama3", "qwen3", is_local=True)
    world.open()
    world.choose("ollama/llama3")


def poll(world: World, tag: str, path: str = "/ui/models", language: str = "en") -> str:
    """A poll that brings something new."""
    part = world.get(path, htmx=True, language=language, headers={"hx-ptag": tag})
    assert part.status == 200
    return part.body.decode()


def tag_of(world: World, path: str = "/ui/models", language: str = "en") -> str:
    """What the page holds after it has been shown, and shown again from what is kept."""
    first = world.get(path, htmx=True, language=language)
    again = world.get(path, htmx=True, language=language)
    assert again.body == first.body
    return first.headers["hx-ptag"]


def row(body: str, model: str) -> str:
    found = re.search(rf'<div class="row[^>]*id="row-{model}">.*?</label>', body, re.DOTALL)
    assert found is not None
    return found[0]


def test_a_choice_shows_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    world.choose("anthropic/opus")
    body = poll(world, tag)
    assert " checked" in row(body, "anthropic_2Fopus")
    assert " checked" not in row(body, "ollama_2Fllama3")


def test_a_silent_provider_shows_at_once_and_so_does_its_return(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    world.providers["ollama"].fails("refused")
    world.later(6)
    world.refresh()
    body = poll(world, tag)
    assert "list seen at 12:03" in body
    assert "no signal" in row(body, "ollama_2Fqwen3")
    tag = tag_of(world)
    world.providers["ollama"].failure = None
    world.refresh()
    assert "no signal" not in poll(world, tag)


def test_a_new_model_shows_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    world.providers["ollama"].models += (Model(provider="ollama", upstream_model="gemma"),)
    world.refresh()
    assert "row-ollama_2Fgemma" in poll(world, tag)


def test_a_language_shows_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    assert "Use the marked model" in poll(world, "", language="en")
    assert "Usar o modelo marcado" in poll(world, tag, language="pt-BR")
    pill = tag_of(world, "/ui/models/in-use")
    assert "em uso" in poll(world, pill, "/ui/models/in-use", language="pt-BR")


def test_a_search_shows_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    body = poll(world, tag, "/ui/models?q=qwen")
    assert "1 of 5 models shown" in body
    assert "row-anthropic" not in body
    assert "No model matches" in poll(world, tag, "/ui/models?q=nothing")
    assert "row-anthropic" in poll(world, tag_of(world, "/ui/models?q=qwen"))


def test_a_key_without_the_scope_never_gets_the_buttons(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    world.caller = READER
    assert 'type="radio"' not in poll(world, tag)
    tag = tag_of(world)
    world.caller = OWNER
    assert 'type="radio"' in poll(world, tag)


def test_midnight_shows_at_once(make_world: MakeWorld) -> None:
    """What was seen at 12:03 was seen yesterday now: nothing else has changed."""
    world = make_world()
    fill(world)
    world.providers["ollama"].fails("refused")
    world.later(6)
    world.refresh()
    assert "list seen at 12:03" in poll(world, "")
    tag = tag_of(world)
    world.later(12 * 3600)
    assert "list seen at Yesterday, 12:03" in poll(world, tag)


def test_midnight_shows_in_the_route_too(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    assert "Chosen: 12:03." in poll(world, "")
    tag = tag_of(world)
    world.later(12 * 3600)
    world.refresh()
    assert "Chosen: Yesterday, 12:03." in poll(world, tag)


def test_models_that_were_not_seen_for_a_day_leave_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    world.providers["anthropic"].fails("disabled")
    world.later(23 * 3600)
    world.refresh()
    tag = tag_of(world)
    world.later(3601)
    world.refresh()
    assert "row-anthropic" not in poll(world, tag)


def test_the_age_of_an_old_list_moves_on(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    world.providers["anthropic"].hangs = True
    world.later(20)
    world.get("/ui/models")
    for age in (25, 30, 35):
        tag = tag_of(world)
        world.later(5)
        assert f"checked {age}\u00a0s ago" in poll(world, tag)


def test_the_limit_of_a_provider_that_nobody_chose_counts_down(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    limited = UpstreamUnavailableError(
        "slow down", provider="anthropic", reason="quota", retry_after_s=172
    )
    world.providers["anthropic"].failure = limited
    world.refresh()
    world.later(122)
    world.get("/ui/models")
    world.settle()  # the other list is new again: nothing but the countdown goes on
    tag = tag_of(world)
    assert "Next attempt in 50\u00a0s" in poll(world, "")
    world.later(4)
    assert "Next attempt in 46\u00a0s" in poll(world, tag)


def test_a_countdown_moves_and_the_list_is_not_drawn_again(make_world: MakeWorld) -> None:
    world = make_world(toml=ROUTES)
    fill(world)
    world.providers["ollama"].fails("refused")
    for _ in range(4):
        world.refresh()
    tag = tag_of(world)
    before = stats(world.parts.fragments)
    seen = set()
    for _ in range(3):
        world.later(6)
        seen |= set(re.findall(r"Next attempt in \d+", poll(world, tag)))
    after = stats(world.parts.fragments)
    assert len(seen) == 3
    assert (after.hits, after.misses) == (before.hits + 3, before.misses)


def test_an_unchanged_poll_asks_for_no_fragment(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    tag = tag_of(world)
    before = stats(world.parts.fragments)
    same = world.get("/ui/models", htmx=True, language="en", headers={"hx-ptag": tag})
    assert (same.status, same.body) == (304, b"")
    assert stats(world.parts.fragments) == before


def test_page_and_fragment_show_the_same_list(make_world: MakeWorld) -> None:
    world = make_world()
    fill(world)
    part = world.get("/ui/models", htmx=True).body.decode()
    page = world.get("/ui/models").body.decode()
    assert stats(world.parts.fragments).hits == 1
    (shown,) = re.findall(r'<form class="models".*?</form>', part, re.DOTALL)
    assert shown in page


def test_two_gateways_keep_their_own(make_world: MakeWorld) -> None:
    one, two = make_world(), make_world()
    one.provider("ollama", "first")
    two.provider("ollama", "second")
    for world, own, other in ((one, "first", "second"), (two, "second", "first")):
        world.open()
        body = world.get("/ui/models").body.decode()
        assert f"row-ollama_2F{own}" in body
        assert f"row-ollama_2F{other}" not in body


# Whatever happens.


def act(world: World, chance: random.Random) -> None:
    """One of the things that can happen to a gateway."""
    provider = world.providers[chance.choice(sorted(world.providers))]
    known = [model.id for model in world.catalogue.models()]
    what = chance.choice(["choose", "fail", "recover", "list", "later", "later", "ask"])
    if what == "choose" and known:
        world.choose(chance.choice(known))
    elif what == "fail":
        provider.fails(
            chance.choice(["refused", "quota", "auth", "disabled"]), f"x{chance.random()}"
        )
    elif what == "recover":
        provider.failure = None
    elif what == "list":
        names = chance.sample(["llama3", "qwen3", "opus", "gemma", "phi"], chance.randrange(5))
        provider.models = tuple(Model(provider=provider.name, upstream_model=n) for n in names)
    elif what == "later":
        world.later(chance.choice([1, 4, 11, 40, 600, 7 * 3600, 25 * 3600]))
    else:
        world.refresh()


def without_ages(body: bytes) -> str:
    """A page that answers 304 may go on showing an age for a few seconds, and nothing else."""
    length = "\\d+\u00a0(?:s|min)"
    ages = f"agora|just now|há {length}|{length} ago|{length}"
    return re.sub(ages, "AGE", body.decode())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_would_be_drawn(seed: int, make_world: MakeWorld) -> None:
    """And 304 is said only of a page that would say the same."""
    world = make_world(toml=ROUTES)
    fill(world)
    chance = random.Random(seed)
    (cache,) = world.parts.fragments.caches().values()
    ways = [
        (language, path, caller)
        for language in ("en", "pt-BR")
        for path in ("/ui/models", "/ui/models?q=l")
        for caller in (OWNER, READER)
    ]
    shown: dict[tuple[str, str, Caller], tuple[str, bytes]] = {}
    same = 0
    for _ in range(60):
        act(world, chance)
        world.get("/ui/models")  # whoever looks starts the fetches that are due
        world.settle()
        way = language, path, world.caller = chance.choice(ways)
        kept = world.get(path, htmx=True, language=language)
        items = cache.items()
        cache.clear()
        drawn = world.get(path, htmx=True, language=language)
        assert kept.body == drawn.body
        for key, html in items:
            cache.set(key, html)
        if way in shown:
            tag, body = shown[way]
            polled = world.get(path, htmx=True, language=language, headers={"hx-ptag": tag})
            if polled.status == 304:
                same += 1
                assert without_ages(body) == without_ages(drawn.body)
        shown[way] = (drawn.headers["hx-ptag"], drawn.body)
    assert same
    assert cache.stats().hits > 30


# In the app.


def test_the_memory_of_an_app_knows_the_fragments_once_its_pages_are_open(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    app = create_app(make_config(OPENBR_STATE=str(tmp_path)))

    async def look() -> None:
        await call(app, "GET", "/ui/models")
        await app.catalogue.close()

    with closing(app.store):
        assert "fragments" not in app.memory.stats()
        asyncio.run(look())
        known = app.memory.stats()["fragments"]
        assert isinstance(known, CacheStats)
        assert known.entries == 1
        assert known.max_bytes == fragments.MAX_BYTES
