"""Lists are fresh for 5 s, then old with their age; nobody waits for a provider."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from listed import Listed, refused

from openbr.catalogue import Catalogue


async def read(catalogue: Catalogue) -> Any:
    """The first provider's state, after the fetches that reading it has started."""
    catalogue.providers()
    await catalogue.settle(5)
    return catalogue.providers()[0]


def test_a_list_is_fetched_once_while_fresh(clock: Any) -> None:
    async def main() -> None:
        provider = Listed("a", "one", "two")
        catalogue = Catalogue([provider], clock=clock)
        assert catalogue.providers()[0].state == "loading"
        state = await read(catalogue)
        assert (state.state, [m.id for m in state.models]) == ("ready", ["a/one", "a/two"])
        clock.tick(4.9)
        assert (await read(catalogue)).age_s == pytest.approx(4.9)
        assert provider.fetches == 1
        clock.tick(0.1)
        stale = catalogue.providers()[0]
        assert stale.refreshing and stale.age_s == pytest.approx(5.0)
        assert [m.id for m in stale.models] == ["a/one", "a/two"]
        assert (await read(catalogue)).age_s == 0
        assert provider.fetches == 2

    asyncio.run(main())


def test_readers_share_one_fetch_and_none_waits(clock: Any) -> None:
    async def main() -> None:
        provider = Listed("a")
        gate = asyncio.Event()

        async def slow() -> tuple[str, ...]:
            await gate.wait()
            return ("one",)

        provider.answer = slow
        catalogue = Catalogue([provider], clock=clock)
        for _ in range(50):
            assert catalogue.providers()[0].models == ()
        await asyncio.sleep(0)
        assert provider.fetches == 1
        gate.set()
        await catalogue.settle(5)
        assert [m.id for m in catalogue.models()] == ["a/one"]

    asyncio.run(main())


def test_a_failed_fetch_keeps_the_list_and_says_why(clock: Any) -> None:
    async def main() -> None:
        provider = Listed("a", "one")
        catalogue = Catalogue([provider], clock=clock)
        await read(catalogue)
        provider.fails(refused("a"))
        clock.tick(6)
        state = await read(catalogue)
        assert (state.state, state.reason, state.detail) == ("stale", "refused", "a refused")
        assert [m.id for m in state.models] == ["a/one"] and state.age_s == pytest.approx(6)
        assert 4 < state.retry_in_s < 6
        provider.lists("one")
        clock.tick(6)
        state = await read(catalogue)
        assert (state.state, state.reason, state.retry_in_s) == ("ready", None, None)

    asyncio.run(main())


def test_retries_slow_down_to_a_minute(clock: Any) -> None:
    async def main() -> None:
        provider = Listed("a")
        provider.fails(refused("a"))
        catalogue = Catalogue([provider], clock=clock)
        waits = []
        for _ in range(7):
            state = await read(catalogue)
            assert state.state == "down"
            waits.append(state.retry_in_s)
            clock.tick(state.retry_in_s)
        for wait, wanted in zip(waits, (5, 10, 20, 40, 60, 60, 60), strict=True):
            assert 0.9 * wanted <= wait <= 1.1 * wanted

    asyncio.run(main())


def test_models_not_seen_for_a_day_leave(clock: Any) -> None:
    async def main() -> None:
        provider = Listed("a", "one")
        catalogue = Catalogue([provider], clock=clock)
        await read(catalogue)
        provider.fails(refused("a"))
        clock.tick(24 * 3600 - 1)
        assert (await read(catalogue)).models != ()
        clock.tick(1)
        state = await read(catalogue)
        assert (state.state, state.models) == ("down", ())

    asyncio.run(main())


def test_an_adapters_defect_does_not_end_the_refreshing(
    clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        provider = Listed("a")
        provider.fails(ZeroDivisionError())
        catalogue = Catalogue([provider], clock=clock)
        assert (await read(catalogue)).reason == "protocol"
        provider.lists("one")
        clock.tick(6)
        assert (await read(catalogue)).state == "ready"

    asyncio.run(main())
    assert "could not be fetched" in caplog.text


def test_one_hanging_provider_does_not_touch_the_others(clock: Any) -> None:
    async def main() -> None:
        hanging, alive = Listed("a"), Listed("b", "one")

        async def never() -> tuple[str, ...]:
            await asyncio.Event().wait()
            raise AssertionError

        hanging.answer = never
        catalogue = Catalogue([hanging, alive], clock=clock)
        catalogue.providers()
        while not catalogue.models():
            await asyncio.sleep(0)
        assert [m.id for m in catalogue.models()] == ["b/one"]
        assert catalogue.find("a/anything") is not None
        await catalogue.close()

    asyncio.run(main())


def test_find_knows_full_and_bare_names(clock: Any) -> None:
    async def main() -> None:
        catalogue = Catalogue([Listed("a", "one", "two"), Listed("b", "one")], clock=clock)
        await read(catalogue)
        found = catalogue.find("a/one")
        assert found is not None and (found.provider, found.upstream_model) == ("a", "one")
        assert catalogue.find_bare("one") == ["a/one", "b/one"]
        assert catalogue.find_bare("two") == ["a/two"]
        assert catalogue.find("c/one") is None and catalogue.find("one") is None
        assert catalogue.find("a/") is None and catalogue.find_bare("x") == []

    asyncio.run(main())


def test_version_moves_only_when_something_shown_changes(clock: Any) -> None:
    async def main() -> None:
        provider = Listed("a", "one")
        catalogue = Catalogue([provider], clock=clock)
        await read(catalogue)
        version = catalogue.version
        clock.tick(6)
        await read(catalogue)
        assert catalogue.version == version
        provider.lists("one", "two")
        clock.tick(6)
        await read(catalogue)
        assert catalogue.version == version + 1

    asyncio.run(main())
