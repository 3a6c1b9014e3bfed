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
cache = ultra.create_cache(2, 10)
cache.set(1, "a"), cache.set(2, "b"), cache.get(1), cache.set(3, "c")
features = ultra.features()
print(json.dumps({
    "implementation": _native.IMPLEMENTATION,
    "parts": {part.name: [part.kind, part.reason] for part in ultra.info().parts},
    "cache": features.USE_NATIVE_CACHE,
    "ujson": features.USE_UJSON,
    "legacy": features.USE_LEGACY_MODE,
    "items": cache.items(),
    "banner": str(ultra.info()),
}))
"""


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
    return said, done.stderr


def test_native_when_it_is_built(load_module):
    load_module("lru", "native")
    said, stderr = report()
    assert said["parts"]["cache"] == ["native", None]
    assert said["implementation"] == "native"
    assert said["cache"] is True
    assert stderr == ""


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"USE_LEGACY_MODE": "true"}, "USE_LEGACY_MODE is on"),
        ({"USE_ULTRA_PERFORMANCE": "false"}, "USE_ULTRA_PERFORMANCE is off"),
        ({"USE_NATIVE_CACHE": "0"}, "USE_NATIVE_CACHE is off"),
    ],
)
def test_flags(flags, reason):
    said, stderr = report(**flags)
    assert said["parts"]["cache"] == ["pure", reason]
    assert said["cache"] is False
    assert said["legacy"] is ("USE_LEGACY_MODE" in flags)
    assert reason in said["banner"]
    assert stderr == ""


def test_ujson_flag():
    said, _ = report(USE_UJSON="false")
    assert said["parts"]["json"] == ["pure", "USE_UJSON is off"]
    assert said["ujson"] is False


def test_never_built(package):
    said, stderr = report(package.parents[1])
    assert said["parts"]["cache"] == ["pure", "not built"]
    assert said["implementation"] == "pure"
    assert stderr == ""


def test_broken_is_heard(package):
    (package / f"lru{SUFFIX}").write_bytes(b"not a library")
    said, stderr = report(package.parents[1])
    kind, reason = said["parts"]["cache"]
    assert kind == "pure"
    assert reason.startswith("lru does not load: ")
    assert "WARNING lru does not load: " in stderr
    assert reason in said["banner"]


def test_of_another_time_is_heard(package):
    (package / "lru.py").write_text("# loads, and lacks what is asked of it")
    said, stderr = report(package.parents[1])
    assert said["parts"]["cache"][0] == "pure"
    assert "WARNING lru does not load: module 'openbr._native.lru' has no attribute" in stderr
