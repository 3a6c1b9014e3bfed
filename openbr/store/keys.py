"""The keys that callers may use: digests, scopes, and when.

In: the connection, a digest, a name. Out: StoredKey. The rules that live only here: a key's text is
never stored, only its digest and last four characters; a name belongs to one live key at a time;
a revoked key stays as a row (its past use has a name) and its logins end with it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Set
from dataclasses import dataclass

from openbr.errors import InvalidRequestError
from openbr.secret import SCOPES

_NAME = re.compile(r"[^\W_][\w .@:-]{0,63}")
_COLUMNS = "id, name, last4, scopes, created_at, last_used_at, revoked_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    id: int
    name: str
    last4: str
    scopes: frozenset[str]
    created_at: float
    last_used_at: float | None
    revoked_at: float | None


def add(
    c: sqlite3.Connection, *, name: str, digest: bytes, last4: str, scopes: Set[str], now: float
) -> int:
    """Keep a new key; its id. Raises: InvalidRequestError for a name that is taken or unfit."""
    if not _NAME.fullmatch(name) or name != name.strip():
        raise InvalidRequestError(
            "a key's name is 1 to 64 letters, digits, spaces or . _ @ : -, "
            "and begins with a letter or a digit",
            param="name",
        )
    if not scopes or not scopes <= SCOPES:
        known = ", ".join(sorted(SCOPES))
        raise InvalidRequestError(f"a key's scopes are one or more of: {known}", param="scopes")
    if c.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (name,)).fetchone():
        raise InvalidRequestError(
            f'a key named "{name}" is there already; revoke it first, or take another name',
            param="name",
        )
    added = c.execute(
        "INSERT INTO keys (name, digest, last4, scopes, created_at) VALUES (?, ?, ?, ?, ?)",
        (name, digest, last4, " ".join(sorted(scopes)), now),
    )
    return added.lastrowid or 0


def find(c: sqlite3.Connection, digest: bytes) -> StoredKey | None:
    """The key with this digest, live or revoked (`revoked_at` tells)."""
    row = c.execute(f"SELECT {_COLUMNS} FROM keys WHERE digest = ?", (digest,)).fetchone()
    return _stored_key(row) if row else None


def get(c: sqlite3.Connection, key_id: int) -> StoredKey | None:
    row = c.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (key_id,)).fetchone()
    return _stored_key(row) if row else None


def list_all(c: sqlite3.Connection) -> list[StoredKey]:
    """Live and revoked ones, oldest first."""
    return [_stored_key(row) for row in c.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY id")]


def has_live(c: sqlite3.Connection) -> bool:
    return c.execute("SELECT 1 FROM keys WHERE revoked_at IS NULL LIMIT 1").fetchone() is not None


def revoke(c: sqlite3.Connection, name_or_id: str, now: float) -> StoredKey | None:
    """End a live key, by its name or else its id. None if there is no such live key."""
    row = c.execute(
        "SELECT id FROM keys WHERE revoked_at IS NULL AND (name = ? OR CAST(id AS TEXT) = ?)"
        " ORDER BY name = ? DESC LIMIT 1",
        (name_or_id, name_or_id, name_or_id),
    ).fetchone()
    if row is None:
        return None
    c.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (now, row[0]))
    c.execute("DELETE FROM sessions WHERE key_id = ?", row)
    return get(c, row[0])


def touch(c: sqlite3.Connection, key_id: int, now: float) -> None:
    """Note that the key was used. Time only goes forward, whatever the clock does."""
    c.execute(
        "UPDATE keys SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?",
        (now, key_id),
    )


def _stored_key(row: tuple[int, str, str, str, float, float | None, float | None]) -> StoredKey:
    return StoredKey(
        id=row[0],
        name=row[1],
        last4=row[2],
        scopes=frozenset(row[3].split()),
        created_at=row[4],
        last_used_at=row[5],
        revoked_at=row[6],
    )
