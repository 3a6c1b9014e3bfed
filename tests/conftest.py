"""Fixtures that several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openbr.config import Config

pytest_plugins = ["conftest_model"]


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A Config from TOML text, with its state in the test's own folder."""

    def make(text: str = "", **environ: str) -> Config:
        path = tmp_path / "config.toml"
        path.write_text(text)
        env = {"HOME": str(tmp_path), "OPENBR_STATE": str(tmp_path / "state"), **environ}
        return Config.load(path, env)

    return make


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config("[local]\nenabled = false\n")


@pytest.fixture
def store(config: Config) -> Iterator[Any]:
    from openbr.store import Store

    opened = Store.open(config.store_path)
    yield opened
    opened.close()
