"""The parts of an app, as a whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from openbr.app import create_app
from openbr.config import Config


def test_the_memory_of_an_app_knows_every_cache_and_trims_its_own_only(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    one = create_app(make_config(OPENBR_STATE=str(tmp_path / "one")))
    two = create_app(make_config(OPENBR_STATE=str(tmp_path / "two")))
    with closing(one.store), closing(two.store):
        names = {"callers", "failures of callers", "uses of keys", "lists of models", "selections"}
        assert names <= one.memory.stats().keys() == two.memory.stats().keys()
        rooms = (one.auth, one.catalogue, one.router)
        caches = {name: cache for room in rooms for name, cache in room.caches().items()}
        caches["selections"].set("dead", 1, ttl_s=1e-9)
        caches["callers"].set("alive", 1, ttl_s=3600)
        assert two.memory.trim().entries == 0
        while one.memory.trim().entries == 0:  # the coarse clock moves on in milliseconds
            pass
        assert [name for name, cache in caches.items() if len(cache)] == ["callers"]
