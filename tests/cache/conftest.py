"""Fixtures: both event loops, nothing left behind on them; a cache with a disk, begun anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock

from openbr.cache import ResponseCache
from openbr.cache.disk import DiskTier
from openbr.config import CacheConfig
from tests.cache.fakes import Desk

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DEADLINE_S = 60


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine to its end on one loop and on the other; no task may outlive it."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run_on(main: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE_S):
                value = await main
                for _ in range(5):  # what was cancelled just now needs its turn to end
                    await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return value

        noise: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=factory) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: noise.append(context))
            value = runner.run(bounded())
        assert not noise, noise
        return value

    return run_on


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "answers.db"


@pytest.fixture
def wall() -> Clock:
    return Clock()


@pytest.fixture
def make(path: Path, wall: Clock) -> Iterator[Callable[..., Desk]]:
    """A new process, as far as the cache can tell: nothing in memory, the file as it is."""
    made: list[ResponseCache] = []

    def start(clock: Clock | None = None, **tier: Any) -> Desk:
        for cache in made:
            cache.close()
        disk = DiskTier(
            path, **{"max_bytes": 1024 * 1024, "ttl_s": 3600.0, "wall_clock": wall, **tier}
        )
        made.append(ResponseCache(CacheConfig(ttl_s=3600.0), clock=clock, disk=disk))
        return Desk(made[-1])

    yield start
    for cache in made:
        cache.close()
