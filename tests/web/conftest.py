"""Worlds for the tests of the pages, and golden files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from web.states import CHATS, MODELS
from web.world import World, copy_static

from openbr.web.render import Pages
from openbr.web.static import StaticFolder

GOLDEN = Path(__file__).parent / "golden"
WRITE = os.environ.get("OPENBR_GOLDEN") == "write"


@pytest.fixture(autouse=True)
def same_every_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day on the pages are those of this machine: here it stands at Greenwich, and
    waits have no jitter."""
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Templates are compiled once for all worlds."""
    return Pages(StaticFolder(copy_static(tmp_path_factory.mktemp("pages"))))


@pytest.fixture
def make_world(tmp_path: Path, pages: Pages) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(state: str = "", toml: str = "", *, own_pages: bool = False) -> World:
        """An empty world, or one in a named state."""
        build, config = {**MODELS, **CHATS}.get(state, (None, toml))
        folder = tmp_path / f"world{len(made)}"
        folder.mkdir()
        world = World(folder, config, None if own_pages else pages)
        made.append(world)
        if build is not None:
            build(world)
        return world

    yield make
    for world in made:
        world.close()


@pytest.fixture
def golden() -> Callable[[str, bytes, World], None]:
    """Compare with golden/NAME.html; OPENBR_GOLDEN=write puts what is there now."""

    def check(name: str, body: bytes, world: World) -> None:
        text = body.decode().replace(str(world.folder), "FOLDER")
        text = re.sub(r"\?v=[0-9a-f]{16}", "?v=V", text)
        text = re.sub(r'hx-ptag="[0-9a-f]+"', 'hx-ptag="T"', text)
        text = re.sub(r"\n\s*\n+", "\n", text).strip() + "\n"
        path = GOLDEN / f"{name}.html"
        if WRITE:
            GOLDEN.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no {path.name}: run the tests once with OPENBR_GOLDEN=write"
        assert text == path.read_text(encoding="utf-8")

    return check
