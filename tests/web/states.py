"""The states that the pages can be in, each built once and named, as the design numbers them.

In: an empty World. Out: the same World in that state, open. Golden files, the tests of behaviour
and screenshots all use these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fake_upstream import Gate
from web.world import Script, World

from openbr.errors import (
    StreamInterruptedError,
    UpstreamRejectedError,
    UpstreamUnavailableError,
)
from openbr.records import Caller, Model
from openbr.secret import CHAT

ROUTES = """
[[providers]]
name = "anthropic"
base_url = "https://anthropic.example/v1"
[[providers]]
name = "ollama"
base_url = "http://127.0.0.1:11434/v1"
[[routes]]
model = "default"
deployments = ["ollama/llama3.3:70b", "anthropic/claude-haiku-4.5"]
consent = true
"""


def _providers(world: World) -> None:
    world.provider(
        "anthropic",
        Model(
            provider="anthropic",
            upstream_model="claude-haiku-4.5",
            context_tokens=200_000,
            features=("vision", "tools"),
        ),
        Model(provider="anthropic", upstream_model="claude-sonnet-4.5", context_tokens=1_000_000),
    )
    world.provider(
        "ollama",
        Model(
            provider="ollama",
            upstream_model="llama3.3:70b",
            context_tokens=131_072,
            size_bytes=43_000_000_000,
        ),
        Model(provider="ollama", upstream_model="qwen3:8b"),
        is_local=True,
    )


def loading(world: World) -> None:
    """1: nothing is known yet, and the first fetch hangs."""
    _providers(world)
    for provider in world.providers.values():
        provider.hangs = True
    world.open(settle=False)


def loaded(world: World) -> None:
    """2: the chosen model answers, the list is 3 s old."""
    _providers(world)
    world.open()
    world.choose("anthropic/claude-haiku-4.5")
    world.later(3)


def local_chosen(world: World) -> None:
    """2, with a model on this machine."""
    _providers(world)
    world.open()
    world.choose("ollama/llama3.3:70b")
    world.later(3)


def unchosen(world: World) -> None:
    """2, before anybody chose: the local model answers by default."""
    world.provider(
        "local",
        Model(
            provider="local",
            upstream_model="smollm2-135m",
            context_tokens=2048,
            size_bytes=98_362_432,
        ),
        is_local=True,
        kind="local",
    )
    world.local_model = "smollm2-135m"
    world.open()
    world.later(3)


def renewing(world: World) -> None:
    """3: the list is 42 s old and being fetched again."""
    loaded(world)
    for provider in world.providers.values():
        provider.hangs = True
    world.later(39)


def down(world: World) -> None:
    """4 and 11: the chosen model's provider fell silent, and no route leads around it."""
    local_chosen(world)
    world.providers["ollama"].fails("refused")
    world.later(100)
    world.refresh()
    world.clock += 2.0


def fallback(world: World) -> None:
    """5: another model answers in place of the chosen one."""
    down(world)


def no_match(world: World) -> None:
    """7: the search finds nothing."""
    loaded(world)


def empty(world: World) -> None:
    """8: there is nothing to answer: no provider, and no local model."""
    local = world.provider("local", is_local=True, kind="local")
    local.fails("disabled", "there is no local model yet: run `openbr models pull`")
    world.open()


def reader(world: World) -> None:
    """9: a key that may chat and may not choose."""
    loaded(world)
    world.caller = Caller(key_id=7, name="laptop", scopes=frozenset({CHAT}))


def quota(world: World) -> None:
    """14: the provider answers 429."""
    loaded(world)
    limited = world.providers["anthropic"]
    limited.failure = UpstreamUnavailableError(
        "anthropic limits our requests", provider="anthropic", reason="quota", retry_after_s=41
    )
    world.later(10)
    world.refresh()


MODELS: Mapping[str, tuple[Callable[[World], None], str]] = {
    "loading": (loading, ""),
    "loaded": (loaded, ""),
    "local-chosen": (local_chosen, ""),
    "unchosen": (unchosen, ""),
    "renewing": (renewing, ""),
    "down": (down, ""),
    "fallback": (fallback, ROUTES),
    "no-match": (no_match, ""),
    "empty": (empty, ""),
    "reader": (reader, ""),
    "quota": (quota, ""),
}
"""Name -> builder and the config that it needs."""


# Conversations.


def _ask(world: World, text: str = "Como agendo um backup às 3 h?") -> None:
    world.post("/ui/chat", {"text": text})


def answered(world: World) -> None:
    loaded(world)
    _ask(world)


def answered_by_another(world: World) -> None:
    fallback(world)
    _ask(world)


def failed(world: World) -> None:
    loaded(world)
    world.providers["anthropic"].script = Script(
        failure=UpstreamRejectedError(
            "the context is 200000 tokens at most", status=400, provider="anthropic"
        )
    )
    _ask(world)


def cut(world: World) -> None:
    loaded(world)
    world.providers["anthropic"].script = Script(
        breaks=StreamInterruptedError("the connection was reset", provider="anthropic")
    )
    _ask(world)


async def begin(world: World, text: str = "Como agendo um backup às 3 h?") -> None:
    """Ask as htmx does, and let the run take its first steps."""
    await world.ask("POST", "/ui/chat", fields={"text": text}, htmx=True)
    for _ in range(10):
        await asyncio.sleep(0)


def waiting(world: World) -> None:
    local_chosen(world)
    world.providers["ollama"].script = Script(opening=asyncio.Event())
    world.run(begin(world))


def loading_worker(world: World) -> None:
    waiting(world)
    world.providers["ollama"].state = "loading"


def writing(world: World) -> None:
    loaded(world)
    gate = Gate()
    gate.release()
    world.providers["anthropic"].script = Script(pieces=["Dá para ", "fazer"], gate=gate)
    world.run(begin(world))


def stopped(world: World) -> None:
    writing(world)
    world.post("/ui/chat/1/stop")


CHATS: Mapping[str, tuple[Callable[[World], None], str]] = {
    "answered": (answered, ""),
    "answered-by-another": (answered_by_another, ROUTES),
    "failed": (failed, ""),
    "cut": (cut, ""),
    "waiting": (waiting, ""),
    "loading-worker": (loading_worker, ""),
    "writing": (writing, ""),
    "stopped": (stopped, ""),
}
