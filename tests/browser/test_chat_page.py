"""/ui/chat in a browser, with scripts and without."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from browser.acts import choose_elsewhere, send
from fake_upstream import Gate, OpenAIUpstream
from gateway_process import GatewayProcess
from playwright.sync_api import Page, Route, expect

pytestmark = pytest.mark.browser
OpenPage = Callable[..., Page]


@pytest.fixture
def chat(gateway: GatewayProcess, upstream: OpenAIUpstream) -> OpenAIUpstream:
    """A chosen model whose answer waits for `upstream.gate`, word by word."""
    choose_elsewhere(gateway, "alpha/one")
    upstream.deltas = ["Brasília ", "é a ", "capital.\n", "<b>Fim</b>"]
    upstream.gate = Gate()
    return upstream


def test_an_answer_arrives_word_by_word(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    page = open_page("/ui/chat")
    send(page, "Qual é a capital?")
    answer = page.locator("article.assistant")
    expect(page.locator("article.user")).to_contain_text("Qual é a capital?")
    expect(answer).to_contain_text("Esperando one")
    expect(answer).to_have_attribute("aria-busy", "true")
    for words in ("Brasília", "Brasília é a", "Brasília é a capital.\n"):
        chat.gate.release()
        expect(answer.locator(".text > span").first).to_have_text(words)
        expect(page.get_by_role("button", name="Parar")).to_be_visible()
    chat.gate.open()
    expect(answer.locator(".text")).to_have_text("Brasília é a capital.\n<b>Fim</b>")
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()
    expect(answer.locator(".meta")).to_contain_text("5 entram, 2 saem")
    expect(answer).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("#status")).to_have_text("Resposta pronta, 2 tokens")
    expect(page.locator(".caret, .waiting")).to_have_count(0)
    assert page.url.endswith("/ui/chat/1")


def test_a_second_message_keeps_the_page(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    chat.gate.open()
    page = open_page("/ui/chat")
    send(page, "um")
    expect(page.locator("article.assistant .text")).to_contain_text("Fim")
    page.evaluate("window.still = true")
    # Until the answer has ended, Stop is in its place and Enter does nothing.
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()
    send(page, "dois")
    expect(page.locator("article.assistant .text")).to_have_count(2)
    expect(page.locator("article.assistant .text").nth(1)).to_contain_text("Fim")
    expect(page.get_by_role("textbox")).to_have_value("")
    expect(page.get_by_role("textbox")).to_be_focused()
    assert page.evaluate("window.still")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Nova conversa")
    page.go_forward()
    expect(page.locator("article.assistant .text")).to_have_count(2)


def test_without_scripts(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    chat.gate.open()
    page = open_page("/ui/chat", java_script_enabled=False)
    page.get_by_role("textbox", name="Sua mensagem").fill("Qual é a capital?")
    page.get_by_role("button", name="Enviar").click()
    expect(page.locator("article.assistant .text")).to_have_text(
        "Brasília é a capital.\n<b>Fim</b>"
    )
    page.get_by_role("textbox", name="Sua mensagem").fill("E agora?")
    page.get_by_role("button", name="Enviar").click()
    expect(page.locator("article")).to_have_count(4)
    page.get_by_role("link", name="Nova conversa").click()
    page.get_by_role("link", name="Qual é a capital?").click()
    expect(page.locator("article")).to_have_count(4)


def test_stop(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    page = open_page("/ui/chat")
    send(page, "Conte tudo")
    chat.gate.release()
    expect(page.locator("article.assistant .text")).to_contain_text("Brasília")
    page.get_by_role("button", name="Parar").click()
    expect(page.locator("article.assistant .meta")).to_contain_text("parada por você")
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()
    chat.wait(lambda fake: fake.connections[-1].closed_by == "client")
    page.reload()
    expect(page.locator("article.assistant .text")).to_have_text("Brasília ")


def test_a_reload_takes_up_a_running_answer(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    page = open_page("/ui/chat")
    send(page, "Conte")
    chat.gate.release(2)
    text = page.locator("article.assistant .text")
    expect(text).to_have_text("Brasília é a ")
    page.reload()
    expect(text).to_have_text("Brasília é a ")
    chat.gate.open()
    expect(text).to_have_text("Brasília é a capital.\n<b>Fim</b>")
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()


def test_a_stream_is_joined_however_late_its_script_comes(
    open_page: OpenPage, chat: OpenAIUpstream
) -> None:
    page = open_page("/ui/chat")
    send(page, "Conte")
    chat.gate.release()
    expect(page.locator("article.assistant .text")).to_contain_text("Brasília")
    held: list[Route] = []
    other = open_page(None)
    other.route("**/hx-sse.min.js*", lambda route: held.append(route))
    other.goto("/ui/chat/1", wait_until="commit")
    other.wait_for_function("() => window.htmx")
    held[0].continue_()
    chat.gate.open()
    expect(other.locator("article.assistant .text")).to_contain_text("Fim")


def test_a_second_tab_follows_the_same_answer(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    page = open_page("/ui/chat")
    send(page, "Conte")
    chat.gate.release()
    expect(page.locator("article.assistant .text")).to_contain_text("Brasília")
    other = open_page("/ui/chat/1", allow="409")
    send(other, "Outra")
    expect(other.get_by_role("button", name="Parar")).to_be_visible()
    chat.gate.open()
    for one in (page, other):
        expect(one.locator("article.assistant .text")).to_contain_text("Fim")


def test_keys_of_the_composer(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    chat.gate.open()
    page = open_page("/ui/chat")
    box = page.get_by_role("textbox", name="Sua mensagem")
    box.press("Enter")
    box.press_sequentially("a")
    box.press("Shift+Enter")
    box.press_sequentially("b")
    expect(box).to_have_value("a\nb")
    # A composing input method ends with Enter; that Enter is its own.
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, cancelable: true})"
    assert box.evaluate(f"box => box.dispatchEvent({composing})")
    assert page.url.endswith("/ui/chat")
    page.reload()
    expect(box).to_have_value("a\nb")
    box.press("Enter")
    expect(page.locator("article.user .text")).to_have_text("a\nb")
    expect(page.locator("article.assistant .text")).to_contain_text("Fim")
    page.goto("/ui/chat")
    expect(box).to_have_value("")


def test_the_log_follows_only_who_is_at_its_end(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    chat.deltas = ["linha\n" * 60, "meio\n" * 10, "fim"]
    page = open_page("/ui/chat")
    send(page, "Conte")
    chat.gate.release()
    text = page.locator("article.assistant .text")
    expect(text).to_contain_text("linha")
    log = page.locator("#log")
    left = "log => log.scrollHeight - log.scrollTop - log.clientHeight"
    page.wait_for_function(f"() => ({left})(document.getElementById('log')) < 80")
    log.hover()
    page.mouse.wheel(0, -600)
    expect(page.get_by_role("button", name="Ir para o fim")).to_be_visible()
    chat.gate.release()
    expect(text).to_contain_text("meio")
    assert log.evaluate(left) > 500
    page.get_by_role("button", name="Ir para o fim").click()
    chat.gate.open()
    expect(text).to_contain_text("fim")
    page.wait_for_function(f"() => ({left})(document.getElementById('log')) < 80")
    expect(page.get_by_role("button", name="Ir para o fim")).to_be_hidden()


def test_a_killed_gateway_leaves_a_marked_answer(
    open_page: OpenPage, chat: OpenAIUpstream, gateway: GatewayProcess
) -> None:
    page = open_page("/ui/chat", allow="ERR_|htmx")
    send(page, "Conte")
    chat.gate.release()
    expect(page.locator("article.assistant .text")).to_contain_text("Brasília")
    gateway.stop(signal.SIGKILL)
    gateway.start()
    answer = page.locator("article.assistant")
    expect(answer).to_contain_text("O openbr parou enquanto esta resposta era escrita.")
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()
    expect(page.locator("#lost")).to_be_hidden()


def test_a_stream_that_cannot_be_joined_at_first(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    page = open_page("/ui/chat", allow="ERR_FAILED|500|htmx")
    refusals = [lambda route: route.abort(), lambda route: route.fulfill(status=500)]

    def refuse(route: Route) -> None:
        refusals.pop()(route) if refusals else route.continue_()

    page.route("**/stream/**", refuse)
    with page.expect_response(lambda response: response.status == 500):
        send(page, "Conte")
    assert len(refusals) == 1
    with page.expect_event("requestfailed"):
        pass
    chat.gate.open()
    expect(page.locator("article.assistant .text")).to_contain_text("Fim")
    expect(page.get_by_role("button", name="Enviar")).to_be_visible()


def test_a_failure_says_what_to_do(open_page: OpenPage, chat: OpenAIUpstream) -> None:
    from fake_upstream import error

    chat.failures = {"*": error(401, "no key")}
    page = open_page("/ui/chat")
    send(page, "Oi")
    answer = page.locator("article.assistant")
    expect(answer).to_contain_text("alpha recusou a nossa chave.")
    answer.get_by_role("link", name="Abrir Modelos").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Modelos")
