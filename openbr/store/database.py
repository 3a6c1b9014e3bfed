"""The store's file: how it is opened, migrated, read and written.

In: a path; functions that take a connection. Out: their results. The rules that live only here:
files 0600 in a folder made 0700 (a folder that was there keeps its mode: it may be somebody's);
a store is opened whole or refused with one line that says what to do; what was acknowledged is on
the disk (WAL with synchronous=FULL); SQLite's own failures become ServiceUnavailableError.

Two connections: one reads and is never kept waiting by a writer (WAL), one writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from openbr.errors import ConfigError, ServiceUnavailableError
from openbr.store.migrations import APPLICATION_ID, MIGRATIONS, Migration

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
READ_BUSY_TIMEOUT_S = 0.25
"""Reading happens on the event loop. WAL readers wait only while another process recovers the
file or holds it exclusively, and then an error is better than a gateway that stands still."""

_CACHE_KIB = 256
_WAL_BYTES = 4 << 20
_WHOLE_CHECK_BYTES = 1 << 20
"""Files up to this size are checked whole at every start; a bigger one only before a migration,
because the check reads every page."""

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""Primary codes that mean the file or the disk. The others (bad SQL, a broken constraint) are
mistakes in the code and stay what they are."""


class Store:
    """An open store.

    Threads: read, write and commit may be called from any; functions run one at a time on each
    connection. `read` and `write` block; inside the gateway, write with `await commit`.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._open = True

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        migrations: tuple[Migration, ...] = MIGRATIONS,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Store:
        """Open the store, made or migrated if need be. Raises: ConfigError, one line."""
        _make_private(path)
        deadline = time.monotonic() + busy_timeout_s
        while True:
            try:
                return cls(path, *_open_both(path, migrations, busy_timeout_s))
            except sqlite3.Error as exc:
                # SQLite calls no busy handler while another process turns the file into a WAL
                # one or closes it as its last user, so the whole opening is tried again.
                if _primary_code(exc) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise _refusal(path, exc) from exc
                time.sleep(0.01)

    @property
    def is_open(self) -> bool:
        return self._open

    def read(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call fn(connection, ...) now. Each statement sees the last commit before it.

        Raises: ServiceUnavailableError when the file or the disk fails.
        """
        self._check_open()
        with self._read_lock:
            try:
                return fn(self._reader, *args, **kwargs)
            except sqlite3.DatabaseError as exc:
                raise _translated(exc) from exc

    def write(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call fn(connection, ...) in one transaction on this thread: all of it or nothing.

        Raises: ServiceUnavailableError when the file or the disk fails; nothing was written then.
        """
        self._check_open()
        return self._transact(fn, *args, **kwargs)

    async def commit(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same as write, on the one writer thread: durable when it returns.

        A cancelled caller does not stop a transaction that has begun.
        """
        import asyncio  # here, because the command line has no use for it
        from concurrent.futures import ThreadPoolExecutor

        self._check_open()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "openbr-store")
        call = self._thread.submit(lambda: self._transact(fn, *args, **kwargs))
        return await asyncio.wrap_future(call)

    def close(self) -> None:
        """Finish what the writer thread was given, then close. May be called twice."""
        if not self._open:
            return
        self._open = False
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        with self._read_lock, self._write_lock:
            self._reader.close()
            self._writer.close()

    def _check_open(self) -> None:
        if not self._open:
            raise ServiceUnavailableError("openbr's store is closed", code="store_unavailable")

    def _transact(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._write_lock:
            try:
                with _transaction(self._writer):
                    return fn(self._writer, *args, **kwargs)
            except sqlite3.DatabaseError as exc:
                raise _translated(exc) from exc


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already rolled back after some failures (a full disk among them).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _translated(exc: sqlite3.DatabaseError) -> Exception:
    if _primary_code(exc) not in _UNAVAILABLE:
        return exc
    return ServiceUnavailableError(f"openbr's store failed: {exc}", code="store_unavailable")


def _primary_code(exc: sqlite3.Error) -> int:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF


def _make_private(path: Path) -> None:
    """The folder 0700 if it is made now; the file 0600, before SQLite opens it: -wal and -shm
    take the file's mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only a new file is opened here: closing a descriptor of a file drops the locks that
        # another store of this process holds on it (POSIX), and with them its safety.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        for place in (path.parent, path):
            if not os.access(place, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, "no permission to read and write", str(place))
        for file in (path, *(path.with_name(path.name + tail) for tail in ("-wal", "-shm"))):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mode & 0o077:
                    file.chmod(0o600)
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename and Path(exc.filename) != path else ""
        raise ConfigError(
            f"{path}: the store cannot be opened: {where}{exc.strerror}; "
            "make it writable for this user, or set OPENBR_STATE to another folder"
        ) from exc


def _open_both(
    path: Path, migrations: tuple[Migration, ...], busy_timeout_s: float
) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    with contextlib.ExitStack() as undo:
        writer = _connect(path, busy_timeout_s)
        undo.callback(writer.close)
        _check(writer, path, len(migrations))
        _migrate(writer, path, migrations, busy_timeout_s)
        reader = _connect(path, min(busy_timeout_s, READ_BUSY_TIMEOUT_S))
        undo.callback(reader.close)
        reader.execute("PRAGMA query_only = ON")
        undo.pop_all()
    return writer, reader


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=busy_timeout_s,
        isolation_level=None,  # no implicit BEGIN: _transaction is the only one
        check_same_thread=False,
        cached_statements=64,
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path, known: int) -> None:
    """Refuse what is not ours, newer than us, or damaged."""
    version: int
    version, owner, tables = connection.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if owner != APPLICATION_ID and (tables or version or owner):
        raise ConfigError(
            f"{path}: this is a database of something else, not openbr's store; "
            "move it away, or set OPENBR_STATE to another folder"
        )
    if version > known:
        raise ConfigError(
            f"{path}: the store is of a newer openbr (version {version}; this openbr knows "
            f"{known}); upgrade openbr, or move the store away to begin a new one"
            + _backup_hint(path)
        )
    if version < known or path.stat().st_size <= _WHOLE_CHECK_BYTES:
        verdict: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _damaged(path, " ".join(verdict.split()))


def _migrate(
    connection: sqlite3.Connection,
    path: Path,
    migrations: tuple[Migration, ...],
    busy_timeout_s: float,
) -> None:
    """Run the steps that are due, all in one transaction; where none is, an empty one: a store that
    cannot be written is refused now, not at the first message."""
    number = 0
    try:
        with _transaction(connection):
            # Asked here, where nobody else can write: of processes that start together one
            # migrates, and the others find it done.
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if 0 < version < len(migrations):
                _back_up(path, version, busy_timeout_s)
            for number in range(version + 1, len(migrations) + 1):
                for statement in migrations[number - 1]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
    except sqlite3.Error as exc:
        if _primary_code(exc) in _UNAVAILABLE:
            raise
        raise ConfigError(
            f"{path}: migration {number} of the store failed and was undone: {exc}"
            + _backup_hint(path)
        ) from exc


def _back_up(path: Path, version: int, busy_timeout_s: float) -> None:
    """A whole copy beside the store; it has its name only once it is complete.

    Read over a connection of its own: SQLite copies nothing from one that is about to write.
    """
    backup = path.with_name(f"{path.name}.v{version}.backup")
    unfinished = path.with_name(backup.name + ".part")
    unfinished.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with (
            contextlib.closing(_connect(path, busy_timeout_s)) as store,
            contextlib.closing(sqlite3.connect(unfinished)) as copy,
        ):
            store.backup(copy)
        unfinished.replace(backup)
    except (sqlite3.Error, OSError) as exc:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(
            f"{path}: the store must be migrated, and its backup {backup} cannot be written: {exc}"
        ) from exc


def _refusal(path: Path, exc: sqlite3.Error) -> ConfigError:
    code = _primary_code(exc)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return _damaged(path, str(exc))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConfigError(
            f"{path}: another process keeps the store locked; end it "
            f"(`fuser {path}` names it) and start again"
        )
    if code == sqlite3.SQLITE_READONLY:
        return ConfigError(
            f"{path}: the store is read-only; make it and its folder writable for this user, "
            "or set OPENBR_STATE to another folder"
        )
    return ConfigError(
        f"{path}: the store cannot be opened: {exc}; check the disk and the folder, "
        "or set OPENBR_STATE to another folder"
    )


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path}: the store is damaged ({why}); move it away to begin a new one"
        + _backup_hint(path)
    )


def _backup_hint(path: Path) -> str:
    def age(file: Path) -> float:
        return file.stat().st_mtime

    backups = sorted(path.parent.glob(f"{path.name}.v*.backup"), key=age)
    return f"; the last backup is {backups[-1]}" if backups else ""
