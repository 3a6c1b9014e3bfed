"""Conversations of the chat page and their messages.

In: the connection, texts, what an answer gathered. Out: Conversation, Message. The rule that lives
only here: a message being written is `running` in the store from its first moment, so that a killed
process leaves a trace, and `fail_running` turns that into `cut` at the next start.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Any

from openbr.errors import NotFoundError

_CONVERSATION = "id, title, created_at, updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    id: int
    title: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """`state`: done, running, cut (the process died), stopped (by the person) or failed.

    `model` answered; `chosen_model` was chosen at that time; `fallback_reason` is why they differ.
    """

    id: int
    conversation_id: int
    role: str
    text: str
    state: str
    model: str | None
    chosen_model: str | None
    fallback_reason: str | None
    ttft_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    error: str | None
    created_at: float


_FIELDS = tuple(f.name for f in fields(Message))
_MESSAGE = ", ".join(_FIELDS)


def create(c: sqlite3.Connection, *, title: str, now: float) -> int:
    created = c.execute(
        "INSERT INTO conversations (title, created_at, updated_at) VALUES (?, ?, ?)",
        (title, now, now),
    )
    return created.lastrowid or 0


def get(c: sqlite3.Connection, conversation_id: int) -> Conversation | None:
    row = c.execute(
        f"SELECT {_CONVERSATION} FROM conversations WHERE id = ?", (conversation_id,)
    ).fetchone()
    return _conversation(row) if row else None


def list_recent(c: sqlite3.Connection, limit: int) -> list[Conversation]:
    """The last touched first."""
    rows = c.execute(
        f"SELECT {_CONVERSATION} FROM conversations ORDER BY updated_at DESC, id DESC LIMIT ?",
        (limit,),
    )
    return [_conversation(row) for row in rows]


def delete(c: sqlite3.Connection, conversation_id: int) -> bool:
    """Delete a conversation and its messages; whether it was there."""
    return c.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,)).rowcount > 0


def add_message(
    c: sqlite3.Connection,
    *,
    conversation_id: int,
    role: str,
    text: str,
    state: str,
    now: float,
    chosen_model: str | None = None,
) -> int:
    """Raises: NotFoundError when the conversation is gone."""
    touched = c.execute(
        "UPDATE conversations SET updated_at = ? WHERE id = ?", (now, conversation_id)
    )
    if touched.rowcount == 0:
        raise NotFoundError("there is no such conversation; it may have been deleted")
    added = c.execute(
        "INSERT INTO messages (conversation_id, role, text, state, chosen_model, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (conversation_id, role, text, state, chosen_model, now),
    )
    return added.lastrowid or 0


def finish_message(
    c: sqlite3.Connection,
    message_id: int,
    *,
    text: str,
    state: str,
    now: float,
    model: str | None = None,
    chosen_model: str | None = None,
    fallback_reason: str | None = None,
    ttft_s: float | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    error: str | None = None,
) -> bool:
    """Write what the message became. False when it is gone: its conversation was deleted."""
    finished = c.execute(
        "UPDATE messages SET text = ?, state = ?, model = ?, chosen_model = ?,"
        " fallback_reason = ?, ttft_s = ?, input_tokens = ?, output_tokens = ?, error = ?"
        " WHERE id = ?",
        (
            text,
            state,
            model,
            chosen_model,
            fallback_reason,
            ttft_s,
            input_tokens,
            output_tokens,
            error,
            message_id,
        ),
    )
    c.execute(
        "UPDATE conversations SET updated_at = ?"
        " WHERE id = (SELECT conversation_id FROM messages WHERE id = ?)",
        (now, message_id),
    )
    return finished.rowcount > 0


def messages(c: sqlite3.Connection, conversation_id: int) -> list[Message]:
    """In the order they were written."""
    rows = c.execute(
        f"SELECT {_MESSAGE} FROM messages WHERE conversation_id = ? ORDER BY id",
        (conversation_id,),
    )
    return [_message(row) for row in rows]


def fail_running(c: sqlite3.Connection, now: float) -> int:
    """At start: messages that a killed process left running become cut. How many."""
    c.execute(
        "UPDATE conversations SET updated_at = ?"
        " WHERE id IN (SELECT conversation_id FROM messages WHERE state = 'running')",
        (now,),
    )
    return c.execute("UPDATE messages SET state = 'cut' WHERE state = 'running'").rowcount


def _conversation(row: tuple[int, str, float, float]) -> Conversation:
    return Conversation(id=row[0], title=row[1], created_at=row[2], updated_at=row[3])


def _message(row: tuple[Any, ...]) -> Message:
    return Message(**dict(zip(_FIELDS, row, strict=True)))
