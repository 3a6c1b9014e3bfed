"""Fixtures: each module of the native layer, compiled and pure; a clock ticked by hand."""

import importlib
import os
import sys
from types import ModuleType

import pytest


def load(name: str, kind: str) -> ModuleType:
    if kind == "pure":
        return importlib.import_module(f"openbr._native.{name}_py")
    path = f"openbr._native.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as exc:
        if exc.name != path or os.environ.get("OPENBR_REQUIRE_NATIVE") == "1":
            raise
        pytest.skip(f"{path} is not built")


@pytest.fixture(params=["native", "pure"])
def kind(request):
    return request.param


@pytest.fixture
def load_module():
    """load_module("lru", "native" or "pure"); skips what is not built."""
    return load


@pytest.fixture
def lru(kind):
    return load("lru", kind)


@pytest.fixture
def both():
    """both("lru") -> the compiled module and its twin."""
    return lambda name: (load(name, "native"), load(name, "pure"))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fast_switching():
    """Threads take turns every microsecond, or as near to it as the machine can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
