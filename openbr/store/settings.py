"""Named values that a person set in the UI, one text each.

In: the connection, a name, a value. Out: text. What a value means is its reader's business.
"""

from __future__ import annotations

import sqlite3


def get(c: sqlite3.Connection, name: str) -> str | None:
    row = c.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def put(c: sqlite3.Connection, name: str, value: str) -> None:
    c.execute(
        "INSERT INTO settings (name, value) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )
