"""/ui/models in a browser, with scripts and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser.acts import choose_elsewhere
from fake_upstream import OpenAIUpstream
from gateway_process import GatewayProcess
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
OpenPage = Callable[..., Page]


def test_a_choice_survives_a_reload_and_a_restart(
    open_page: OpenPage, gateway: GatewayProcess
) -> None:
    page = open_page("/ui/models")
    page.get_by_role("radio", name="two").check()
    expect(page.locator("#model-pill")).to_contain_text("Nenhum modelo")
    page.evaluate("window.still = true")
    page.get_by_role("button", name="Usar o modelo marcado").click()
    expect(page.locator("#model-pill")).to_contain_text("two")
    expect(page.locator("#status")).to_have_text("two foi escolhido.")
    assert page.evaluate("window.still"), "htmx swapped parts, the page stayed"
    page.reload()
    expect(page.get_by_role("radio", name="two")).to_be_checked()
    gateway.stop()
    gateway.start()
    page.goto("/ui/models")
    expect(page.get_by_role("radio", name="two")).to_be_checked()


def test_a_choice_without_scripts(open_page: OpenPage) -> None:
    page = open_page("/ui/models", java_script_enabled=False)
    page.get_by_role("radio", name="three").check()
    page.get_by_role("button", name="Usar o modelo marcado").click()
    expect(page.get_by_role("radio", name="three")).to_be_checked()
    expect(page.locator("#model-pill")).to_contain_text("three")
    page.get_by_role("searchbox").fill("one")
    page.get_by_role("button", name="Buscar").click()
    expect(page).to_have_url(f"{page.url.partition('?')[0]}?q=one")
    expect(page.get_by_role("radio")).to_have_count(1)
    page.get_by_role("button", name="Atualizar").click()
    expect(page.get_by_role("radio")).to_have_count(1)


def test_picking_a_radio_alone_changes_nothing(
    open_page: OpenPage, upstream: OpenAIUpstream, gateway: GatewayProcess
) -> None:
    choose_elsewhere(gateway, "alpha/one")
    page = open_page("/ui/models")
    page.get_by_role("radio", name="one").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="two")).to_be_checked()
    page.reload()
    expect(page.get_by_role("radio", name="one")).to_be_checked()


def test_a_choice_made_elsewhere_arrives_and_leaves_the_mark_alone(
    open_page: OpenPage, gateway: GatewayProcess
) -> None:
    page = open_page("/ui/models")
    page.get_by_role("radio", name="three").check()
    choose_elsewhere(gateway, "alpha/one")
    expect(page.locator("#model-route")).to_contain_text("one")
    expect(page.locator(".row.chosen")).to_contain_text("one")
    expect(page.get_by_role("radio", name="three")).to_be_checked()


def test_polls_that_bring_nothing_are_304(open_page: OpenPage, gateway: GatewayProcess) -> None:
    choose_elsewhere(gateway, "alpha/one")
    page = open_page("/ui/models")
    with page.expect_response(lambda r: r.url.endswith("/ui/models?q=")) as first:
        pass
    assert first.value.status == 304


def test_search_as_you_type(open_page: OpenPage) -> None:
    page = open_page("/ui/models")
    search = page.get_by_role("searchbox")
    search.press_sequentially("thr", delay=20)
    expect(page.get_by_role("radio")).to_have_count(1)
    assert page.url.endswith("/ui/models?q=thr")
    expect(search).to_be_focused()
    search.fill("nothing like it")
    expect(page.locator("#model-none")).to_contain_text("nothing like it")
    page.get_by_role("link", name="Limpar busca").click()
    expect(page.get_by_role("radio")).to_have_count(3)


def test_refresh_brings_new_models(open_page: OpenPage, upstream: OpenAIUpstream) -> None:
    page = open_page("/ui/models")
    upstream.models.append("four")
    page.get_by_role("button", name="Atualizar").click()
    expect(page.get_by_role("radio", name="four")).to_be_visible()


def test_a_provider_that_falls_silent_is_told(
    open_page: OpenPage, upstream: OpenAIUpstream, gateway: GatewayProcess
) -> None:
    from fake_upstream import error

    choose_elsewhere(gateway, "alpha/one")
    page = open_page("/ui/models")
    upstream.list_answer = error(401, "who are you?")
    page.get_by_role("button", name="Atualizar").click()
    route = page.locator("#model-route")
    expect(route).to_contain_text("one não está respondendo")
    expect(route).to_contain_text("alpha recusou a nossa chave.")
    expect(page.get_by_role("radio", name="one")).to_be_checked()
    expect(page.locator("#model-pill")).to_contain_text("chave recusada")
    upstream.list_answer = None
    page.get_by_role("button", name="Tentar agora").click()
    expect(route).to_contain_text("Escolhido e em uso")


def test_a_refused_choice_says_why(open_page: OpenPage, upstream: OpenAIUpstream) -> None:
    page = open_page("/ui/models", allow="404")
    page.get_by_role("radio", name="two").check()
    page.get_by_role("radio", name="two").evaluate("radio => radio.value = 'alpha/gone'")
    page.route("**/ui/models?q=", lambda route: route.abort())  # no poll heals the value
    page.get_by_role("button", name="Usar o modelo marcado").click()
    expect(page.get_by_role("alert").first).to_contain_text("A troca não foi feita.")
    expect(page.get_by_role("radio", checked=True)).to_have_count(0)
    expect(page.locator("#model-pill")).to_contain_text("Nenhum modelo")


def test_a_gateway_that_is_gone_is_told_once_and_taken_back(
    open_page: OpenPage, gateway: GatewayProcess
) -> None:
    page = open_page("/ui/models", allow="ERR_CONNECTION_REFUSED|htmx:error")
    lost = page.locator("#lost")
    expect(lost).to_be_hidden()
    gateway.stop()
    expect(lost).to_be_visible()
    gateway.start()
    expect(lost).to_be_hidden()


def test_the_language_switch(open_page: OpenPage) -> None:
    page = open_page("/ui/models?q=t", locale="en-US")
    expect(page.get_by_role("heading", level=1)).to_have_text("Models")
    page.get_by_role("button", name="Português").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Modelos")
    assert page.url.endswith("/ui/models?q=t")
    page.goto("/ui/chat")
    expect(page.get_by_role("heading", level=1)).to_have_text("Nova conversa")
