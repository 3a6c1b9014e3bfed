"""A real Chromium against a real gateway over a fake upstream.

In: OPENBR_BROWSER (a path that wins), OPENBR_REQUIRE_BROWSER=1 (no browser is then a failure, not
a skip). Out: `gateway`, `open_page`. The rule that lives only here: a console error, a policy
violation or an exception on any page fails the test that opened it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import OpenAIUpstream
from gateway_process import GatewayProcess
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)
DEADLINE_MS = 10_000
TOML = """
[local]
enabled = false
[[providers]]
name = "alpha"
base_url = "{url}"
"""

OpenPage = Callable[..., Page]


def _missing(why: str) -> None:
    if os.environ.get("OPENBR_REQUIRE_BROWSER") == "1":
        pytest.fail(why)
    pytest.skip(why)


def _chromium() -> str:
    found = os.environ.get("OPENBR_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        _missing("no Chromium: set OPENBR_BROWSER, or run tools/browser.py --install")
    return found or ""


# Not for the whole session: while Playwright's loop runs, no other test may run its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    fetched = subprocess.run(
        [sys.executable, ROOT / "tools" / "assets.py"], capture_output=True, text=True
    )
    if fetched.returncode != 0:
        _missing(fetched.stderr.strip())
    path = _chromium()
    expect.set_options(timeout=DEADLINE_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def upstream() -> Iterator[OpenAIUpstream]:
    with OpenAIUpstream(models=["one", "two", "three"]) as fake:
        yield fake


@pytest.fixture
def gateway(upstream: OpenAIUpstream, tmp_path: Path) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path, TOML.format(url=upstream.base_url)) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, gateway: GatewayProcess) -> Iterator[OpenPage]:
    complaints: list[str] = []
    contexts = []

    def open_one(path: str | None, *, allow: str = "", **options: Any) -> Page:
        """A page in a context of its own. `allow`: a pattern of console errors that are meant."""
        context = browser.new_context(
            base_url=gateway.url, **{"locale": "pt-BR", "reduced_motion": "reduce", **options}
        )
        context.set_default_timeout(DEADLINE_MS)
        contexts.append(context)
        page = context.new_page()

        def listen(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not (
                allow and re.search(allow, message.text)
            ):
                complaints.append(f"{message.type}: {message.text} at {message.location}")

        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
        if path is not None:
            page.goto(path)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []
