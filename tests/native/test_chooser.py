"""Which implementation is chosen, and what is said of it: each case in a fresh process."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

REPORT = """
import json, logging
logging.basicConfig(format="%(levelname)s %(message)s")
from openbr import _native, ultra
pool, arena = ultra.create_object_pool(), ultra.create_memory_arena(64)
with pool.borrow(5) as buffer:
    memoryview(buffer)[:] = b"12345"
arena.append(b"abc")
cache = ultra.create_cache(2, 10)
cache.set(1, "a"), cache.set(2, "b"), cache.get(1), cache.set(3, "c")
features = ultra.features()
print(json.dumps({
    "implementation": _native.IMPLEMENTATION,
    "parts": {part.name: [part.kind, part.reason] for part in ultra.info().parts},
    "items": cache.items(),
    "rest": [arena.take().decode(), str(arena.stats()), str(pool.stats())],
    "active": {name: getattr(features, name) for name in features.__slots__},
    "banner": str(ultra.info()),
}))
"""


REST = [
    "abc",
    "ArenaStats(allocated=64, used=3, high_water=3, chunks=1, resets=0)",
    "PoolStats(hits=0, misses=1, in_use=0, idle=1, idle_bytes=64, discarded=0)",
]


@pytest.fixture
def package(tmp_path):
    """A copy of the package, without anything compiled."""
    shutil.copytree(
        ROOT / "openbr",
        tmp_path / "openbr",
        ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "*.pyx"),
    )
    return tmp_path / "openbr" / "_native"


def report(folder=ROOT, **environ):
    flags = [name for name in os.environ if name.startswith("USE_")]
    clean = {name: value for name, value in os.environ.items() if name not in flags}
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        cwd=folder,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["items"] == [[1, "a"], [3, "c"]]
    assert said["rest"] == REST
    return said, done.stderr


def test_native_when_it_is_built(load_module):
    load_module("lru", "native")
    said, stderr = report()
    assert said["parts"]["cache"] == ["native", None]
    assert said["implementation"] == "native"
    assert said["active"]["USE_NATIVE_CACHE"] is True
    assert stderr == ""


@pytest.mark.parametrize(
    ("flags", "part", "reason"),
    [
        ({"USE_LEGACY_MODE": "true"}, "cache", "USE_LEGACY_MODE is on"),
        ({"USE_ULTRA_PERFORMANCE": "false"}, "pool", "USE_ULTRA_PERFORMANCE is off"),
        ({"USE_NATIVE_CACHE": "0"}, "cache", "USE_NATIVE_CACHE is off"),
        ({"USE_NATIVE_ARENA": "off"}, "arena", "USE_NATIVE_ARENA is off"),
        ({"USE_NATIVE_POOL": "no"}, "pool", "USE_NATIVE_POOL is off"),
        ({"USE_UJSON": "false"}, "json", "USE_UJSON is off"),
    ],
    ids=str,
)
def test_flags(flags, part, reason):
    said, stderr = report(**flags)
    assert said["parts"][part] == ["pure", reason]
    for name in ("USE_NATIVE_CACHE", "USE_NATIVE_ARENA", "USE_NATIVE_POOL", "USE_UJSON"):
        assert name not in flags or said["active"][name] is False
    assert said["active"]["USE_LEGACY_MODE"] is ("USE_LEGACY_MODE" in flags)
    if "USE_LEGACY_MODE" in flags or "USE_ULTRA_PERFORMANCE" in flags:
        assert said["implementation"] == "pure"
        assert not any(on for name, on in said["active"].items() if name != "USE_LEGACY_MODE")
    assert reason in said["banner"]
    assert stderr == ""


def test_never_built(package):
    said, stderr = report(package.parents[1])
    assert said["parts"]["cache"] == ["pure", "not built"]
    assert said["implementation"] == "pure"
    assert stderr == ""


def test_broken_is_heard(package):
    for name in ("lru", "arena", "pool", "heap"):
        (package / f"{name}{SUFFIX}").write_bytes(b"not a library")
    said, stderr = report(package.parents[1])
    for part, name in (("cache", "lru"), ("arena", "arena"), ("pool", "pool"), ("heap", "heap")):
        kind, reason = said["parts"][part]
        assert kind == "pure"
        assert reason.startswith(f"{name} does not load: ")
        assert f"WARNING {name} does not load: " in stderr
        assert reason in said["banner"]


def test_of_another_time_is_heard(package):
    (package / "lru.py").write_text("# loads, and lacks what is asked of it")
    said, stderr = report(package.parents[1])
    assert said["parts"]["cache"][0] == "pure"
    assert "WARNING lru does not load: module 'openbr._native.lru' has no attribute" in stderr
