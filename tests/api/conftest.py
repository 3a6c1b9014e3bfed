"""The whole application in the loop of the test, over an upstream on a loopback socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_upstream import OpenAIUpstream

from openbr.app import App, create_app
from openbr.config import Config

CONFIG = """
[local]
enabled = false
[[providers]]
name = "fake"
base_url = "{url}"
api_key = "sk-canary-0123456789"
"""

Act = Callable[[App, OpenAIUpstream], Awaitable[None]]


@pytest.fixture
def serve(make_config: Callable[..., Config]) -> Callable[..., None]:
    """Runs a coroutine function of (app, upstream) with the catalogue read."""

    def run(act: Act, *, config: str = "", **fake: Any) -> None:
        async def main() -> None:
            async with OpenAIUpstream(**fake) as upstream:
                app = create_app(make_config(CONFIG.format(url=upstream.base_url) + config))
                await app.open()
                await app.catalogue.settle(5)
                try:
                    await act(app, upstream)
                finally:
                    await app.close()

        asyncio.run(main())

    return run
