"""A name -> deployments; chosen, in use, and why: three facts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from listed import Listed, refused

from openbr.catalogue import Catalogue
from openbr.config import RouteConfig
from openbr.errors import InvalidRequestError, ServiceUnavailableError, UnknownModelError
from openbr.route import Router
from openbr.store import Store


class Scene:
    """Providers, a store and a router, with their lists read."""

    def __init__(
        self, store: Store, clock: Any, *providers: Listed, routes: tuple[RouteConfig, ...] = ()
    ) -> None:
        self.clock = clock
        self.providers = {p.name: p for p in providers}
        self.catalogue = Catalogue(providers, clock=clock)
        self.router = Router(self.catalogue, store, routes, local_model="small")

    async def settle(self) -> None:
        self.clock.tick(120)
        self.catalogue.providers()
        await self.catalogue.settle(5)

    async def down(self, name: str) -> None:
        self.providers[name].fails(refused(name))
        await self.settle()

    def names(self, model: str) -> list[str]:
        return [d.model for d in self.router.candidates(model).deployments]


@pytest.fixture
def play(store: Store, clock: Any) -> Callable[..., None]:
    """Runs a coroutine function of (scene) with providers and routes."""

    def run(
        act: Callable[[Scene], Any], *providers: Listed, routes: tuple[RouteConfig, ...] = ()
    ) -> None:
        async def main() -> None:
            scene = Scene(store, clock, *providers, routes=routes)
            await scene.settle()
            await act(scene)
            await scene.catalogue.close()

        asyncio.run(main())

    return run


def cloud() -> Listed:
    return Listed("cloud", "big", "small")


def local() -> Listed:
    return Listed("local", "small", is_local=True)


FALLBACK = RouteConfig(model="default", deployments=("cloud/big", "local/small"))


def test_explicit_names_are_strict(play: Any) -> None:
    async def act(scene: Scene) -> None:
        assert scene.names("cloud/big") == ["cloud/big"]
        assert scene.names("big") == ["cloud/big"]
        assert scene.names("cloud/not-listed-yet") == ["cloud/not-listed-yet"]
        with pytest.raises(InvalidRequestError) as ambiguous:
            scene.names("small")
        assert ambiguous.value.code == "ambiguous_model"
        assert "cloud/small" in ambiguous.value.message and ambiguous.value.param == "model"
        with pytest.raises(UnknownModelError, match="did you mean cloud/big"):
            scene.names("clod/big")
        for bad in ("x" * 300, "a\nb", "a/b\x00"):
            with pytest.raises(InvalidRequestError):
                scene.names(bad)

    play(act, cloud(), local())


def test_nobody_chose_and_the_local_model_answers(play: Any) -> None:
    async def act(scene: Scene) -> None:
        use = scene.router.in_use()
        assert use.chosen is None and use.reason == "not_chosen"
        assert use.in_use is not None and use.in_use.model == "local/small"
        assert scene.names("default") == scene.names("openbr") == ["local/small"]

    play(act, cloud(), local())


def test_nobody_to_ask(play: Any) -> None:
    async def act(scene: Scene) -> None:
        assert scene.router.in_use().in_use is None
        assert scene.router.in_use().reason == "none_available"
        with pytest.raises(ServiceUnavailableError, match="models pull"):
            scene.names("default")

    play(act, cloud())


def test_choosing_is_durable_and_checked(play: Any, store: Store) -> None:
    async def act(scene: Scene) -> None:
        saved = await scene.router.choose("big", by="ana")
        assert (saved.model, saved.chosen_by) == ("cloud/big", "ana")
        use = scene.router.in_use()
        assert use.chosen == saved and use.in_use is not None and use.reason is None
        assert use.in_use.model == "cloud/big"
        again = Router(scene.catalogue, store)
        assert again.chosen() == saved
        for wrong in ("cloud/none", "nothing"):
            with pytest.raises(UnknownModelError):
                await scene.router.choose(wrong, by="ana")
        with pytest.raises(InvalidRequestError):
            await scene.router.choose("small", by="ana")
        assert again.chosen() == saved

    play(act, cloud(), local())


def test_a_choice_outlives_a_store_that_fails(play: Any, store: Store) -> None:
    async def act(scene: Scene) -> None:
        await scene.router.choose("cloud/a", by="owner")
        store.close()
        scene.router.caches()["selections"].clear()  # as when their time has passed
        assert scene.names("default") == ["cloud/a"]
        # What was never read is not known, and is not guessed.
        with pytest.raises(ServiceUnavailableError):
            scene.router.chosen("other")

    play(act, Listed("cloud", "a"))


def test_a_choice_made_elsewhere_arrives(play: Any, store: Store) -> None:
    async def act(scene: Scene) -> None:
        assert scene.router.chosen() is None
        other = Router(scene.catalogue, store)
        await other.choose("cloud/big", by="cli")
        deadline = asyncio.get_running_loop().time() + 5
        while scene.router.chosen() is None:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)

    play(act, cloud(), local())


def test_a_chosen_model_that_is_down_is_stepped_around(play: Any) -> None:
    async def act(scene: Scene) -> None:
        await scene.router.choose("cloud/big", by="ana")
        assert scene.names("default") == ["cloud/big", "local/small"]
        await scene.down("cloud")
        use = scene.router.in_use()
        assert use.chosen is not None and use.chosen.model == "cloud/big"
        assert use.in_use is not None and use.in_use.model == "local/small"
        assert (use.reason, use.detail) == ("refused", "cloud refused")
        plan = scene.router.candidates("default")
        assert [d.model for d in plan.deployments] == ["local/small", "cloud/big"]
        assert plan.fallback == "refused"

    play(act, cloud(), local(), routes=(FALLBACK,))


def test_without_fallback_a_down_model_is_said_to_be_down(play: Any) -> None:
    async def act(scene: Scene) -> None:
        await scene.router.choose("cloud/big", by="ana")
        await scene.down("cloud")
        use = scene.router.in_use()
        assert (use.in_use, use.reason) == (None, "refused")
        assert scene.names("default") == ["cloud/big"]

    play(act, cloud(), local())


@pytest.mark.parametrize("consent", [True, False])
def test_from_this_machine_to_a_cloud_only_with_consent(play: Any, consent: bool) -> None:
    async def act(scene: Scene) -> None:
        await scene.router.choose("local/small", by="ana")
        await scene.down("local")
        use = scene.router.in_use()
        assert (use.in_use is not None) is consent
        assert ("cloud/big" in scene.names("default")) is consent

    route = RouteConfig(model="default", deployments=("cloud/big",), consent=consent)
    play(act, cloud(), local(), routes=(route,))
