"""Browser logins: the digest of a cookie, the key it stands for, and until when.

In: the connection, a digest, the time. Out: a key's id. The rule that lives only here: a login is
good while `now < expires_at` and its key is live; the others are swept when one is added.
"""

from __future__ import annotations

import sqlite3


def add(
    c: sqlite3.Connection, *, digest: bytes, key_id: int, expires_at: float, now: float
) -> None:
    c.execute("DELETE FROM sessions WHERE expires_at <= ?", (now,))
    c.execute(
        "INSERT INTO sessions (digest, key_id, created_at, expires_at) VALUES (?, ?, ?, ?)",
        (digest, key_id, now, expires_at),
    )


def find(c: sqlite3.Connection, digest: bytes, now: float) -> int | None:
    """The id of the key that is logged in."""
    row = c.execute(
        "SELECT key_id FROM sessions JOIN keys ON keys.id = key_id"
        " WHERE sessions.digest = ? AND expires_at > ? AND revoked_at IS NULL",
        (digest, now),
    ).fetchone()
    return row[0] if row else None


def delete(c: sqlite3.Connection, digest: bytes) -> None:
    c.execute("DELETE FROM sessions WHERE digest = ?", (digest,))
