"""What a gateway loads to answer programs, and what it leaves until somebody needs it.

The lists are what may be loaded; a new line in one of them costs memory in every gateway, so it
needs a reason. The pages, the local models' tools, the disk tier and whatever only a command or a
mistake needs are not among them.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import OpenAIUpstream
from gateway_inside import Inside
from gateway_process import GatewayProcess

TOML = """
[local]
enabled = false
[[providers]]
name = "fake"
base_url = "{url}"
"""

PACKAGES = {
    "blake3": "keys of the cache and of callers",
    "click": "uvicorn imports it",
    "httptools": "requests, and upstream answers",
    "msgspec": "bodies and records",
    "openbr": "",
    "typing_extensions": "msgspec imports it where it is installed",
    "uvicorn": "the server",
    "uvloop": "the loop",
}
"""Of other people, and why."""

OPENBR = """
api api.chat api.http api.models app auth cache cache.control cache.flight cache.kept cache.key
cache.replay cache.response_cache catalogue cli cli.config cli.keys cli.logs cli.models cli.options
cli.parser cli.run cli.table config config.reader config.sections config.values errors gateway
library library.files prices providers providers.base providers.framing providers.local
providers.local_process providers.openai providers.openai_wire records route secret server
server.banner server.connection server.cycle server.lifecycle server.memory server.sockets
server.state store store.conversations store.database store.keys store.migrations store.selections
store.sessions store.usage stream tls ultra upstream upstream.connection upstream.dialer
upstream.pool upstream.proxy upstream.request upstream.response upstream.target usage
"""
"""Our own modules, but for _native: which of the twins are loaded is the machine's matter."""

STDLIB = {
    "argparse": "the command line",
    "asyncio": "",
    "concurrent.futures.thread": "the store's writer",
    "email": "uvicorn imports email.utils, for dates",
    "logging.config": "uvicorn imports it",
    "logging.handlers": "logging.config imports it",
    "multiprocessing": "uvicorn imports it",
    "multiprocessing.connection": "uvicorn imports it",
    "sqlite3": "the store",
    "ssl": "asyncio imports it",
    "subprocess": "asyncio imports it",
    "tempfile": "multiprocessing imports it",
    "tomllib": "the configuration",
}
"""What costs something and is loaded all the same, and why."""

HEAVY = """
cProfile cmd code concurrent.futures.process csv ctypes curses difflib distutils doctest
email.message email.parser fractions ftplib glob html http.client http.cookies http.server imaplib
importlib.metadata importlib.resources lib2to3 mailbox mimetypes multiprocessing.managers
multiprocessing.pool optparse pdb pkg_resources profile pstats pydoc smtplib statistics tarfile
timeit tkinter unittest urllib.request venv webbrowser xml xmlrpc zipfile zoneinfo
"""
"""Further modules of the standard library that cost something. The many small ones come and go
with its versions."""

PAGES = {"jinja2", "starlette"}


@contextmanager
def running(folder: Path, more: str = "") -> Iterator[tuple[GatewayProcess, Inside]]:
    inside = Inside(folder)
    with OpenAIUpstream() as upstream:
        toml = TOML.format(url=upstream.base_url) + more
        with GatewayProcess(folder, toml, **inside.environ) as gateway:
            yield gateway, inside
    inside.close()


def ask(gateway: GatewayProcess, **fields: Any) -> str:
    """One chat. Returns where its answer came from."""
    messages = [{"role": "user", "content": "Olá"}]
    body = {"model": "fake/alpha", "messages": messages, "temperature": 0, **fields}
    request = urllib.request.Request(
        gateway.base_url + "/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert b"Hel" in answer.read()
        return str(answer.headers["x-openbr-cache"])


def packages(modules: list[str]) -> set[str]:
    """Those of other people: not of the standard library, and no module's private matter."""
    tops = {name.partition(".")[0] for name in modules}
    tops -= {"__main__", "__mp_main__", "sitecustomize", "usercustomize", "cython_runtime"}
    # What an interpreter's own .pth files load before anything of ours.
    tops -= {name for name in tops if name.startswith(("_cython_", "_distutils_hack"))}
    tops -= {name for name in tops if name.startswith("__editable__")}
    return tops - sys.stdlib_module_names


def test_a_gateway_for_programs_loads_no_more_than_it_needs(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, inside):
        told = [
            ask(gateway),
            ask(gateway, stream=True),
            ask(gateway, temperature=1),
            ask(gateway, temperature=1, stream=True, stream_options={"include_usage": True}),
        ]
        assert told == ["miss", "hit", "bypass", "bypass"]
        modules = inside.ask(gateway).modules
    found = packages(modules)
    assert {"openbr", "msgspec", "uvicorn"} <= found  # the listing works
    assert found <= set(PACKAGES)
    ours = {name.removeprefix("openbr.") for name in modules if name.startswith("openbr.")}
    ours = {name for name in ours if name.partition(".")[0] != "_native"}
    assert {"gateway", "cache.flight"} <= ours <= set(OPENBR.split())
    allowed = set(STDLIB)
    if "openbr._native.heap_py" in modules:
        allowed.add("ctypes")  # the pure twin asks the C library by it
    assert {*STDLIB, *HEAVY.split()}.intersection(modules) <= allowed


def test_the_pages_are_loaded_when_somebody_looks(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, inside):
        assert not PAGES & packages(inside.ask(gateway).modules)
        with urllib.request.urlopen(gateway.url + "/ui/models", timeout=20) as page:
            assert page.status == 200
        modules = inside.ask(gateway).modules
    assert packages(modules) >= PAGES
    assert "openbr.web" in modules


@pytest.mark.parametrize("is_on", [False, True])
def test_the_disk_tier_is_loaded_where_it_is_on(tmp_path: Path, is_on: bool) -> None:
    more = '[cache]\ndisk_bytes = "1 MiB"\n' if is_on else ""
    with running(tmp_path, more) as (gateway, inside):
        assert ask(gateway) == "miss"
        modules = inside.ask(gateway).modules
    assert ("openbr.cache.disk" in modules) == is_on
    assert ("openbr.store.answers" in modules) == is_on
