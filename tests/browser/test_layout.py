"""Every page at every width: nothing sticks out, everything can be hit and reached."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser.acts import choose_elsewhere, send
from fake_upstream import OpenAIUpstream
from gateway_process import GatewayProcess
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
OpenPage = Callable[..., Page]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 800}}

STICKS_OUT = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
LENGTHEN = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes) {
    const words = node.data.trim();
    if (words) node.data += " " + "êxtra ".repeat(9).slice(0, Math.ceil(words.length * 0.35));
  }
}"""
SMALL_TARGETS = """() => [...document.querySelectorAll("a, button, input[type=search], label")]
  .filter(one => one.checkVisibility() && !one.closest(".sr, .skip, p, .notice"))
  .map(one => [one, one.getBoundingClientRect()])
  .filter(([one, box]) => box.width > 1 && box.height > 1)
  .map(([one, box]) => {
    const after = getComputedStyle(one, "::after");
    const grows = after.content !== "none" && after.position === "absolute";
    const grown = grows ? -2 * parseFloat(after.top) : 0;
    return [one, box.width + grown, box.height + grown];
  })
  .filter(([one, width, height]) => width < 43.5 || height < 43.5)
  .map(([one, width, height]) => `${one.outerHTML.slice(0, 80)} ${width}x${height}`)"""
UNNAMED = """() => [...document.querySelectorAll("a, button, input:not([type=hidden]), textarea")]
  .filter(one => one.checkVisibility())
  .filter(one => !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length))
  .map(one => one.outerHTML)"""
OUTLINE = """() => {
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")]
    .filter(one => one.checkVisibility()).map(one => +one.tagName[1]);
  const jumps = levels.filter((level, n) => n && level > levels[n - 1] + 1);
  return [levels.filter(level => level === 1).length, jumps.length];
}"""


@pytest.fixture
def pages(gateway: GatewayProcess, upstream: OpenAIUpstream, open_page: OpenPage) -> list[str]:
    """Addresses of every page, one with a conversation that has long words in it."""
    choose_elsewhere(gateway, "alpha/one")
    upstream.deltas = ["palavra " * 40, "x" * 300, "\n    código = 1\n"]
    page = open_page("/ui/chat")
    send(page, "y" * 200)
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()
    return ["/ui/chat", "/ui/chat/1", "/ui/models", "/ui/models?q=nothing", "/ui/nothing"]


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_sticks_out(
    size: dict[str, object], theme: str, pages: list[str], open_page: OpenPage
) -> None:
    page = open_page("/ui/chat", allow="404", color_scheme=theme, **size)
    for path in pages:
        page.goto(path)
        assert not page.evaluate(STICKS_OUT), path
        assert page.evaluate(OUTLINE) == [1, 0], path
        assert page.evaluate(UNNAMED) == [], path
        page.evaluate(LENGTHEN)
        assert not page.evaluate(STICKS_OUT), f"{path}, a language with longer words"


def test_targets_are_big_enough_for_fingers(pages: list[str], open_page: OpenPage) -> None:
    page = open_page("/ui/chat", allow="404", **PHONE)
    for path in pages:
        page.goto(path)
        assert page.evaluate(SMALL_TARGETS) == [], path


def test_what_stands_open_on_a_desk_is_a_button_away_on_a_phone(
    pages: list[str], open_page: OpenPage
) -> None:
    page = open_page("/ui/chat/1", **PHONE)
    listed = page.get_by_role("navigation", name="Conversas")
    expect(listed).to_be_hidden()
    page.get_by_role("button", name="Conversas").tap()
    expect(listed).to_be_visible()
    page.keyboard.press("Escape")
    expect(listed).to_be_hidden()
    page.get_by_role("button", name="Mais").tap()
    page.get_by_role("button", name="English").tap()
    expect(page.get_by_role("button", name="More")).to_be_visible()


def test_the_composer_stays_in_sight(pages: list[str], open_page: OpenPage) -> None:
    for size in (PHONE, DESK):
        page = open_page("/ui/chat/1", **size)
        expect(page.get_by_role("textbox")).to_be_in_viewport(ratio=1)
        expect(page.get_by_role("button", name="Enviar")).to_be_in_viewport(ratio=1)


def test_the_keyboard_reaches_everything_in_order(pages: list[str], open_page: OpenPage) -> None:
    page = open_page("/ui/models", **DESK)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Ir para o conteúdo")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Atualizar")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox")).to_be_focused()
    outline = page.get_by_role("searchbox").evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Tab")
    expect(page.get_by_role("radio", name="one")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Usar o modelo marcado")).to_be_focused()
