"""/ui/chat: what is asked is kept, what answers is named, and a reader may come and go."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Callable

import pytest
from fake_upstream import Gate
from web.states import begin
from web.stream import Event, Reader
from web.world import Script, World

from openbr.errors import StreamInterruptedError, UpstreamUnavailableError
from openbr.records import Caller
from openbr.secret import ADMIN
from openbr.store import conversations
from openbr.store.conversations import Message

MakeWorld = Callable[..., World]


def stored(world: World, conversation_id: int = 1) -> list[Message]:
    return world.store.read(conversations.messages, conversation_id)


def appended(data: str) -> str:
    """The words that an event adds to the text."""
    found = re.search(r'-text" hx-swap="beforeend">(.*?)</hx-partial>', data, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def test_asking_without_a_script_gives_the_finished_page(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    answer = world.post("/ui/chat", {"text": "Como vai?\r\nTudo bem?"})
    assert answer.status == 303
    assert answer.headers["location"] == "/ui/chat/1#m1"
    asked, answered = stored(world)
    assert (asked.role, asked.text, asked.state) == ("user", "Como vai?\nTudo bem?", "done")
    assert (answered.text, answered.state) == ("Olá, mundo", "done")
    assert answered.model == answered.chosen_model == "anthropic/claude-haiku-4.5"
    assert (answered.input_tokens, answered.output_tokens) == (38, 126)
    page = world.get("/ui/chat/1").body.decode()
    assert "Olá, mundo</span>" in page
    assert "1º token 0,41\u00a0s" in page
    assert "38 entram, 126 saem" in page
    assert "<title>Como vai?" in page
    assert 'id="send"' in page and 'id="stop"' not in page


def test_the_model_is_told_the_whole_conversation(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    world.post("/ui/chat", {"text": "um"})
    world.post("/ui/chat/1/messages", {"text": "dois"})
    request = world.providers["anthropic"].requests[-1]
    assert request.stream
    assert (
        bytes(request.fields["messages"])
        == (
            '[{"role":"user","content":"um"},{"role":"assistant","content":"Olá, mundo"},'
            '{"role":"user","content":"dois"}]'
        ).encode()
    )


def test_questions_without_an_answer_are_told_as_one(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    script = world.providers["anthropic"].script
    world.providers["anthropic"].script = Script(
        failure=UpstreamUnavailableError("down", provider="anthropic", reason="server")
    )
    world.post("/ui/chat", {"text": "um"})
    world.providers["anthropic"].script = script
    world.post("/ui/chat/1/messages", {"text": "dois"})
    request = world.providers["anthropic"].requests[-1]
    assert bytes(request.fields["messages"]) == b'[{"role":"user","content":"um\\n\\ndois"}]'


def test_htmx_is_answered_at_once(make_world: MakeWorld) -> None:
    world = make_world("answered")
    world.providers["anthropic"].script = Script(opening=asyncio.Event())
    part = world.post("/ui/chat/1/messages", {"text": "E agora?"}, htmx=True)
    assert part.status == 200
    text = part.body.decode()
    assert 'hx-sse:connect="/ui/chat/1/stream/4?after=0"' in text
    assert 'hx-sse:close="done"' in text
    assert 'hx-config="sse.pauseOnBackground:false sse.reconnectMaxDelay:5s"' in text
    assert 'id="m3"' in text and "E agora?" in text
    assert 'id="m1"' not in text
    assert 'id="stop"' in text and 'id="send"' not in text
    assert 'aria-busy="true"' in text
    assert "Gerando resposta" in text


def test_a_new_conversation_with_htmx_moves_to_its_own_address(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    world.providers["anthropic"].script = Script(opening=asyncio.Event())
    answer = world.post("/ui/chat", {"text": "Oi"}, htmx=True)
    assert answer.headers["hx-redirect"] == "/ui/chat/1"
    assert "hx-sse:connect" in world.get("/ui/chat/1").body.decode()


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("", 400, "escreva uma mensagem primeiro"),
        (" \n\t ", 400, "escreva uma mensagem primeiro"),
        ("x" * (1024 * 1024 + 1), 413, "characters at most"),
    ],
)
def test_messages_that_are_none(text: str, status: int, words: str, make_world: MakeWorld) -> None:
    world = make_world("answered")
    page = world.post("/ui/chat/1/messages", {"text": text})
    assert page.status == status
    assert words in page.body.decode()
    part = world.post("/ui/chat/1/messages", {"text": text}, htmx=True)
    assert part.status == status
    assert 'hx-target="#notice"' in part.body.decode()
    assert len(stored(world)) == 2


def test_what_was_written_is_still_there_after_a_refusal(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbr.errors import ServiceUnavailableError

    world = make_world("answered")

    async def full(*_: object) -> None:
        raise ServiceUnavailableError("the disk is full")

    monkeypatch.setattr(world.store, "commit", full)
    page = world.post("/ui/chat/1/messages", {"text": "\n<b>minha mensagem</b>"})
    assert page.status == 503
    assert ">\n&lt;b&gt;minha mensagem&lt;/b&gt;</textarea>" in page.body.decode()
    assert "the disk is full" in page.body.decode()


def test_a_megabyte_goes_through(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    long = "palavra " * 131_072
    assert world.post("/ui/chat", {"text": long}).status == 303
    assert stored(world)[0].text == long
    assert world.get("/ui/chat/1").status == 200


def test_one_answer_at_a_time(make_world: MakeWorld) -> None:
    world = make_world("writing")
    page = world.post("/ui/chat/1/messages", {"text": "outra"})
    assert page.status == 409
    assert "uma resposta ainda está sendo escrita" in page.body.decode()
    assert "outra</textarea>" in page.body.decode()
    assert len(stored(world)) == 2


def test_two_tabs_at_the_same_moment(make_world: MakeWorld) -> None:
    world = make_world("answered")

    async def both() -> list[int]:
        asks = [world.ask("POST", "/ui/chat/1/messages", fields={"text": t}) for t in ("a", "b")]
        return sorted(answer.status for answer in await asyncio.gather(*asks))

    assert world.run(both()) == [303, 409]
    assert len(stored(world)) == 4


@pytest.mark.parametrize("path", ["/ui/chat/9", "/ui/chat/99999999999999999999999"])
def test_conversations_that_are_not_there(path: str, make_world: MakeWorld) -> None:
    world = make_world("answered")
    assert world.get(path).status == 404
    assert world.post(path + "/messages", {"text": "oi"}).status == 404
    assert world.post(path + "/stop").status == 404
    assert world.get(path + "/stream/1").status == 404
    assert world.get("/ui/chat/1/stream/77").status == 404
    assert world.get("/ui/chat/1/messages").headers["location"] == "/ui/chat/1"


def test_chatting_needs_the_scope(make_world: MakeWorld) -> None:
    world = make_world("answered")
    world.caller = Caller(key_id=1, name="x", scopes=frozenset({ADMIN}))
    assert world.get("/ui/chat/1").status == 403
    assert world.post("/ui/chat", {"text": "oi"}).status == 403


def test_titles(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    for text in (
        "\n  Uma   linha \noutra",
        "palavra " * 30,
        "x" * 200,
        "<script>alert(1)</script>",
    ):
        world.post("/ui/chat", {"text": text})
    titles = [c.title for c in world.store.read(conversations.list_recent, 10)]
    assert titles == [
        "<script>alert(1)</script>",
        "x" * 60 + "…",
        "palavra palavra palavra palavra palavra palavra palavra…",
        "Uma linha",
    ]
    page = world.get("/ui/chat").body.decode()
    assert "<script>alert" not in page
    assert page.count('<li><a href="/ui/chat/') == 4


def test_the_list_is_by_day_and_short(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    for _ in range(35):
        world.post("/ui/chat", {"text": "antiga"})
    world.later(86_400)
    world.post("/ui/chat", {"text": "nova"})
    page = world.get("/ui/chat/36").body.decode()
    assert page.count('<li><a href="/ui/chat/') == 30
    assert page.index("<h2>Hoje</h2>") < page.index("<h2>Ontem</h2>")
    assert '<a href="/ui/chat/36" aria-current="page">' in page


def test_hostile_texts_are_shown_and_do_nothing(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    evil = '<img src=x onerror=alert(1)> \u202egpj </span><hx-partial hx-target="body">'
    world.providers["anthropic"].script.pieces = [evil, "\x1b[31m\r\nfim"]
    world.post("/ui/chat", {"text": evil})
    page = world.get("/ui/chat/1").body.decode()
    assert "<img" not in page and "<hx-partial" not in page and "\u202e" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt; [U+202E]gpj") >= 2
    assert "␛[31m\nfim" in page


# Failures.


def test_an_answer_in_place_of_another(make_world: MakeWorld) -> None:
    world = make_world("answered-by-another")
    page = world.get("/ui/chat/1").body.decode()
    meta = page[page.index('id="m2-meta"') :]
    assert "no lugar de llama3.3:70b" in meta
    assert 'title="anthropic/claude-haiku-4.5"' in meta


def test_a_failure_says_what_to_do(make_world: MakeWorld) -> None:
    world = make_world("failed")
    message = stored(world)[1]
    assert (message.state, message.text) == ("failed", "")
    page = world.get("/ui/chat/1").body.decode()
    assert "anthropic rejeitou esta conversa." in page
    assert "Uma conversa mais curta ou outro modelo pode funcionar." in page
    assert "the context is 200000 tokens at most" in page


def test_a_broken_answer_keeps_what_came(make_world: MakeWorld) -> None:
    world = make_world("cut")
    message = stored(world)[1]
    assert (message.state, message.text) == ("cut", "Olá, mundo")
    page = world.get("/ui/chat/1").body.decode()
    assert "Olá, mundo</span>" in page
    assert "A resposta foi interrompida." in page


def test_no_model_at_all(make_world: MakeWorld) -> None:
    world = make_world("empty")
    world.post("/ui/chat", {"text": "oi"})
    page = world.get("/ui/chat/1").body.decode()
    assert "Nenhum modelo está disponível." in page
    assert 'href="/ui/models"' in page


def test_a_defect_in_a_run_is_an_answer_too(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world("loaded")
    world.providers["anthropic"].script = Script(failure=ZeroDivisionError("inside"))  # type: ignore[arg-type]
    world.post("/ui/chat", {"text": "oi"})
    assert stored(world)[1].state == "failed"
    assert "inside" in caplog.text
    page = world.get("/ui/chat/1").body.decode()
    assert "É um defeito do openbr." in page and "inside" not in page


def test_what_a_killed_process_left_is_cut(make_world: MakeWorld) -> None:
    world = make_world("answered")
    world.store.write(
        conversations.add_message,
        conversation_id=1,
        role="assistant",
        text="Meio",
        state="running",
        now=world.now,
    )
    page = world.get("/ui/chat/1").body.decode()
    assert "hx-sse:connect" not in page
    assert "O openbr parou enquanto esta resposta era escrita." in page
    world.store.write(conversations.fail_running, world.now)
    assert "O openbr parou enquanto" in world.get("/ui/chat/1").body.decode()


# Stop.


def test_stopping_keeps_what_came(make_world: MakeWorld) -> None:
    world = make_world("writing")
    answer = world.post("/ui/chat/1/stop")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/chat/1")
    message = stored(world)[1]
    assert (message.state, message.text) == ("stopped", "Dá para ")
    assert message.model == "anthropic/claude-haiku-4.5"
    assert world.providers["anthropic"].closed == 1
    again = world.post("/ui/chat/1/stop", htmx=True)
    assert 'hx-target="#m2" hx-swap="outerHTML"' in again.body.decode()
    assert "parada por você" in again.body.decode()
    assert 'id="send"' in again.body.decode()


def test_stopping_before_the_first_word(make_world: MakeWorld) -> None:
    world = make_world("waiting")
    world.post("/ui/chat/1/stop", htmx=True)
    message = stored(world)[1]
    assert (message.state, message.text, message.model) == ("stopped", "", None)
    assert "parada por você" in world.get("/ui/chat/1").body.decode()


# The stream.


def test_the_stream_brings_pieces_then_the_end(make_world: MakeWorld) -> None:
    world = make_world("writing")
    gate = world.providers["anthropic"].script.gate
    assert gate is not None

    async def read() -> None:
        async with Reader(world, "/ui/chat/1/stream/2?after=0") as reader:
            assert reader.status == 200
            assert reader.answer_headers["content-type"].startswith("text/event-stream")
            assert reader.answer_headers["cache-control"] == "no-store"
            first = await reader.event()
            assert first and first.id == "1"
            assert appended(first.data) == "Dá para "
            assert "claude-haiku-4.5" in first.data
            gate.release()
            second = await reader.event()
            assert second and second.id == "2"
            assert appended(second.data) == "fazer"
            assert "-meta" not in second.data
            gate.release()
            end, done = await reader.rest()
            assert "38 in, 126 out" in end.data
            assert 'id="send"' in end.data
            assert "The answer is ready, 126 tokens" in end.data
            assert "-text" not in end.data, "finished text is not sent twice"
            assert done.name == "done"

    world.run(read())


@pytest.mark.parametrize("how", ["header", "query"])
def test_a_reader_comes_back_where_it_was(how: str, make_world: MakeWorld) -> None:
    world = make_world("writing")
    gate = world.providers["anthropic"].script.gate
    assert gate is not None

    async def read() -> None:
        path = "/ui/chat/1/stream/2?after=" + ("1" if how == "query" else "0")
        headers = {"last-event-id": "1"} if how == "header" else {}
        async with Reader(world, path, headers) as reader:
            gate.release()
            event = await reader.event()
            assert event and appended(event.data) == "fazer"
            gate.release()
            await reader.rest()

    world.run(read())


@pytest.mark.parametrize("odd", ["-1", "x", "99999999999999", ""])
def test_odd_places_in_a_stream_are_its_beginning(odd: str, make_world: MakeWorld) -> None:
    world = make_world("writing")

    async def read() -> None:
        async with Reader(world, "/ui/chat/1/stream/2", {"last-event-id": odd}) as reader:
            event = await reader.event()
            assert event and appended(event.data) == "Dá para "

    world.run(read())


def test_two_readers_get_the_same(make_world: MakeWorld) -> None:
    world = make_world("writing")
    gate = world.providers["anthropic"].script.gate
    assert gate is not None

    async def read() -> None:
        path = "/ui/chat/1/stream/2?after=0"
        async with Reader(world, path) as one, Reader(world, path) as other:
            gate.release(2)
            first, second = await one.rest(), await other.rest()
            words = ["".join(appended(event.data) for event in got) for got in (first, second)]
            assert words == ["Dá para fazer"] * 2

    world.run(read())


def test_the_run_goes_on_when_its_reader_leaves(make_world: MakeWorld) -> None:
    world = make_world("writing")
    gate = world.providers["anthropic"].script.gate
    assert gate is not None

    async def leave() -> None:
        async with Reader(world, "/ui/chat/1/stream/2?after=0") as reader:
            await reader.event()
        run = world.parts.runs.get(2)
        assert run is not None
        gate.release(2)
        await run.wait()

    world.run(leave())
    assert (stored(world)[1].text, stored(world)[1].state) == ("Dá para fazer", "done")


def test_an_ended_answer_is_sent_whole(make_world: MakeWorld) -> None:
    world = make_world("answered")

    async def read() -> None:
        async with Reader(world, "/ui/chat/1/stream/2?after=1") as reader:
            whole, done = await reader.rest()
            assert 'hx-target="#m2" hx-swap="outerHTML"' in whole.data
            assert "Olá, mundo" in whole.data
            assert "hx-sse" not in whole.data
            assert done.name == "done"

    world.run(read())


def test_pieces_that_come_fast_travel_together(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    pieces = [f"w{n} " for n in range(500)]
    gate = Gate()
    world.providers["anthropic"].script = Script(pieces=pieces, gate=gate)

    async def read() -> None:
        await begin(world)
        async with Reader(world, "/ui/chat/1/stream/2?after=0") as reader:
            gate.release(len(pieces) + 1)
            events = await reader.rest()
            assert "".join(appended(event.data) for event in events) == "".join(pieces)
            assert len(events) < 20

    world.run(read())


def test_the_wait_for_the_local_model_is_named(make_world: MakeWorld) -> None:
    world = make_world("waiting")
    ollama = world.providers["ollama"]
    assert "Esperando llama3.3:70b" in world.get("/ui/chat/1").body.decode()

    async def read() -> None:
        async with Reader(world, "/ui/chat/1/stream/2?after=0") as reader:
            waiting = await reader.event()
            assert waiting and waiting.id is None
            assert "Waiting for llama3.3:70b" in waiting.data
            ollama.state = "loading"
            loading = await reader.event()
            assert loading and "Loading the local model" in loading.data
            ollama.state = "ready"
            assert ollama.script.opening is not None
            ollama.script.opening.set()
            words = "".join(appended(event.data) for event in await reader.rest())
            assert words == "Olá, mundo"

    world.run(read())


def test_a_failure_ends_the_stream_with_its_words(make_world: MakeWorld) -> None:
    world = make_world("loaded")
    gate = Gate()
    world.providers["anthropic"].script = Script(
        gate=gate, breaks=StreamInterruptedError("reset", provider="anthropic")
    )

    async def read() -> None:
        await begin(world)
        async with Reader(world, "/ui/chat/1/stream/2?after=0") as reader:
            gate.release(3)
            events = await reader.rest()
            assert "".join(appended(event.data) for event in events) == "Olá, mundo"
            assert "The answer broke off." in events[-2].data
            assert events[-1].name == "done"

    world.run(read())


def test_silence_is_filled_with_comments(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("writing")
    monkeypatch.setattr("openbr.web.chat.KEEP_ALIVE_S", 0.02)

    async def read() -> None:
        async with Reader(world, "/ui/chat/1/stream/2?after=1") as reader:
            quiet = await reader.event()
            assert quiet == Event()

    world.run(read())


def test_an_answer_that_cannot_be_stored_ends_all_the_same(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from openbr.errors import ServiceUnavailableError

    world = make_world("loaded")

    def full(*_: object, **__: object) -> None:
        raise ServiceUnavailableError("the disk is full")

    monkeypatch.setattr(conversations, "finish_message", full)
    assert world.post("/ui/chat", {"text": "oi"}).status == 303
    assert "could not be stored: the disk is full" in caplog.text
    assert world.parts.runs.of(1) is None
    assert "O openbr parou enquanto" in world.get("/ui/chat/1").body.decode()


def test_a_page_between_the_end_and_the_last_step_of_a_run(make_world: MakeWorld) -> None:
    """What was stored counts: there is nothing left to stop."""
    world = make_world("writing")
    assert world.parts.runs.get(2) is not None
    world.store.write(
        conversations.finish_message, 2, text="Dá para fazer", state="done", now=world.now
    )
    page = world.get("/ui/chat/1").body.decode()
    assert 'id="send"' in page and 'id="stop"' not in page


# The end of the process.


def test_closing_keeps_what_running_answers_have(make_world: MakeWorld) -> None:
    world = make_world("writing")
    world.run(world.parts.runs.close())
    message = stored(world)[1]
    assert (message.state, message.text) == ("cut", "Dá para ")
    assert "O openbr parou enquanto" in world.get("/ui/chat/1").body.decode()


def test_closing_lets_answers_end_for_a_while(make_world: MakeWorld) -> None:
    world = make_world("writing")
    gate = world.providers["anthropic"].script.gate
    assert gate is not None

    async def close() -> None:
        closing = asyncio.ensure_future(world.parts.runs.close(5))
        await asyncio.sleep(0)
        gate.release(2)
        await closing

    world.run(close())
    assert (stored(world)[1].state, stored(world)[1].text) == ("done", "Dá para fazer")
