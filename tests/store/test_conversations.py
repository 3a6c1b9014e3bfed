from __future__ import annotations

import sqlite3

import pytest

from openbr.errors import NotFoundError
from openbr.store import Store, conversations


def create(store: Store, title: str = "t", now: float = 1.0) -> int:
    return store.write(conversations.create, title=title, now=now)


def say(
    store: Store, conversation_id: int, text: str, state: str = "done", now: float = 2.0
) -> int:
    return store.write(
        conversations.add_message,
        conversation_id=conversation_id,
        role="user",
        text=text,
        state=state,
        now=now,
    )


def test_a_conversation_comes_back(store: Store) -> None:
    number = create(store, "Olá", now=3.0)
    assert store.read(conversations.get, number) == conversations.Conversation(
        id=number, title="Olá", created_at=3.0, updated_at=3.0
    )
    assert store.read(conversations.get, number + 1) is None


def test_recent_means_last_touched(store: Store) -> None:
    a, b, c = (create(store, title, now=now) for title, now in (("a", 1.0), ("b", 2.0), ("c", 2.0)))
    say(store, a, "hi", now=5.0)
    assert [one.id for one in store.read(conversations.list_recent, 9)] == [a, c, b]
    assert [one.id for one in store.read(conversations.list_recent, 1)] == [a]


def test_messages_come_back_in_order_with_all_they_hold(store: Store) -> None:
    number = create(store)
    asked = say(store, number, "Qual é a capital do Brasil? \x00 🇧🇷")
    answering = store.write(
        conversations.add_message,
        conversation_id=number,
        role="assistant",
        text="",
        state="running",
        now=2.0,
        chosen_model="ollama/x",
    )
    assert store.write(
        conversations.finish_message,
        answering,
        text="Brasília",
        state="done",
        model="local/smollm2",
        chosen_model="ollama/x",
        fallback_reason="refused",
        ttft_s=0.25,
        input_tokens=7,
        output_tokens=3,
        error=None,
        now=8.0,
    )
    first, second = store.read(conversations.messages, number)
    assert (first.id, first.text, first.model) == (
        asked,
        "Qual é a capital do Brasil? \x00 🇧🇷",
        None,
    )
    assert second == conversations.Message(
        id=answering,
        conversation_id=number,
        role="assistant",
        text="Brasília",
        state="done",
        model="local/smollm2",
        chosen_model="ollama/x",
        fallback_reason="refused",
        ttft_s=0.25,
        input_tokens=7,
        output_tokens=3,
        error=None,
        created_at=2.0,
    )
    conversation = store.read(conversations.get, number)
    assert conversation and conversation.updated_at == 8.0


def test_a_message_needs_a_conversation(store: Store) -> None:
    with pytest.raises(NotFoundError):
        say(store, 7, "hello?")


@pytest.mark.parametrize("column, word", [("role", "robot"), ("state", "unsure")])
def test_other_words_are_refused(store: Store, column: str, word: str) -> None:
    values = {"role": "user", "state": "done"} | {column: word}
    number = create(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.write(conversations.add_message, conversation_id=number, text="", now=1.0, **values)


def test_deleting_takes_the_messages_and_an_answer_on_its_way(store: Store) -> None:
    number = create(store)
    answering = say(store, number, "", state="running")
    assert store.write(conversations.delete, number)
    assert not store.write(conversations.delete, number)
    assert store.read(conversations.messages, number) == []
    assert not store.write(
        conversations.finish_message, answering, text="late", state="done", now=9.0
    )
    assert create(store) != number, "a link to a deleted conversation must not show another"


def test_messages_of_a_killed_process_are_cut_at_the_next_start(store: Store) -> None:
    number, other = create(store, "a"), create(store, "b")
    say(store, number, "done")
    say(store, number, "half an ans", state="running")
    say(store, other, "stopped", state="stopped")
    assert store.write(conversations.fail_running, 9.0) == 1
    assert store.write(conversations.fail_running, 10.0) == 0
    assert [one.state for one in store.read(conversations.messages, number)] == ["done", "cut"]
    assert [one.state for one in store.read(conversations.messages, other)] == ["stopped"]
    assert [one.id for one in store.read(conversations.list_recent, 9)] == [number, other]
