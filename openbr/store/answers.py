"""The file of answers that were given before: a cache, in a SQLite file of its own.

In: keys and bytes. Out: the bytes again, and their age. The rules that live only here: the file can
be lost at any time, so one that is damaged, foreign or of another version is made anew; it grows to
`max_bytes` and no further, what was used longest ago goes first; what is older than its life is not
found any more. Times are the wall clock's: the file outlives the process.

SQLite's own log (-wal) comes to it, about 1 MiB.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

APPLICATION_ID = 0x6F627261  # "obra", openbr's answers
VERSION = 1

_PAGE_BYTES = 4096
_CACHE_KIB = 256
_LOG_BYTES = 1 << 20
_SPARE_PAGES = 8  # of a transaction: inner pages, and the index of what is written
_WHOLE_CHECK_BYTES = 16 << 20
"""Files up to this size are read whole when they are opened; damage in a bigger one shows when its
page is read, and ends the tier until the next start."""
_TOUCH_AFTER_S = 60.0
"""What was used within that time is not marked as used again: most reads write nothing."""
_EVICTED_AT_ONCE = 8
_MAX_SKEW_S = 60.0
"""An answer from the future by more than that was written by another clock: it is dropped."""

_SCHEMA = (
    "CREATE TABLE answers (key BLOB PRIMARY KEY, created_at REAL NOT NULL, used_at REAL NOT NULL,"
    " data BLOB NOT NULL)",
    "CREATE INDEX answers_used_at ON answers (used_at)",
    "CREATE INDEX answers_created_at ON answers (created_at)",
)


class AnswersFailed(Exception):
    """The file cannot be used. The message names it and says why."""


class _WrongFileError(Exception):
    """Not ours, or not as we left it."""


class AnswerFile:
    """The open file.

    Threads: one, the one that opened it. Every method blocks, and raises AnswersFailed when the
    file or the disk fails; one that another process keeps locked has nothing and keeps nothing.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, max_bytes: int, ttl_s: float
    ) -> None:
        self._path = path
        self._connection = connection
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s

    @classmethod
    def open(cls, path: Path, max_bytes: int, ttl_s: float, now: float) -> AnswerFile:
        """Open the file; make it if there is none, or none that we can use.

        Raises: AnswersFailed where it cannot be made either.
        """
        try:
            try:
                connection = _connect(path)
            except (_WrongFileError, sqlite3.DatabaseError) as exc:
                if isinstance(exc, sqlite3.DatabaseError) and not _is_damage(exc):
                    raise
                logger.warning("%s: kept answers are dropped: %s", path, exc)
                _remove(path)
                connection = _connect(path)
        except (_WrongFileError, sqlite3.Error, OSError) as exc:
            raise AnswersFailed(f"{path}: kept answers cannot be used: {exc}") from exc
        file = cls(path, connection, max_bytes, ttl_s)
        try:
            file._run(lambda: file._trim(now))
        except AnswersFailed:
            file.close()
            raise
        return file

    @property
    def used_bytes(self) -> int:
        """Of the file, without pages that are free. Raises: AnswersFailed."""
        return self._run(lambda: self._used_pages() * _PAGE_BYTES) or 0

    def find(self, key: bytes, now: float) -> tuple[bytes, float] | None:
        """The data and its age in seconds."""
        return self._run(lambda: self._find(key, now))

    def keep(self, key: bytes, data: bytes, now: float) -> None:
        """Keep it in place of what was there. More than an eighth of the bound is not kept."""
        if len(data) <= self._max_bytes // 8:
            self._run(lambda: self._keep(key, data, now))

    def drop(self, key: bytes) -> None:
        self._run(lambda: self._connection.execute("DELETE FROM answers WHERE key = ?", (key,)))

    def clear(self) -> None:
        self._run(lambda: self._connection.execute("DELETE FROM answers"))

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _find(self, key: bytes, now: float) -> tuple[bytes, float] | None:
        row = self._connection.execute(
            "SELECT data, created_at, used_at FROM answers WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        data, created_at, used_at = row
        age_s = now - created_at
        if age_s >= self._ttl_s or age_s < -_MAX_SKEW_S or not isinstance(data, bytes):
            self._connection.execute("DELETE FROM answers WHERE key = ?", (key,))
            return None
        if abs(now - used_at) >= _TOUCH_AFTER_S:
            self._connection.execute("UPDATE answers SET used_at = ? WHERE key = ?", (now, key))
        return data, max(0.0, age_s)

    def _keep(self, key: bytes, data: bytes, now: float) -> None:
        with _transaction(self._connection):
            self._expire(now)
            self._connection.execute("DELETE FROM answers WHERE key = ?", (key,))
            if self._make_room(len(data) // _PAGE_BYTES + _SPARE_PAGES):
                self._connection.execute(
                    "INSERT INTO answers (key, created_at, used_at, data) VALUES (?, ?, ?, ?)",
                    (key, now, now, data),
                )

    def _trim(self, now: float) -> None:
        """What an earlier process left: too old, or more than this one may keep."""
        with _transaction(self._connection):
            self._expire(now)
            self._make_room(0)
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        if pages * _PAGE_BYTES > self._max_bytes:
            self._connection.execute("VACUUM")

    def _expire(self, now: float) -> None:
        self._connection.execute(
            "DELETE FROM answers WHERE created_at <= ? OR created_at > ?",
            (now - self._ttl_s, now + _MAX_SKEW_S),
        )

    def _make_room(self, pages: int) -> bool:
        """Drop what was used longest ago until that many pages fit. False if they never will."""
        while (self._used_pages() + pages) * _PAGE_BYTES > self._max_bytes:
            dropped = self._connection.execute(
                "DELETE FROM answers WHERE key IN"
                " (SELECT key FROM answers ORDER BY used_at LIMIT ?)",
                (_EVICTED_AT_ONCE,),
            )
            if not dropped.rowcount:
                return False
        return True

    def _used_pages(self) -> int:
        used: int = self._connection.execute(
            "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
        ).fetchone()[0]
        return used

    def _run(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except sqlite3.Error as exc:
            if _code(exc) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return None
            if _is_damage(exc):
                self.close()
                with contextlib.suppress(OSError):
                    _remove(self._path)
            raise AnswersFailed(f"{self._path}: kept answers cannot be used: {exc}") from exc


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _connect(path: Path) -> sqlite3.Connection:
    """Raises: _WrongFileError, sqlite3.Error, OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # 0600 before SQLite opens it: -wal and -shm take the file's mode.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if not path.is_file():
        raise _WrongFileError("not a file")
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, cached_statements=16)
    try:
        for setting in (
            f"page_size = {_PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = NORMAL",  # what a crash of the machine takes is only a cache's
            "trusted_schema = OFF",
            "mmap_size = 0",
            f"cache_size = -{_CACHE_KIB}",
            f"journal_size_limit = {_LOG_BYTES}",
            f"wal_autocheckpoint = {_LOG_BYTES // _PAGE_BYTES}",
        ):
            connection.execute(f"PRAGMA {setting}")
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection) -> None:
    """The schema, made if the file is new. Raises: _WrongFileError."""
    with _transaction(connection):
        version, owner, tables = connection.execute(
            "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master)"
            " FROM pragma_user_version, pragma_application_id"
        ).fetchone()
        if not (version or owner or tables):
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif owner != APPLICATION_ID:
            raise _WrongFileError("it is a database of something else")
        elif version != VERSION:
            raise _WrongFileError(f"it is of version {version}, not {VERSION}")
    (size,) = connection.execute(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    ).fetchone()
    if (
        size <= _WHOLE_CHECK_BYTES
        and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok"
    ):
        raise _WrongFileError("it is damaged")


def _remove(path: Path) -> None:
    for file in (path, *(path.with_name(path.name + tail) for tail in ("-wal", "-shm"))):
        file.unlink(missing_ok=True)


def _code(exc: sqlite3.Error) -> int:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def _is_damage(exc: sqlite3.Error) -> bool:
    return _code(exc) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
