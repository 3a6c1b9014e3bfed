"""The schema, as the ordered steps that made it.

In: nothing. Out: MIGRATIONS. The rule that lives only here: a step that was released never changes;
a new need is a new step at the end. The store's `user_version` is how many steps it has had; the
steps that are due run in one transaction, so no store is ever between two of them.

Times are unix seconds. Keys, sessions: digests only, never the secret itself.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x6F62_7231
"""Stands in the file's header ("obr1"), so that a database of something else is not touched."""

Migration = tuple[str, ...]

MIGRATIONS: Final[tuple[Migration, ...]] = (
    # 1: settings, keys and browser logins, the chosen model, conversations
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        """
        CREATE TABLE settings (
            name   TEXT PRIMARY KEY,
            value  TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE keys (
            id            INTEGER PRIMARY KEY AUTOINCREMENT,
            name          TEXT NOT NULL,
            digest        BLOB NOT NULL UNIQUE,
            last4         TEXT NOT NULL,
            scopes        TEXT NOT NULL,
            created_at    REAL NOT NULL,
            last_used_at  REAL,
            revoked_at    REAL
        )
        """,
        "CREATE UNIQUE INDEX keys_live_name ON keys (name) WHERE revoked_at IS NULL",
        """
        CREATE TABLE sessions (
            digest      BLOB PRIMARY KEY,
            key_id      INTEGER NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
            created_at  REAL NOT NULL,
            expires_at  REAL NOT NULL
        ) WITHOUT ROWID
        """,
        "CREATE INDEX sessions_key ON sessions (key_id)",
        "CREATE INDEX sessions_expiry ON sessions (expires_at)",
        """
        CREATE TABLE selections (
            route      TEXT PRIMARY KEY,
            model      TEXT NOT NULL,
            chosen_at  REAL NOT NULL,
            chosen_by  TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE conversations (
            id          INTEGER PRIMARY KEY AUTOINCREMENT,
            title       TEXT NOT NULL,
            created_at  REAL NOT NULL,
            updated_at  REAL NOT NULL
        )
        """,
        "CREATE INDEX conversations_recent ON conversations (updated_at DESC, id DESC)",
        """
        CREATE TABLE messages (
            id               INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation_id  INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            role             TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'system')),
            text             TEXT NOT NULL,
            state            TEXT NOT NULL
                             CHECK (state IN ('done', 'running', 'cut', 'stopped', 'failed')),
            model            TEXT,
            chosen_model     TEXT,
            fallback_reason  TEXT,
            ttft_s           REAL,
            input_tokens     INTEGER,
            output_tokens    INTEGER,
            error            TEXT,
            created_at       REAL NOT NULL
        )
        """,
        "CREATE INDEX messages_conversation ON messages (conversation_id, id)",
        "CREATE INDEX messages_running ON messages (id) WHERE state = 'running'",
    ),
    # 2: one row a request. AUTOINCREMENT, so that an id is never given again and "counted up to
    # here" stays true when old rows go. Cost is whole nano-dollars: sums are exact in any order,
    # and most take four bytes where a REAL takes eight. No reference to keys: what was used is
    # counted, whoever used it. No CHECK: a row with a new word is better than no row.
    (
        """
        CREATE TABLE usage (
            id             INTEGER PRIMARY KEY AUTOINCREMENT,
            request_id     TEXT NOT NULL,
            created_at     REAL NOT NULL,
            key_id         INTEGER,
            asked          TEXT NOT NULL,
            model          TEXT,
            provider       TEXT,
            status         INTEGER NOT NULL,
            outcome        TEXT NOT NULL,
            cache          TEXT NOT NULL,
            fallback       TEXT,
            error          TEXT,
            is_stream      INTEGER NOT NULL,
            input_tokens   INTEGER,
            output_tokens  INTEGER,
            cached_tokens  INTEGER,
            queue_s        REAL,
            ttft_s         REAL,
            total_s        REAL,
            cost_nano_usd  INTEGER
        )
        """,
        "CREATE INDEX usage_time ON usage (created_at)",
    ),
)
