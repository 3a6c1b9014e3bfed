"""What people do, that several tests need."""

from __future__ import annotations

import urllib.parse
import urllib.request

from gateway_process import GatewayProcess
from playwright.sync_api import Page


def choose_elsewhere(gateway: GatewayProcess, model: str) -> None:
    """Choose a model as another browser would, once the lists have come."""
    lists = urllib.request.Request(
        gateway.url + "/ui/models?wait=1", headers={"HX-Request": "true"}
    )
    urllib.request.urlopen(lists).close()
    body = urllib.parse.urlencode({"model": model}).encode()
    with urllib.request.urlopen(gateway.url + "/ui/models", body) as answer:
        assert answer.status == 200


def send(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name="Sua mensagem")
    box.fill(text)
    box.press("Enter")
