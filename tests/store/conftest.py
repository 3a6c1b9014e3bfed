"""Fixtures of the store's tests: an open store, and another process that gets in the way."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openbr.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "openbr.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
connection.close()
"""


@pytest.fixture
def holding() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Another process runs statements on a database and keeps its connection meanwhile."""

    @contextlib.contextmanager
    def hold(path: Path, *statements: str) -> Iterator[None]:
        command = [sys.executable, "-c", HOLD, str(path), *statements]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin and process.stdout
            try:
                assert process.stdout.readline() == "held\n"
                yield
            finally:
                process.stdin.close()
                assert process.wait(10) == 0

    return hold


AS_ORDINARY_USER = """
import os, pathlib, sys
from openbr.errors import ConfigError
from openbr.store import Store
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Store.open(pathlib.Path(sys.argv[1])).close()
except ConfigError as exc:
    print(exc)
"""


@pytest.fixture
def opened_by_ordinary_user() -> Callable[[Path], str]:
    """The refusal that somebody gets who is not root (nothing is read-only to root)."""

    def call(path: Path) -> str:
        command = [sys.executable, "-c", AS_ORDINARY_USER, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return call
